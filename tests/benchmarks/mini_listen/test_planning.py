import inspect
from dataclasses import fields, replace

import pytest

from benchmarks.mini_listen.experiments import (
    CANDIDATE,
    DPS,
    GROUPS,
    LORA,
    LORA_EQUAL_COMPUTE,
    PAPER_FORM,
    RATE_SEED,
    SEEDS,
    TASK_KNOWN,
    TUNED_RATES,
    Experiment,
)
from benchmarks.mini_listen.methods import METHODS, missing_options
from benchmarks.mini_listen.planning import plan_runs, select_experiments
from benchmarks.mini_listen.settings import FORMS, TASKS, RunSettings
from peft_listen import ListenConfig


BASES = [RunSettings.of_form(FORMS[name]) for name in ("small", "full")]
LATER_OPTIONS = {"value_layers", "query_layer", "query_text", "query_audio_weight"}


def experiments(base: RunSettings) -> list[Experiment]:
    return [experiment for group in GROUPS for experiment in GROUPS[group](base)]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.form)
def test_no_two_runs_share_a_name_or_a_file_and_no_label_has_two_meanings(base: RunSettings) -> None:
    names: dict[str, RunSettings] = {}
    labels: dict[str, RunSettings] = {}
    for experiment in experiments(base):
        assert labels.setdefault(experiment.label, experiment.settings) == experiment.settings
        for one in experiment.runs():
            assert names.setdefault(one.name, one) == one
    files = [planned.file_name for planned in plan_runs(list(GROUPS), base).values()]
    assert len(set(files)) == len(files) > 60


def test_the_forms_have_the_same_experiments() -> None:
    for group in ("methods", "learning_rates", "prompt_lengths", "held_out_tasks"):
        small, full = ([(one.label, one.seeds) for one in GROUPS[group](base)] for base in BASES)
        assert small == full
    assert all(
        len(list(GROUPS[group](BASES[0]))) == len(list(GROUPS[group](BASES[1]))) for group in ("stage0", "pool_sizes")
    )
    assert {one.settings.form for one in experiments(BASES[1])} == {"full"}
    assert {one.settings.precision for one in experiments(BASES[1])} == {"bf16"}
    settings = BASES[1]
    assert (settings.steps, settings.batch_size, settings.test_per_task) == (1500, 16, 300)


def test_options_are_those_of_this_version_or_named_as_missing() -> None:
    known = {field.name for field in fields(ListenConfig)}
    for one in experiments(BASES[0]):
        assert set(one.missing_options) <= LATER_OPTIONS - known
        parameters = set(inspect.signature(METHODS[one.settings.method]).parameters)
        assert set(one.settings.options) - set(one.missing_options) <= known | parameters
    assert missing_options("listen", {"pool_size": 3, "exploration": 0.1}) == ["exploration"]
    assert missing_options("lora", {"rank": 3, "pool_size": 2}) == ["pool_size"]
    assert missing_options("adapter", {}) == ["adapter"]


def test_runs_that_need_missing_options_are_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(BASES[0], method="listen", options={**CANDIDATE, "exploration": 0.1})
    one = Experiment("explored", settings)
    monkeypatch.setitem(GROUPS, "few", lambda base: iter([one, replace(one, label=DPS, settings=BASES[0])]))
    assert [planned.label for planned in plan_runs(["few"], BASES[0]).values()] == [DPS]


def test_learning_rates_come_first_then_one_seed_after_the_other() -> None:
    seeds = [one.settings.seed for one in plan_runs(list(GROUPS), BASES[0]).values()]
    assert seeds == [RATE_SEED] * seeds.count(RATE_SEED) + sorted(seed for seed in seeds if seed != RATE_SEED)
    assert RATE_SEED not in SEEDS


def test_rates_are_chosen_with_another_seed_among_rates_that_were_tried() -> None:
    for base in BASES:
        tried = [(one.settings.method, one.settings.learning_rate) for one in GROUPS["learning_rates"](base)]
        for method, rate in TUNED_RATES[base.form].items():
            rates = sorted(other for name, other in tried if name == method)
            assert len(rates) == 4 and rate in rates
    rates = list(GROUPS["learning_rates"](BASES[0]))
    assert all(one.seeds == (RATE_SEED,) and one.settings.test_per_task == 0 for one in rates)
    for one in experiments(BASES[0]):
        assert one.settings.value_learning_rate == pytest.approx(10 * one.settings.learning_rate)


def test_the_main_comparison_has_six_seeds_and_the_controls_are_of_the_same_form() -> None:
    by_label = {one.label: one for one in GROUPS["methods"](BASES[1])}
    assert by_label[DPS].seeds == by_label[LORA].seeds == (0, 1, 2, 3, 4, 5)
    assert by_label[LORA_EQUAL_COMPUTE].settings.steps == 2100
    assert by_label[LORA_EQUAL_COMPUTE].settings.options == by_label[LORA].settings.options
    oracle = by_label[TASK_KNOWN].settings.options
    assert oracle["prompts_per_position"] == len(TASKS)
    assert oracle["prompt_length"] == CANDIDATE["prompt_length"]
    assert oracle["value_rate"] == CANDIDATE["value_rate"]
    assert by_label[PAPER_FORM].settings.options["paper_form"]


def test_a_run_on_one_task_sees_the_rows_that_a_run_on_all_sees() -> None:
    for base in BASES:
        alone = list(GROUPS["single_tasks"](base))
        assert [one.settings.tasks for one in alone] == 2 * [(task,) for task in base.tasks]
        assert all(one.settings.evaluated_tasks == one.settings.tasks for one in alone)
        steps = [one.settings.steps for one in alone]
        share = base.steps / len(base.tasks)
        assert steps == [round(share)] * len(base.tasks) + [round(4 * share)] * len(base.tasks)


def test_stage_0_has_80_steps_of_8_in_every_form() -> None:
    for base in BASES:
        assert {(one.settings.steps, one.settings.batch_size) for one in GROUPS["stage0"](base)} == {(80, 8)}
        assert all(one.settings.test_per_task == 0 for one in GROUPS["stage0"](base))


def test_experiments_are_selected_by_label_and_seed() -> None:
    (found,) = select_experiments(["methods"], BASES[0], seeds=[1, 9], only=[LORA])
    assert found[0] == "methods" and found[1].label == LORA and found[1].seeds == (1,)
    (planned,) = plan_runs(list(GROUPS), BASES[0], [0], [LORA]).values()
    assert planned.file_name == "methods--lora-r-8--seed0.json"
    (changed,) = plan_runs(["methods"], replace(BASES[0], steps=10), [0], [LORA]).values()
    assert changed.file_name == f"methods--lora-r-8--seed0--{changed.settings.hash}.json"
    with pytest.raises(ValueError, match="No experiment of stage0 has the label 'LoRA, r = 8'"):
        plan_runs(["stage0"], BASES[0], only=[LORA])
