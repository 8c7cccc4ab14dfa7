"""Accuracy among known labels, held to counts by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric


LABELS = ["calm", "happy", "sad", "angry"]


def test_the_three_values_are_the_counts() -> None:
    result = get_metric("accuracy", labels=LABELS).compute(
        predictions=["Happy.", "happy", "sad", "I am not sure", "happy", "not happy"],
        references=["happy", "happy", "happy", "happy", "sad", "sad"],
    )
    assert result == {
        "accuracy": pytest.approx(2 / 6),
        "balanced_accuracy": pytest.approx((2 / 4 + 0 / 2) / 2),
        "unparseable": pytest.approx(2 / 6),
    }


def test_without_labels_those_of_the_references_are_known() -> None:
    inputs = {"predictions": ["sad", "calm"], "references": ["happy", "calm"]}
    assert get_metric("accuracy").compute(**inputs)["unparseable"] == 0.5
    assert get_metric("accuracy", labels=LABELS).compute(**inputs)["unparseable"] == 0.0


def test_labels_are_normalised_like_answers() -> None:
    metric = get_metric("accuracy", labels=["Same speaker.", "Another speaker."])
    assert metric.compute(predictions=["same speaker"], references=["Same  Speaker"])["accuracy"] == 1.0


def test_a_reference_that_is_no_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`references\[1\]` is 'bored', which is none of the labels \['calm'"):
        get_metric("accuracy", labels=LABELS).compute(predictions=["calm"] * 2, references=["calm", "bored"])


@pytest.mark.parametrize("labels", [[], ["calm", " "], ["calm", "Calm."]])
def test_labels_that_cannot_be_told_apart_are_refused(labels) -> None:
    with pytest.raises(ValueError, match="at least one label, none empty and no two the same"):
        get_metric("accuracy", labels=labels)


@pytest.mark.parametrize("labels", ["calm", ["calm", 3]])
def test_labels_must_be_a_list_of_strings(labels) -> None:
    with pytest.raises(ValueError, match="`labels` must be a list of strings"):
        get_metric("accuracy", labels=labels)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from([*LABELS, "?"]), st.sampled_from(LABELS)), min_size=1, max_size=20))
def test_right_wrong_and_unparseable_answers_never_exceed_the_whole(pairs) -> None:
    predictions, references = zip(*pairs, strict=True)
    result = get_metric("accuracy", labels=LABELS).compute(predictions=predictions, references=references)
    assert result["accuracy"] == pytest.approx(sum(p == r for p, r in pairs) / len(pairs))
    assert 0 <= result["accuracy"] + result["unparseable"] <= 1 + 1e-9
    assert 0 <= result["balanced_accuracy"] <= 1
    # Repeating every row moves no share.
    assert get_metric("accuracy", labels=LABELS).compute(
        predictions=predictions * 2, references=references * 2
    ) == pytest.approx(result)
