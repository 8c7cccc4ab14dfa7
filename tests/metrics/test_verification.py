"""Equal error rate, compared with cases by hand and with its symmetries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric


def eer(scores, references) -> float:
    return get_metric("eer").compute(predictions=scores, references=references)["eer"]


def test_separable_scores_have_an_equal_error_rate_of_zero() -> None:
    result = get_metric("eer").compute(predictions=[-3.0, -1.0, 0.5, 2.0], references=[0, 0, 1, 1])
    assert result == {"eer": 0.0, "threshold": 0.5}


def test_inverted_scores_give_one_and_constant_scores_one_half() -> None:
    assert eer([1.0, 0.0], [0, 1]) == 1.0
    assert eer([0.3] * 5, [0, 1, 1, 0, 1]) == 0.5


def test_rates_that_are_equal_at_a_threshold_give_their_value() -> None:
    # At the threshold 0.6, one of four impostors is accepted and one of four targets is rejected.
    result = get_metric("eer").compute(
        predictions=[0.1, 0.2, 0.3, 0.7, 0.5, 0.6, 0.8, 0.9], references=[0, 0, 0, 0, 1, 1, 1, 1]
    )
    assert result == {"eer": 0.25, "threshold": 0.6}


def test_rates_that_cross_between_thresholds_are_interpolated() -> None:
    # At 0.8 the rates (accepted impostors, rejected targets) are (0, 1/2), at 0.5 they are (1/3, 1/2), at 0.4 (2/3, 1/2).
    assert eer([0.8, 0.1, 0.5, 0.4, 0.05], [1, 1, 0, 0, 0]) == pytest.approx(0.5)
    # Two equal scores move both rates at once, from (0, 1/2) to (1/3, 0): 1/2 - t/2 = t/3 at t = 3/5.
    assert eer([0.8, 0.5, 0.5, 0.2, 0.1], [1, 1, 0, 0, 0]) == pytest.approx(1 / 5)


def test_tensors_and_arrays_are_accepted() -> None:
    assert eer(torch.tensor([0.1, 0.9]), torch.tensor([0, 1])) == 0.0
    assert eer(np.array([0.1, 0.9]), np.array([False, True])) == 0.0


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "0.5", True])
def test_a_score_that_is_not_finite_raises(score) -> None:
    with pytest.raises(ValueError, match=r"`predictions\[1\]` must be a finite score"):
        eer([0.5, score], [0, 1])


@pytest.mark.parametrize("reference", [2, -1, 0.5, "same"])
def test_a_reference_that_is_neither_one_nor_zero_raises(reference) -> None:
    with pytest.raises(ValueError, match=r"`references\[0\]` must be 1 \(same speaker\) or 0"):
        eer([0.5, 0.1], [reference, 1])


@pytest.mark.parametrize("only", [0, 1])
def test_references_of_one_kind_raise_and_the_metric_stays_usable(only) -> None:
    metric = get_metric("eer")
    with pytest.raises(ValueError, match=f"All 2 references are {only}.*pairs of different speakers"):
        metric.compute(predictions=[0.1, 0.2], references=[only, only])
    assert metric.compute(predictions=[0.1, 0.2], references=[0, 1])["eer"] == 0.0


TRIALS = st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 1)), min_size=2, max_size=30).filter(
    lambda trials: len({reference for _, reference in trials}) == 2
)


@settings(deadline=None, max_examples=40)
@given(TRIALS)
def test_only_the_order_of_scores_matters_and_both_classes_are_symmetric(trials) -> None:
    scores, references = (np.array(column) for column in zip(*trials, strict=True))
    value = eer(scores, references)
    assert 0 <= value <= 1
    assert eer(scores**3 + 2.0 * scores, references) == pytest.approx(value)
    # Swapping the two classes and negating the scores gives the same task.
    assert eer(-scores, 1 - references) == pytest.approx(value)
    # Negating only the scores swaps correct and wrong decisions.
    assert eer(-scores, references) == pytest.approx(1 - value)


@settings(deadline=None, max_examples=40)
@given(TRIALS)
def test_the_two_rates_are_closest_at_the_threshold(trials) -> None:
    scores, references = (np.array(column) for column in zip(*trials, strict=True))
    result = get_metric("eer").compute(predictions=scores, references=references)

    def gap(threshold: float) -> float:
        accepted = (scores[references == 0] >= threshold).mean()
        rejected = (scores[references == 1] < threshold).mean()
        return abs(accepted - rejected)

    assert gap(result["threshold"]) == pytest.approx(min(gap(score) for score in scores))
