import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.markdown import markers
from benchmarks.mini_listen import results, tables
from benchmarks.mini_listen.comparison import Study
from benchmarks.mini_listen.experiments import (
    CONNECTOR,
    DPS,
    EQUAL_SOFT_PROMPT,
    GROUPS,
    LORA,
    SOFT_PROMPT,
    TUNED_RATES,
)
from benchmarks.mini_listen.plots import plot
from benchmarks.mini_listen.results import page
from benchmarks.mini_listen.settings import FORMS, TASKS
from benchmarks.mini_listen.storage import RESULTS, TEST_EXAMPLES, read_results, result_file_name, write_result
from tests.benchmarks.mini_listen.stored_runs import BASE, make_run, make_study


METHODS = {CONNECTOR: 0.2, LORA: lambda task, seed: 0.5 + 0.01 * seed, DPS: 0.6}


def test_a_page_says_what_is_missing() -> None:
    text = page(make_study({LORA: 0.5}, seeds=2, single=None))
    assert "2 stored runs" in text
    assert "| methods | seeds 2, 3, 4, 5 | LoRA, r = 8 |" in text
    assert "| single_tasks | seeds 0 | LoRA on asr; LoRA on en2zh; " in text
    assert "skills of the frozen language model were not measured" in text
    assert "**Not decided.** Runs are missing: DPS" in text
    empty = page(make_study({}, single=None))
    assert empty.startswith("No run of this form is stored yet.") and "--form full` lists its runs." in empty


def test_the_table_of_methods_by_hand() -> None:
    lines = tables.methods_table(make_study(METHODS)).splitlines()
    (lora,) = (line for line in lines if line.startswith(f"| {LORA} |"))
    cells = [cell.strip() for cell in lora.split("|")[1:-1]]
    # z of 0.50 to 0.55 is 0.5 to 0.583; the loss is 2 minus the score.
    assert cells[:6] == [LORA, "1 234", "0.001", "1500", "6 of 6", "0.54 ± 0.03"]
    assert cells[6:10] == ["0.54 ± 0.03", "0.00 ± 0.00", "52.5 ± 1.9", "1.47 ± 0.02"]
    (soft,) = (line for line in lines if line.startswith(f"| {SOFT_PROMPT} |"))
    assert "| not run |" in soft


def test_tasks_whose_skill_is_missing_are_reported_apart() -> None:
    skills = {**dict.fromkeys(TASKS, 0.5), "asr": 2.0}
    study = make_study(METHODS, skills=skills)
    header = tables.scores_table(study).splitlines()[0]
    assert header.endswith("| acap | asr \\* |")
    assert "| **no** |" in tables.skills_table(study)
    assert "300 test clips for each of 11 tasks;" in page(study)
    assert study.mean_loss({**dict.fromkeys(TASKS, 1.0), "asr": 100.0}) == 1.0


def test_runs_from_different_projectors_are_named() -> None:
    study = make_study(METHODS)
    assert "different projectors" not in page(study)
    next(iter(study.runs(LORA).values()))["start"] = "0123abcd"
    assert "The runs of the methods started from 2 different projectors." in page(study)


def test_what_was_not_won_is_listed() -> None:
    study = make_study({**METHODS, DPS: lambda task, seed: 0.4 if task in ("er", "sv") else 0.45})
    text = results.not_won(study)
    assert f"- DPS is below LoRA on {', '.join(TASKS)}." in text
    assert "- LoRA's validation loss is lower by 0.083." in text


def test_a_rate_that_is_not_the_best_is_named() -> None:
    stored = {}
    for one in GROUPS["learning_rates"](BASE):
        (settings,) = one.runs()
        losses = {1e-4: 1.4, 2e-4: 1.0 if settings.method == "lora" else 1.3, 5e-4: 1.05, 1e-3: 1.2}
        if settings.learning_rate in losses:
            stored[settings.name] = make_run(settings, dict.fromkeys(TASKS, 0.5), losses[settings.learning_rate])
    used = TUNED_RATES[BASE.form]["lora"]
    text = tables.learning_rates_table(Study(BASE, stored))
    assert text.startswith("| validation loss | 0.0001 | 0.0002 | 0.0005 | 0.001 | 0.002 | used |")
    assert f"| {LORA} |  | 1.000 | 1.050 | 1.200 | not run | {used:g} |" in text
    assert f"{LORA}: 0.0002 has the lowest stored loss, and {used:g} was used." in text
    assert f"| {EQUAL_SOFT_PROMPT} | 1.400 | 1.300 | 1.050 | 1.200 |  |" in text


def test_the_forms_of_stage_0_are_sorted_by_loss() -> None:
    stored = {}
    losses = {LORA: 1.8, SOFT_PROMPT: 1.9, "DPS, P = 40": 1.7}
    for one in GROUPS["stage0"](BASE):
        if (label := one.label.removeprefix("short: ")) in losses:
            (settings,) = one.runs()
            stored[settings.name] = make_run(settings, dict.fromkeys(TASKS, 0.5), loss=losses[label])
    lines = tables.stage0_table(Study(BASE, stored)).splitlines()[2:]
    assert lines[0].startswith("| DPS, P = 40 | 1 234 | 1.700 | -0.200 | -0.100 |")
    assert lines[1].startswith("| LoRA, r = 8 | 1 234 | 1.800 | -0.100 | +0.000 |")
    assert lines[2].startswith("| soft prompt | 1 234 | 1.900 | +0.000 | +0.100 |")
    assert len(lines) == len(list(GROUPS["stage0"](BASE)))
    assert "not run" in lines[3]


def test_runs_on_some_of_the_tasks_are_described_by_both_kinds() -> None:
    stored = {}
    for one in GROUPS["held_out_tasks"](BASE):
        (settings,) = one.runs()
        scores = {task: 0.5 if task in settings.tasks else 0.1 for task in TASKS}
        stored[settings.name] = make_run(settings, scores)
    text = tables.trained_tasks_table(Study(BASE, stored), "held_out_tasks")
    assert "| LoRA without er | 11 | 1.000 | 50.0 | 1.000 | 10.0 |" in text


def test_plots_are_reproducible(tmp_path: Path) -> None:
    study = make_study(METHODS)
    paths = plot(study, tmp_path / "plots")
    assert [path.name for path in paths] == ["full_training_loss.svg", "full_scores.svg", "full_balance.svg"]
    drawn = [path.read_text() for path in paths]
    assert all(content.rstrip().endswith("</svg>") for content in drawn)
    assert [path.read_text() for path in plot(study, tmp_path / "plots")] == drawn
    assert plot(make_study({}, single=None), tmp_path / "none") == []


def test_the_command_writes_the_page_of_a_form_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(METHODS)
    for run in study.stored.values():
        write_result(tmp_path / "results" / "full", f"{run['settings_hash']}.json", run)
    file = tmp_path / "RESULTS.md"
    begin, end = markers("full")
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    arguments = [
        "--form",
        "full",
        "--results",
        str(tmp_path / "results"),
        "--write",
        str(file),
        "--plots",
        str(tmp_path / "plots"),
    ]
    monkeypatch.setattr(sys, "argv", ["results", *arguments])
    results.main()
    text = file.read_text()
    assert text.startswith(f"before\n{begin}\n\n1500 steps of 16 clips in bf16") and text.endswith(f"{end}\nafter\n")
    assert "![full balance](plots/full_balance.svg)" in text
    assert f"{len(study.stored)} stored runs, on cpu." in text
    assert "A step of DPS took 1.25 times as long as one of LoRA; *LoRA, r = 8, equal compute* has 1.40 times" in text
    assert capsys.readouterr().out.strip() in text


@pytest.mark.parametrize("form", FORMS)
def test_every_stored_run_is_planned_under_its_name_and_evaluated_on_the_stored_examples(form: str) -> None:
    folder = RESULTS / form
    stored = read_results(folder)
    if not stored:
        pytest.skip("no stored runs")
    sizes = FORMS[form].sizes
    examples = [json.loads(line) for line in (folder / TEST_EXAMPLES).read_text(encoding="utf-8").splitlines()]
    assert [row["task"] for row in examples] == [task for task in FORMS[form].tasks for _ in range(sizes["test"])]
    for run in stored.values():
        # The runs that choose a rate have no test examples.
        evaluated = set(run["settings"]["evaluated_tasks"]) if run["settings"]["test_per_task"] else set()
        assert set(run["test"]) == set(run["clip_scores"]) == set(run["answers"]) == evaluated
        for task, scores in run["clip_scores"].items():
            assert len(scores) == len(run["answers"][task]) == sizes["test"]
            assert run["test"][task]["score"] == pytest.approx(sum(scores) / len(scores))


def test_a_file_is_named_after_group_label_and_seed() -> None:
    settings = replace(BASE, seed=2)
    assert result_file_name("methods", "DPS, paper's form", settings) == "methods--dps-papers-form--seed2.json"
    assert settings.hash in result_file_name("methods", "DPS", settings, with_hash=True)
