import numpy as np
import pytest

from benchmarks.mini_listen.comparison import plain_mean
from benchmarks.mini_listen.significance import bootstrap_interval, sign_flip_p_value


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        # All signs equal: 2 of 2^n assignments have a mean as far from 0.
        ([1, 2, 3, 4, 5, 6], 2 / 64),
        ([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6], 2 / 64),
        ([1, 1, 1], 2 / 8),
        # Sums of +-1 +-2 +-4: +-7, +-5, +-3, +-1; at least 5 in absolute value: 4 of 8.
        ([4, 2, -1], 4 / 8),
        # At least 1 in absolute value: all.
        ([4, -2, -1], 1.0),
        ([3], 1.0),
        ([], 1.0),
    ],
)
def test_sign_flip_p_values_by_hand(differences: list[float], expected: float) -> None:
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_the_interval_of_one_seed_is_that_of_a_mean_of_clips() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(0.5, 0.2, (1, 400))
    theirs = np.zeros((1, 400))
    interval = bootstrap_interval({"asr": ours}, {"asr": theirs}, plain_mean)
    error = 1.96 * ours.std() / 20
    assert interval.mean == pytest.approx(ours.mean())
    assert interval.low == pytest.approx(ours.mean() - error, abs=0.1 * error)
    assert interval.high == pytest.approx(ours.mean() + error, abs=0.1 * error)


def test_the_same_clips_are_drawn_for_both_methods() -> None:
    scores = np.random.default_rng(0).random((1, 50))
    interval = bootstrap_interval({"er": scores + 0.1}, {"er": scores}, plain_mean)
    assert (interval.low, interval.mean, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_seeds_are_drawn_too() -> None:
    # Seeds differ by -1 and 3, so means of two drawn seeds are -1, 1 or 3.
    ours = np.array([[-1.0] * 5, [3.0] * 5])
    interval = bootstrap_interval({"er": ours}, {"er": np.zeros((2, 5))}, plain_mean)
    assert (interval.low, interval.mean, interval.high) == (-1, 1, 3)


def test_tasks_have_equal_weight_whatever_their_number_of_clips() -> None:
    ours = {"er": np.ones((2, 10)), "sv": np.zeros((2, 1000))}
    theirs = {task: np.zeros_like(scores) for task, scores in ours.items()}
    interval = bootstrap_interval(ours, theirs, plain_mean)
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


def test_other_clips_or_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different tasks, seeds or clips: .* Compare runs of the same seeds"):
        bootstrap_interval({"er": np.ones((2, 10))}, {"er": np.ones((3, 10))}, plain_mean)
