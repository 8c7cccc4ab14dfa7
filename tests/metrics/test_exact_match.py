"""Exact match, and what counts as the same answer."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_listen.metrics import get_metric
from peft_listen.metrics.text_normalization import TRAILING_PUNCTUATION, normalize_answer


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Happy", "happy"),
        (" happy\n", "happy"),
        ("happy.", "happy"),
        ("happy !?", "happy"),
        ("two \t dogs", "two dogs"),
        ("是。", "是"),
        ("straße", "STRASSE"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"),
        ('the dog"', "the dog"),
    ],
)
def test_case_white_space_and_punctuation_at_the_end_do_not_count(text, same) -> None:
    assert normalize_answer(text) == normalize_answer(same)
    assert get_metric("exact_match").compute(predictions=[text], references=[same]) == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("text", "other"),
    [("50%", "50"), ("not happy", "happy"), ("happy, sad", "happy sad"), ("C#", "C"), ("-5", "5"), ("f(x)", "f(x")],
)
def test_other_characters_count(text, other) -> None:
    assert get_metric("exact_match").compute(predictions=[text], references=[other]) == {"exact_match": 0.0}


def test_it_is_the_share_of_right_answers() -> None:
    result = get_metric("exact_match").compute(
        predictions=["Yes.", "no", "", "seven"], references=["yes", "yes", "yes", ["7", "Seven"]]
    )
    assert result == {"exact_match": 0.5}


def test_a_reference_of_punctuation_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`references\[0\]` is empty \('\.\.\.'\)"):
        get_metric("exact_match").compute(predictions=["a"], references=["..."])
    with pytest.raises(ValueError, match=r"`references\[0\]\[1\]` is empty"):
        get_metric("exact_match").compute(predictions=["a"], references=[["a", " "]])


@given(st.text())
def test_normalising_twice_changes_nothing_more(text) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once
    assert once == once.strip()
    assert not once.endswith(tuple(TRAILING_PUNCTUATION))


@given(st.text(), st.sampled_from(["NFC", "NFD"]), st.text(alphabet=TRAILING_PUNCTUATION + " \n\t"))
def test_neither_the_form_of_unicode_nor_what_trails_counts(text, form, trailing) -> None:
    assert normalize_answer(unicodedata.normalize(form, text) + trailing) == normalize_answer(text)
