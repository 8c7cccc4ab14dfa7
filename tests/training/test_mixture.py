"""The mixture of tasks: shares by temperature and weight, passes over all rows, and the same rows in a resumed epoch."""

import math
from collections import Counter

import pytest

from peft_listen.training import TaskMixture
from peft_listen.training.mixture import parse_weights, task_counts


TASKS = ["asr"] * 60 + ["er"] * 30 + ["sv"] * 10


def test_without_temperature_every_row_occurs_once_in_another_order():
    mixture = TaskMixture(TASKS, seed=1)
    first = list(mixture)
    assert sorted(first) == list(range(100)) and first != sorted(first)
    assert list(mixture) == first == list(TaskMixture(TASKS, seed=1))
    mixture.set_epoch(1)
    assert sorted(mixture) == list(range(100)) and list(mixture) != first


@pytest.mark.parametrize(
    ("temperature", "weights", "expected"),
    [
        (1.0, {}, {"asr": 60, "er": 30, "sv": 10}),
        (math.inf, {}, {"asr": 34, "er": 33, "sv": 33}),
        (2.0, {}, {"asr": 46, "er": 33, "sv": 19}),
        (1.0, {"sv": 9}, {"asr": 33, "er": 17, "sv": 50}),
        (1.0, {"asr": 0, "sv": 0}, {"er": 100}),
    ],
)
def test_shares(temperature, weights, expected):
    counts = TaskMixture(TASKS, temperature, weights).counts
    assert counts.keys() == expected.keys() and sum(counts.values()) == 100
    for task, count in expected.items():
        assert abs(counts[task] - count) <= 1


def test_a_temperature_of_two_is_the_square_root():
    counts = task_counts({"a": 900, "b": 100}, 1000, temperature=2)
    assert counts == {"a": 750, "b": 250}


def test_all_rows_of_a_task_occur_before_one_is_repeated():
    mixture = TaskMixture(TASKS, temperature=math.inf)
    seen = Counter()
    for epoch in range(20):
        mixture.set_epoch(epoch)
        rows = list(mixture)
        assert len(rows) == len(mixture) == 100
        seen.update(rows)
        for start, end in ((0, 60), (60, 90), (90, 100)):
            numbers = [seen[row] for row in range(start, end)]
            assert max(numbers) - min(numbers) <= 1


def test_rare_tasks_occur_and_epochs_have_any_length():
    counts = TaskMixture(["a"] * 1000 + ["b"], num_samples=10).counts
    assert counts == {"a": 9, "b": 1}
    mixture = TaskMixture(["a"] * 3, num_samples=7)
    assert Counter(mixture).most_common()[0][1] == 3 and len(list(mixture)) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.5}, "`temperature` must be at least 1"),
        ({"temperature": math.nan}, "`temperature` must be at least 1"),
        ({"weights": {"acap": 1}}, r"tasks \['acap'\], which have no rows"),
        ({"weights": {"asr": -1}}, "finite number of at least 0"),
        ({"weights": dict.fromkeys(("asr", "er", "sv"), 0)}, "All tasks have the weight 0"),
        ({"num_samples": 0}, "needs rows"),
        ({"tasks": []}, "needs rows"),
    ],
)
def test_mixtures_that_are_not_possible_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TaskMixture(**{"tasks": TASKS, **changes})


def test_weights_in_the_notation_of_the_command():
    assert parse_weights(["asr=2", "yes or no=0.5"]) == {"asr": 2.0, "yes or no": 0.5}
    for text in ("asr", "=2", "asr=", "asr=many", "asr=nan"):
        with pytest.raises(ValueError, match="expected TASK=WEIGHT"):
            parse_weights([text])
    with pytest.raises(ValueError, match="two weights"):
        parse_weights(["asr=1", "asr=2"])
