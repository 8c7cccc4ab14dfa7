"""BLEU and chrF, compared with values by hand and with sacrebleu's functions."""

import math

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric


CHINESE = "我昨天和朋友一起去了北京的公园。"


def test_bleu_is_the_geometric_mean_of_the_precisions_times_the_brevity_penalty() -> None:
    result = get_metric("bleu").compute(predictions=["a b c d e"], references=["a b c d f g"])
    assert result["precisions"] == pytest.approx([400 / 5, 300 / 4, 200 / 3, 100 / 2])
    assert result["brevity_penalty"] == pytest.approx(math.exp(1 - 6 / 5))
    assert result["bleu"] == pytest.approx(
        100 * math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4), rel=1e-6
    )
    assert "tok:13a" in result["signature"]


def test_the_chinese_tokenizer_splits_into_characters() -> None:
    nearly = CHINESE.replace("昨天", "今天")
    inputs = {"predictions": [nearly], "references": [CHINESE]}
    chinese = get_metric("bleu", tokenize="zh").compute(**inputs)
    assert chinese["bleu"] == pytest.approx(sacrebleu.corpus_bleu([nearly], [[CHINESE]], tokenize="zh").score)
    assert chinese["precisions"][0] == pytest.approx(100 * 15 / 16)
    assert chinese["bleu"] > 70
    assert "tok:zh" in chinese["signature"]
    # With the default tokenizer the sentence is a single word.
    assert get_metric("bleu").compute(**inputs)["bleu"] == 0.0


def test_case_matters_unless_lowercase_is_set() -> None:
    inputs = {"predictions": ["THE CAT SAT DOWN"], "references": ["the cat sat down"]}
    for name in ("bleu", "chrf"):
        assert get_metric(name).compute(**inputs)[name] < 20
        assert get_metric(name, lowercase=True).compute(**inputs)[name] == pytest.approx(100)


def test_an_unknown_tokenizer_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`tokenize` must be one of \['13a', .*'zh'\], got 'jieba'"):
        get_metric("bleu", tokenize="jieba")


def test_chrf_equals_sacrebleu_with_and_without_word_ngrams() -> None:
    predictions, references = ["the cat sat on a mat", "dogs bark"], ["the cat sat on the mat", "a dog barks"]
    inputs = {"predictions": predictions, "references": references}
    for word_order in (0, 2):
        result = get_metric("chrf", word_order=word_order).compute(**inputs)
        assert result["chrf"] == sacrebleu.corpus_chrf(predictions, [references], word_order=word_order).score
        assert f"nw:{word_order}" in result["signature"]
    # One of two characters differs: precision and recall are 1/2 for characters and 0 for pairs.
    assert get_metric("chrf").compute(predictions=["ab"], references=["ac"])["chrf"] == pytest.approx(100 * 1 / 4)


@pytest.mark.parametrize("word_order", [-1, 1.5, "2"])
def test_an_invalid_word_order_raises(word_order) -> None:
    with pytest.raises(ValueError, match="`word_order` must be a non-negative integer"):
        get_metric("chrf", word_order=word_order)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.text(alphabet="我去了北京公园朋友昨天", min_size=4, max_size=12), min_size=1, max_size=4))
def test_a_translation_equal_to_its_reference_has_the_maximal_score(sentences) -> None:
    for name, options in (("bleu", {"tokenize": "zh"}), ("chrf", {})):
        perfect = get_metric(name, **options).compute(predictions=sentences, references=sentences)[name]
        assert perfect == pytest.approx(100)
        shuffled = get_metric(name, **options).compute(predictions=sentences[::-1], references=sentences)[name]
        assert 0 <= shuffled <= 100 + 1e-9
