import numpy as np
import pytest

from benchmarks.mini_listen.normalization import Scale, balance, relative_change


SCALE = Scale(zero={"asr": 0.2, "er": 0.25, "sv": 0.5}, one={"asr": 0.6, "er": 0.75, "sv": 0.51})


def test_normalized_scores_by_hand() -> None:
    normalized = SCALE.normalize({"asr": np.array([0.2, 0.4, 0.7]), "er": np.array([0.1, 0.5, 0.75])})
    assert normalized["asr"] == pytest.approx([0.0, 0.5, 1.25])
    assert normalized["er"] == pytest.approx([0.0, 0.5, 1.0])  # 0.1 is below the projector alone
    assert SCALE.mean({"asr": np.array([0.4]), "er": np.array([0.75])}) == pytest.approx([0.75])


def test_a_task_without_room_is_left_out() -> None:
    assert SCALE.tasks == ["asr", "er"]
    assert SCALE.without_room == ["sv"]
    assert SCALE.restricted_to(["er", "sv"]).tasks == ["er"]


def test_balance_by_hand() -> None:
    result = balance(SCALE, {"asr": 0.4, "er": 0.75, "sv": 0.1})
    assert (result.mean, result.worst, result.spread) == pytest.approx((0.75, 0.5, 0.25))


def test_relative_changes_by_hand() -> None:
    # -50 % and +20 %.
    assert relative_change({"asr": 0.2, "er": 0.6}, {"asr": 0.4, "er": 0.5}) == pytest.approx(-15)
    assert relative_change({"asr": 2.0, "er": 1.0}, {"asr": 1.0, "er": 2.0}, lower_is_better=True) == pytest.approx(
        -25
    )
    # A score of 0 has no relative change.
    assert relative_change({"asr": 0.2, "er": 0.6}, {"asr": 0.0, "er": 0.5}) == pytest.approx(20)
    assert relative_change({"asr": 0.2}, {}) is None
