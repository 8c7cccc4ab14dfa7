"""Exact match and accuracy, compared with counts by hand, and the normalization of answers."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric
from peft_listen.metrics.text_normalization import TRAILING_PUNCTUATION, normalize_answer


LABELS = ["calm", "happy", "sad", "angry"]


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
def test_case_white_space_and_trailing_punctuation_are_ignored(text, same) -> None:
    assert normalize_answer(text) == normalize_answer(same)
    assert get_metric("exact_match").compute(predictions=[text], references=[same]) == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("text", "other"),
    [("50%", "50"), ("not happy", "happy"), ("happy, sad", "happy sad"), ("C#", "C"), ("-5", "5"), ("f(x)", "f(x")],
)
def test_other_characters_matter(text, other) -> None:
    assert get_metric("exact_match").compute(predictions=[text], references=[other]) == {"exact_match": 0.0}


def test_exact_match_is_the_fraction_of_correct_answers() -> None:
    result = get_metric("exact_match").compute(
        predictions=["Yes.", "no", "", "seven"], references=["yes", "yes", "yes", ["7", "Seven"]]
    )
    assert result == {"exact_match": 0.5}


def test_a_reference_with_only_punctuation_raises() -> None:
    with pytest.raises(ValueError, match=r"`references\[0\]` is empty \('\.\.\.'\)"):
        get_metric("exact_match").compute(predictions=["a"], references=["..."])
    with pytest.raises(ValueError, match=r"`references\[0\]\[1\]` is empty"):
        get_metric("exact_match").compute(predictions=["a"], references=[["a", " "]])


@given(st.text())
def test_normalization_is_idempotent(text) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once
    assert once == once.strip()
    assert not once.endswith(tuple(TRAILING_PUNCTUATION))


@given(st.text(), st.sampled_from(["NFC", "NFD"]), st.text(alphabet=TRAILING_PUNCTUATION + " \n\t"))
def test_unicode_form_and_trailing_characters_are_ignored(text, form, trailing) -> None:
    assert normalize_answer(unicodedata.normalize(form, text) + trailing) == normalize_answer(text)


def test_accuracy_values_equal_counts_by_hand() -> None:
    result = get_metric("accuracy", labels=LABELS).compute(
        predictions=["Happy.", "happy", "sad", "I am not sure", "happy", "not happy"],
        references=["happy", "happy", "happy", "happy", "sad", "sad"],
    )
    assert result == {
        "accuracy": pytest.approx(2 / 6),
        "balanced_accuracy": pytest.approx((2 / 4 + 0 / 2) / 2),
        "unparseable": pytest.approx(2 / 6),
    }


def test_labels_default_to_those_of_the_references() -> None:
    inputs = {"predictions": ["sad", "calm"], "references": ["happy", "calm"]}
    assert get_metric("accuracy").compute(**inputs)["unparseable"] == 0.5
    assert get_metric("accuracy", labels=LABELS).compute(**inputs)["unparseable"] == 0.0


def test_labels_are_normalized_like_answers() -> None:
    metric = get_metric("accuracy", labels=["Same speaker.", "Another speaker."])
    assert metric.compute(predictions=["same speaker"], references=["Same  Speaker"])["accuracy"] == 1.0


def test_a_reference_that_is_not_a_label_raises() -> None:
    with pytest.raises(ValueError, match=r"`references\[1\]` is 'bored', which is not one of the labels \['calm'"):
        get_metric("accuracy", labels=LABELS).compute(predictions=["calm"] * 2, references=["calm", "bored"])


@pytest.mark.parametrize("labels", [[], ["calm", " "], ["calm", "Calm."]])
def test_indistinguishable_labels_raise(labels) -> None:
    with pytest.raises(ValueError, match="at least one label, and the labels must be non-empty and distinct"):
        get_metric("accuracy", labels=labels)


@pytest.mark.parametrize("labels", ["calm", ["calm", 3]])
def test_labels_must_be_a_list_of_strings(labels) -> None:
    with pytest.raises(ValueError, match="`labels` must be a list of strings"):
        get_metric("accuracy", labels=labels)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from([*LABELS, "?"]), st.sampled_from(LABELS)), min_size=1, max_size=20))
def test_accuracy_and_unparseable_add_up_to_at_most_one(pairs) -> None:
    predictions, references = zip(*pairs, strict=True)
    result = get_metric("accuracy", labels=LABELS).compute(predictions=predictions, references=references)
    assert result["accuracy"] == pytest.approx(sum(p == r for p, r in pairs) / len(pairs))
    assert 0 <= result["accuracy"] + result["unparseable"] <= 1 + 1e-9
    assert 0 <= result["balanced_accuracy"] <= 1
    # Repeating every row changes no value.
    assert get_metric("accuracy", labels=LABELS).compute(
        predictions=predictions * 2, references=references * 2
    ) == pytest.approx(result)
