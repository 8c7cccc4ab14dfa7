"""Word and character error rates, compared with counts by hand and with a reference edit distance."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric


def edit_distance(first: tuple, second: tuple) -> int:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        substitution = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, substitution)

    return distance(len(first), len(second))


def test_word_error_rate_is_computed_over_the_whole_corpus() -> None:
    result = get_metric("wer").compute(
        predictions=["the cat sat", "a big black dog"], references=["the hat sat down", "a dog"]
    )
    assert result == {
        "wer": pytest.approx(4 / 6),
        "substitutions": 1,
        "deletions": 1,
        "insertions": 2,
        "hits": 4,
    }


def test_character_error_rate_counts_single_spaces() -> None:
    assert get_metric("cer").compute(predictions=["ab d"], references=["ab  cd"])["cer"] == pytest.approx(1 / 5)
    assert get_metric("cer").compute(predictions=["我在北京"], references=["我去北京。"])["cer"] == 1 / 4


def test_an_error_rate_can_exceed_one() -> None:
    assert get_metric("wer").compute(predictions=["one two three"], references=["four"])["wer"] == 3.0


def test_transcripts_are_normalized_with_whispers_normalizer() -> None:
    inputs = {"predictions": ["hello don t panic 12"], "references": ["Hello — DON'T panic! [laughs] \uff11\uff12"]}
    assert get_metric("wer").compute(**inputs)["wer"] == 0.0
    assert get_metric("cer").compute(**inputs)["cer"] == 0.0


def test_the_normalizer_can_be_disabled_or_replaced() -> None:
    inputs = {"predictions": ["Hello world "], "references": ["hello world"]}
    assert get_metric("wer", normalizer=None).compute(**inputs)["wer"] == 0.5
    assert get_metric("wer", normalizer=str.lower).compute(**inputs)["wer"] == 0.0
    with pytest.raises(
        ValueError, match='`normalizer` must be "basic", "english", None or a function.*got \'german\''
    ):
        get_metric("wer", normalizer="german")


def test_english_is_normalized_as_in_whispers_paper() -> None:
    inputs = {"predictions": ["Mr. Park can't pay twenty dollars"], "references": ["uh, mister park can not pay $20"]}
    for language in ("en", "en-GB", "en_us", "English"):
        assert get_metric("wer", language=language).compute(**inputs)["wer"] == 0.0
        assert get_metric("cer", language=language).compute(**inputs)["cer"] == 0.0
    assert get_metric("wer", normalizer="english").compute(**inputs)["wer"] == 0.0
    assert get_metric("wer").compute(**inputs)["wer"] > 0.5
    with pytest.raises(
        ValueError, match="The language 'en' has its normalizer, \"english\", but `normalizer` is None"
    ):
        get_metric("wer", language="en", normalizer=None)


def test_other_languages_have_the_basic_normalizer() -> None:
    inputs = {"predictions": ["Grüß Gott, Mr. Meier"], "references": ["grüß gott mister meier"]}
    assert get_metric("wer", language="de").compute(**inputs) == get_metric("wer").compute(**inputs)


@pytest.mark.parametrize("language", ["zh", "zh-CN", "ja", "th", "lo", "my", "km", "yue", "Chinese"])
def test_languages_without_spaces_have_character_error_rates_that_ignore_spaces(language) -> None:
    with pytest.raises(ValueError, match=rf"'{language}' is written without spaces.*`get_metric\(\"cer\", language="):
        get_metric("wer", language=language)
    inputs = {"predictions": ["我 在 北京"], "references": ["我去北京。"]}
    assert get_metric("cer", language=language).compute(**inputs)["cer"] == 1 / 4
    assert get_metric("cer").compute(**inputs)["cer"] == 3 / 4


@pytest.mark.parametrize("language", ["klingon", "", "x", 3])
def test_an_unknown_language_raises(language) -> None:
    with pytest.raises(ValueError, match="`language` must be a code or a name that Whisper knows"):
        get_metric("wer", language=language)


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_a_reference_without_words_raises(name) -> None:
    with pytest.raises(ValueError, match=r"`references\[0\]` is empty after normalization \('\[laughs\]'\)"):
        get_metric(name).compute(predictions=["ha"], references=["[laughs]"])


SENTENCES = st.lists(st.sampled_from(["a", "bb", "c"]), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=4))
def test_both_rates_equal_edit_distance_over_length(rows) -> None:
    predictions = [" ".join(prediction) for prediction, _ in rows]
    references = [" ".join(reference) for _, reference in rows]
    words = sum(
        edit_distance(tuple(p.split()), tuple(r.split())) for p, r in zip(predictions, references, strict=True)
    )
    characters = sum(edit_distance(tuple(p), tuple(r)) for p, r in zip(predictions, references, strict=True))
    inputs = {"predictions": predictions, "references": references}
    assert get_metric("wer").compute(**inputs)["wer"] == pytest.approx(words / len(" ".join(references).split()))
    assert get_metric("cer").compute(**inputs)["cer"] == pytest.approx(characters / sum(map(len, references)))
