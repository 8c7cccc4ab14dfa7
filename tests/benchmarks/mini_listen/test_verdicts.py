import pytest

from benchmarks.mini_listen import verdicts as rules
from benchmarks.mini_listen.comparison import Study
from benchmarks.mini_listen.experiments import (
    CONNECTOR,
    DEEP_SOFT_PROMPT,
    DPS,
    EQUAL_SOFT_PROMPT,
    LORA,
    LORA_EQUAL_COMPUTE,
    RANDOM_ROUTING,
    TASK_KNOWN,
    single_task_label,
)
from benchmarks.mini_listen.settings import TASKS
from benchmarks.mini_listen.verdicts import RULES, interference, verdicts
from tests.benchmarks.mini_listen.stored_runs import make_study


# z of a score s is (s - 0.2) / 0.6.
ALL = {
    CONNECTOR: 0.2,
    LORA: lambda task, seed: 0.5 + 0.01 * seed,
    LORA_EQUAL_COMPUTE: 0.53,
    DPS: lambda task, seed: 0.6 + 0.01 * seed,
    EQUAL_SOFT_PROMPT: 0.4,
    DEEP_SOFT_PROMPT: 0.45,
    TASK_KNOWN: 0.7,
    RANDOM_ROUTING: 0.42,
}


def verdict(rule, study: Study) -> str:
    return rule(study).outcome


def test_a_comparison_by_hand() -> None:
    result = make_study(ALL).compare(DPS, LORA)
    assert result.seeds == [0, 1, 2, 3, 4, 5]
    assert result.differences == pytest.approx([0.1 / 0.6] * 6)
    assert result.p_value == pytest.approx(2 / 64)
    assert (result.interval.low, result.interval.high) == pytest.approx((0.1 / 0.6, 0.1 / 0.6))
    assert result.won == list(TASKS)
    assert result.is_better and not result.is_worse


def test_without_the_runs_on_single_tasks_plain_scores_are_compared() -> None:
    study = make_study(ALL, single=None)
    assert study.scale is None
    assert study.compare(DPS, LORA).differences == pytest.approx([0.1] * 6)
    assert study.balances(DPS) == {}


def test_a_task_whose_skill_is_missing_does_not_count() -> None:
    def with_poor_chinese(task: str, seed: int) -> float:
        return 0.2 if task == "en2zh" else 0.6 + 0.01 * seed

    skills = {**dict.fromkeys(TASKS, 1.0), "en2zh": 1.9}
    study = make_study({**ALL, DPS: with_poor_chinese}, skills=skills)
    result = study.compare(DPS, LORA)
    assert "en2zh" not in result.tasks and len(result.tasks) == 11
    assert study.balances(DPS)[0].worst == pytest.approx(0.4 / 0.6)
    everything = make_study({**ALL, DPS: with_poor_chinese})
    assert everything.balances(DPS)[0].worst == 0
    assert everything.compare(DPS, LORA).won == [task for task in TASKS if task != "en2zh"]


def test_the_claim_holds_if_every_condition_is_met() -> None:
    study = make_study(ALL)
    assert verdict(rules.claim_holds, study) == "yes"
    assert verdict(rules.lora_is_beaten, study) == "yes"
    assert verdict(rules.selection_helps, study) == "yes"
    assert verdict(rules.soft_prompt_is_beaten, study) == "yes"
    assert verdict(rules.a_selector_can_win, study) == "yes"
    assert verdict(rules.prompts_can_win, study) == "no"  # 0.45 is below LoRA


@pytest.mark.parametrize(
    ("changed", "condition"),
    [
        # Seeds of both signs.
        ({DPS: lambda task, seed: 0.5 + 0.01 * seed + (0.1 if seed % 2 else -0.09)}, "better by both tests"),
        # Higher in the mean, by few tasks.
        ({DPS: lambda task, seed: 0.49 if task in TASKS[:5] else 0.75}, "LoRA on 7 of 12 tasks, 8 needed"),
        ({DPS: lambda task, seed: 0.3 if task == "sv" else 0.7}, "worst task"),
        ({RANDOM_ROUTING: 0.66}, "points over DPS, random routing"),
        ({EQUAL_SOFT_PROMPT: 0.66}, f"points over {EQUAL_SOFT_PROMPT}"),
    ],
)
def test_the_claim_does_not_hold_if_one_condition_is_not_met(changed: dict, condition: str) -> None:
    result = rules.claim_holds(make_study({**ALL, **changed}))
    assert result.outcome == "no"
    assert condition in result.reason.split("Not met: ")[1]


def test_three_seeds_decide_nothing() -> None:
    study = make_study(ALL, seeds=3)
    result = rules.claim_holds(study)
    assert result.outcome == "not decided" and "3 of 6 seeds are stored" in result.reason
    assert study.compare(DPS, LORA).p_value == pytest.approx(0.25)
    assert not study.compare(DPS, LORA).is_better
    for rule in (rules.lora_is_beaten, rules.soft_prompt_is_beaten, rules.balance_is_better):
        assert verdict(rule, study) == "not decided"


def test_missing_runs_are_named() -> None:
    empty = make_study({}, single=None)
    for one in verdicts(empty):
        assert one.outcome == "not decided" and one.reason.startswith("runs are missing: ")
    assert len(verdicts(empty)) == len(RULES) == 8
    result = rules.claim_holds(make_study(ALL, single=None))
    assert (
        result.reason == "runs are missing: LoRA on asr; LoRA on en2zh; LoRA on sqa; LoRA on first_word and 20 others."
    )
    without_control = {label: score for label, score in ALL.items() if label != RANDOM_ROUTING}
    result = rules.claim_holds(make_study(without_control))
    assert (result.outcome, result.reason) == ("not decided", "runs are missing: DPS, random routing.")


def test_lora_is_not_beaten_below_it_or_with_equal_compute() -> None:
    below = rules.lora_is_beaten(make_study({**ALL, DPS: 0.45}))
    assert below.outcome == "no" and below.reason.startswith("the interval lies below 0")
    compute = rules.lora_is_beaten(make_study({**ALL, LORA_EQUAL_COMPUTE: 0.65}))
    assert compute.outcome == "no" and compute.reason.startswith("LoRA at equal compute is at or above DPS")


@pytest.mark.parametrize(("points", "outcome"), [(0.9, "no"), (1.1, "yes")])
def test_a_control_within_one_point_falsifies_the_selection(points: float, outcome: str) -> None:
    study = make_study({**ALL, DPS: 0.6, RANDOM_ROUTING: 0.6 - points / 100})
    assert verdict(rules.selection_helps, study) == outcome


@pytest.mark.parametrize(
    ("worse_seeds", "outcome"), [(0, "yes"), (1, "yes"), (2, "not decided"), (4, "not decided"), (5, "no"), (6, "no")]
)
def test_balance_is_counted_seed_by_seed(worse_seeds: int, outcome: str) -> None:
    def uneven(task: str, seed: int) -> float:
        return 0.5 + (0.1 if task in TASKS[:6] else -0.1)

    def dps(task: str, seed: int) -> float:
        size = 0.2 if seed < worse_seeds else 0.05
        return 0.5 + (size if task in TASKS[:6] else -size)

    assert verdict(rules.balance_is_better, make_study({**ALL, LORA: uneven, DPS: dps})) == outcome


def test_no_selector_can_win_if_the_known_task_does_not() -> None:
    result = rules.a_selector_can_win(make_study({**ALL, TASK_KNOWN: 0.4}))
    assert result.outcome == "no" and "larger language model" in result.reason


def test_interference_is_measured_on_the_same_rows() -> None:
    # Alone 0.8 with a loss of 1.2; together 0.5 to 0.55 with a loss of 1.5 to 1.45.
    study = make_study(ALL)
    score, loss = interference(study)
    assert score == pytest.approx(100 * (0.525 - 0.8) / 0.8)
    assert loss == pytest.approx(-100 * (1.475 - 1.2) / 1.2)
    assert verdict(rules.there_is_interference, study) == "yes"
    result = rules.there_is_interference(make_study({**ALL, LORA: 0.79}))
    assert result.outcome == "no" and "cannot show an advantage" in result.reason
    assert study.single_task_scores("asr") == [0.8, 0.8]
    assert study.missing(single_task_label("asr", 4)) == []
