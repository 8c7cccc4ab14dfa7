import time

import pytest

from benchmarks.speed.ratios import Ratio, describe_machine, header, memory_ratio, ratio_in_turns, time_in_turns


def test_calls_take_turns_and_who_goes_first_alternates():
    log = []
    turns = time_in_turns(
        lambda: log.append("call"),
        lambda: log.append("peer"),
        repeats=2,
        warm_up=1,
        before=[lambda: log.append("-"), lambda: None],
    )
    assert log == ["-", "call", "peer", "-", "peer", "call", "-", "call", "peer"]
    assert len(turns) == 2


def test_what_comes_before_a_turn_is_not_timed():
    ((seconds, peer_seconds),) = time_in_turns(
        lambda: time.sleep(0.02), lambda: None, repeats=1, warm_up=0, before=[lambda: time.sleep(0.2)]
    )
    assert 0.02 <= seconds < 0.2
    assert peer_seconds < 0.02


def test_any_number_of_calls_takes_turns():
    log = []
    turns = time_in_turns(*(lambda name=name: log.append(name) for name in "abc"), repeats=2, warm_up=0)
    assert log == [*"abc", *"cba"]
    assert [len(seconds) for seconds in turns] == [3, 3]


def test_cpu_time_does_not_count_waiting():
    def work() -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    ((waiting, working),) = time_in_turns(lambda: time.sleep(0.2), work, repeats=1, warm_up=0, clock="cpu")
    assert waiting < 0.1 and 0.05 <= working
    ratio = ratio_in_turns("wait / work", lambda: time.sleep(0.2), work, repeats=2, warm_up=0, clock="cpu")
    assert ratio.name == "wait / work" and len(ratio.values) == 2 and max(ratio.values) < 1


@pytest.mark.parametrize(
    ("ratio", "line"),
    [
        (Ratio("a / b", [1.0, 2.0, 3.0]), "| a / b | 2.000 | 1.000 to 3.000 |"),
        (Ratio("a / b", [1.0, 2.0]), "| a / b | 1.500 | 1.000 to 2.000 |"),
        (Ratio("a / b", [0.5]), "| a / b | 0.500 | 0.500 to 0.500 |"),
        (Ratio("a / b", []), "| a / b | not measured | |"),
    ],
)
def test_a_line_has_the_cells_of_its_head(ratio, line):
    assert ratio.line() == line
    assert header().splitlines()[0].count("|") == line.count("|")


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        ([(1.0, 2.0), (3.0, 4.0)], [0.5, 0.75]),
        ([(1.0, 0.0)], []),
        ([(0.0, 0.0), (3.0, 4.0)], [0.75]),
        ([(0.0, 5.0), (-1.0, 5.0), (5.0, -1.0)], []),
        ([], []),
    ],
)
def test_a_peak_that_was_not_exceeded_gives_no_ratio_of_memory(pairs, values):
    ratio = memory_ratio("a / b", pairs)
    assert ratio.values == values
    assert ratio.line().count("|") == header().splitlines()[0].count("|")


def test_the_machine_is_described_with_its_versions():
    assert "CPU" in describe_machine("cpu") and "torch 2" in describe_machine("cpu")
