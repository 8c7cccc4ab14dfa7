"""Every metric gives the values that the documentation of other implementations states for an example."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from peft_listen.metrics import get_metric
from peft_listen.metrics.text_normalization import get_normalizer


# The example of `wer` and `cer` in evaluate.
TRANSCRIPTS = {
    "predictions": ["this is the prediction", "there is an other sample"],
    "references": ["this is the reference", "there is another one"],
}


def test_error_rates_of_evaluate() -> None:
    assert get_metric("wer", normalizer=None).compute(**TRANSCRIPTS)["wer"] == 0.5
    assert get_metric("cer", normalizer=None).compute(**TRANSCRIPTS)["cer"] == pytest.approx(0.34146341463414637)


def test_the_word_error_rate_of_jiwers_documentation() -> None:
    assert get_metric("wer").compute(predictions=["hello duck"], references=["hello world"])["wer"] == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let's", "let us"),
        ("he's like", "he is like"),
        ("she's been like", "she has been like"),
        ("10km", "10 km"),
        ("10mm", "10 mm"),
        ("RC232", "rc 232"),
        ("Mr. Park visited Assoc. Prof. Kim Jr.", "mister park visited associate professor kim junior"),
    ],
)
def test_the_english_normalizer_of_whispers_tests(text, expected) -> None:
    # tests/test_normalizer.py of openai/whisper
    assert get_normalizer("english")(text) == expected


def test_bleu_and_chrf_of_sacrebleus_readme() -> None:
    inputs = {
        "predictions": ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."],
        "references": [
            ["The dog bit the man.", "The dog had bit the man."],
            ["It was not unexpected.", "No one was surprised."],
            ["The man bit him first.", "The man had bitten the dog."],
        ],
    }
    bleu = get_metric("bleu").compute(**inputs)
    assert round(bleu["bleu"], 2) == 48.53
    assert [round(precision, 1) for precision in bleu["precisions"]] == [82.4, 50.0, 45.5, 37.5]
    assert round(bleu["brevity_penalty"], 3) == 0.943
    assert round(get_metric("chrf").compute(**inputs)["chrf"], 2) == 59.73


def test_chinese_bleu_is_bleu_of_characters() -> None:
    # sacrebleu's rule for Chinese: each Chinese character is a token, other text is split as by 13a.
    chinese = {"predictions": ["我有一只猫, OK?"], "references": ["我有一只狗, OK?"]}
    spaced = {"predictions": ["我 有 一 只 猫 , OK ?"], "references": ["我 有 一 只 狗 , OK ?"]}
    value = get_metric("bleu", tokenize="zh").compute(**chinese)
    assert value["bleu"] == pytest.approx(get_metric("bleu", tokenize="none").compute(**spaced)["bleu"])
    # 7 of 8 tokens, 5 of 7 pairs, 3 of 6 triples and 1 of 5 quadruples match.
    assert value["bleu"] == pytest.approx(100 * (7 / 8 * 5 / 7 * 3 / 6 * 1 / 5) ** (1 / 4))


def test_rouge_l_of_evaluate_and_of_rouge_score() -> None:
    # The example of `rouge` in evaluate, and that of rouge-score's README.
    inputs = {"predictions": ["hello there", "general kenobi"], "references": ["hello goodbye", "general grievous"]}
    assert get_metric("rouge_l").compute(**inputs)["rouge_l"] == 0.5
    result = get_metric("rouge_l", use_stemmer=True).compute(
        predictions=["The quick brown dog jumps on the log."],
        references=["The quick brown fox jumps over the lazy dog"],
    )
    assert result["rouge_l"] == pytest.approx(2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9))


def test_cider_of_aac_metrics_and_pycocoevalcap() -> None:
    # The README of aac-metrics gives 0.9614, from the rows 1.3641 and 0.5587.
    inputs = {
        "predictions": ["a man is speaking", "rain falls"],
        "references": [
            ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
            ["rain is falling hard on a surface"],
        ],
    }
    assert round(get_metric("cider").compute(**inputs)["cider"], 4) == 0.9614
    # pycocoevalcap 1.2 on a second example.
    inputs = {
        "predictions": ["a dog is barking", "a car passes by", "a woman talks as water pours"],
        "references": [
            ["a dog barks", "a dog is barking loudly"],
            ["two cars pass by", "cars drive past"],
            ["a woman talks nearby as water pours", "water is poured while a woman speaks"],
        ],
    }
    assert get_metric("cider").compute(**inputs)["cider"] == pytest.approx(2.925196088980083)


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "exact"),
    [
        # The example of `squad` in evaluate.
        ("1976", ["1976"], 1, 1),
        # Cases of the official script's rules: articles, punctuation and case do not count; the best reference does.
        ("The Broncos!", ["broncos", "Denver Broncos"], 1, 1),
        ("Denver", ["Denver Broncos", "the Denver Broncos team"], 2 / 3, 0),
        ("broncos broncos", ["denver broncos"], 1 / 2, 0),
        ("the", ["a"], 1, 1),
        ("", ["broncos"], 0, 0),
        ("Saint Bernadette", ["Saint Bernadette Soubirous"], 4 / 5, 0),
    ],
)
def test_f1_and_exact_match_of_squads_script(prediction, references, f1, exact) -> None:
    result = get_metric("squad_f1").compute(predictions=[prediction], references=[references])
    assert result == {"squad_f1": pytest.approx(f1), "squad_exact_match": exact}


def test_accuracy_and_unweighted_accuracy_of_scikit_learns_documentation() -> None:
    accuracy = get_metric("accuracy").compute(predictions=["0", "2", "1", "3"], references=["0", "1", "2", "3"])
    assert accuracy["accuracy"] == 0.5
    balanced = get_metric("accuracy").compute(predictions=list("010001"), references=list("010010"))
    assert balanced["balanced_accuracy"] == 0.625


def test_the_equal_error_rate_of_speechbrains_documentation() -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert get_metric("eer").compute(predictions=scores, references=[1] * 5 + [0] * 5)["eer"] == 1.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_the_equal_error_rate_is_the_crossing_of_the_interpolated_roc_curve(seed, size) -> None:
    # The usual formula for VoxCeleb: brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1)
    rng = np.random.default_rng(seed)
    references = np.arange(size) % 2
    scores = rng.normal(size=size) + references
    false_positives, true_positives, _ = roc_curve(references, scores, drop_intermediate=False)

    def excess(rate: float) -> float:
        return 1 - rate - np.interp(rate, false_positives, true_positives)

    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    value = get_metric("eer").compute(predictions=scores, references=references)["eer"]
    assert math.isclose(value, low, abs_tol=1e-6) or abs(excess(value)) < 1e-6
