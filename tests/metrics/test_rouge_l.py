"""ROUGE-L, held to values by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric


def test_it_is_the_f1_of_the_longest_common_subsequence() -> None:
    # Common: "dog barks passes"; 3 of 4 words of the one and 3 of 6 of the other.
    result = get_metric("rouge_l").compute(
        predictions=["Dog barks, train passes."], references=["a dog barks and car passes"]
    )
    assert result["rouge_l"] == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))


def test_it_is_the_mean_over_the_rows_of_the_best_reference() -> None:
    result = get_metric("rouge_l").compute(
        predictions=["a dog barks", "rain"], references=[["birds sing", "a dog barks"], ["wind"]]
    )
    assert result["rouge_l"] == 0.5


def test_the_stemmer_makes_forms_of_a_word_one() -> None:
    inputs = {"predictions": ["dogs barking"], "references": ["dog barked"]}
    assert get_metric("rouge_l").compute(**inputs)["rouge_l"] == 0.0
    assert get_metric("rouge_l", use_stemmer=True).compute(**inputs)["rouge_l"] == 1.0


def test_a_language_that_it_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`references\[0\]` holds no word.*use `chrf`"):
        get_metric("rouge_l").compute(predictions=["狗叫"], references=["狗叫"])


WORDS = st.lists(st.sampled_from(["dog", "barks", "rain", "loud"]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None, max_examples=25)
@given(WORDS, WORDS)
def test_it_is_symmetric_and_one_only_where_both_are_the_same(first, second) -> None:
    forth = get_metric("rouge_l").compute(predictions=[first], references=[second])["rouge_l"]
    back = get_metric("rouge_l").compute(predictions=[second], references=[first])["rouge_l"]
    assert forth == pytest.approx(back)
    assert 0 <= forth <= 1
    assert (forth == 1) == (first == second)
