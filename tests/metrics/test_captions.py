"""ROUGE-L, compared with values by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # Common subsequence: "dog barks passes", 3 of the 4 predicted words and 3 of the 6 reference words.
    result = get_metric("rouge_l").compute(
        predictions=["Dog barks, train passes."], references=["a dog barks and car passes"]
    )
    assert result["rouge_l"] == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))


def test_rouge_l_is_the_mean_over_rows_of_the_best_reference() -> None:
    result = get_metric("rouge_l").compute(
        predictions=["a dog barks", "rain"], references=[["birds sing", "a dog barks"], ["wind"]]
    )
    assert result["rouge_l"] == 0.5


def test_the_stemmer_matches_inflected_forms() -> None:
    inputs = {"predictions": ["dogs barking"], "references": ["dog barked"]}
    assert get_metric("rouge_l").compute(**inputs)["rouge_l"] == 0.0
    assert get_metric("rouge_l", use_stemmer=True).compute(**inputs)["rouge_l"] == 1.0


def test_a_reference_without_latin_words_raises() -> None:
    with pytest.raises(ValueError, match=r"`references\[0\]` contains no word.*`chrf`"):
        get_metric("rouge_l").compute(predictions=["狗叫"], references=["狗叫"])


WORDS = st.lists(st.sampled_from(["dog", "barks", "rain", "loud"]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None, max_examples=25)
@given(WORDS, WORDS)
def test_rouge_l_is_symmetric_and_1_only_for_equal_texts(first, second) -> None:
    forward = get_metric("rouge_l").compute(predictions=[first], references=[second])["rouge_l"]
    backward = get_metric("rouge_l").compute(predictions=[second], references=[first])["rouge_l"]
    assert forward == pytest.approx(backward)
    assert 0 <= forward <= 1
    assert (forward == 1) == (first == second)
