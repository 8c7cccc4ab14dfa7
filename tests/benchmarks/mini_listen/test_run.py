"""A tiny form of the benchmark: every method is trained, evaluated and stored once, and tables are made of the results."""

import inspect
import json
import statistics
import sys
from argparse import Namespace
from dataclasses import fields, replace

import pytest
import torch
from filelock import FileLock

from benchmarks.mini_listen import run as run_module
from benchmarks.mini_listen.evaluation import score
from benchmarks.mini_listen.experiments import GROUPS, IMPROVED, PAPER, Experiment
from benchmarks.mini_listen.instructions import INSTRUCTIONS, reworded
from benchmarks.mini_listen.methods import METHODS
from benchmarks.mini_listen.results import (
    group_table,
    load_runs,
    plot,
    reference_of,
    report,
    stored_test_sizes,
    sweep_table,
    wins,
    wordings_table,
)
from benchmarks.mini_listen.run import plan_runs, prepare, run, select_experiments
from benchmarks.mini_listen.settings import TASKS, RunSettings
from benchmarks.mini_listen.storage import (
    RESULTS,
    TEST_EXAMPLES,
    read_results,
    selections_path,
    to_json,
    write_result,
)
from benchmarks.mini_listen.training import mixture
from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.analysis import SelectionRecords, summarize


ANSWERS = {
    "asr": ["the quick brown fox", "a lazy dog"],
    "en2zh": ["敏捷的狐狸", "懒狗"],
    "er": ["happy", "sad"],
    "sv": ["Yes", "No"],
    "sqa": ["fox", "dog"],
    "acap": ["a loud bell", "a soft bell, then rain"],
}
SMALL_POOL = {"pool_size": 20, "prompt_length": 5, "num_shared_prompts": 5, "selector_kwargs": {"num_groups": 5}}
OPTIONS = {
    "projector": {},
    "lora": {"rank": 2},
    "soft_prompt": {"prompt_length": 4},
    "listen": {**IMPROVED, **SMALL_POOL, "init_keys_at_steps": [2]},
}


@pytest.fixture(scope="module")
def material(tmp_path_factory, parts, clips):
    folder = tmp_path_factory.mktemp("mini_listen")
    rows = [
        {"audio": clips[index % len(clips)], "instruction": f"What is it? {task}", "answer": answer, "task": task}
        for task, answers in ANSWERS.items()
        for index, answer in enumerate(answers)
    ]
    for split in ("train", "validation", "test"):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
    qformer = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    base = AudioListenForCausalLM.from_sub_models_pretrained(
        **parts, tokenizer=processor.tokenizer, qformer_config=qformer
    )
    base.save_pretrained(folder / "base", save_frozen=False)
    processor.save_pretrained(folder / "base")
    return prepare(folder, folder / "base", folder, {"train": 2, "validation": 1, "test": 2})


@pytest.fixture(scope="module")
def settings():
    return RunSettings(method="projector", steps=3, batch_size=6, train_per_task=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory, material, settings):
    folder = tmp_path_factory.mktemp("results")
    for method, options in OPTIONS.items():
        lengths = (1, 4) if method == "listen" else ()
        perform(replace(settings, method=method, options=options, prompt_lengths=lengths), material, folder)
    both = {**OPTIONS["listen"], "lora_rank": 2}
    perform(replace(settings, method="listen", options=both), material, folder)
    return folder


def perform(settings, material, folder):
    return run(settings, material, folder / "work", folder, f"{settings.name}.json")


def read(folder, settings):
    return json.loads((folder / f"{settings.name}.json").read_text())


def test_every_method_stores_a_result(results, settings):
    assert set(OPTIONS) == set(METHODS)
    for method, options in OPTIONS.items():
        lengths = (1, 4) if method == "listen" else ()
        settings_of_method = replace(settings, method=method, options=options, prompt_lengths=lengths)
        result = read(results, settings_of_method)
        assert result["settings"]["method"] == method
        assert set(result["test"]) == set(result["train_loss"]) == set(result["validation_loss"]) == set(TASKS)
        assert all(0 <= values["score"] <= 1 for values in result["test"].values())
        assert 0 <= result["test"]["sv"]["eer"] <= 1
        assert result["settings_hash"] == settings_of_method.hash
        assert {task: len(answers) for task, answers in result["answers"].items()} == dict.fromkeys(TASKS, 2)
        assert ("selections" in result) == (method == "listen")
        assert any("train_loss" in row for row in result["log"])
        assert not (results / "work" / settings_of_method.name).exists()


def test_selections_and_the_sweep_of_prompt_lengths_are_kept(results, settings):
    listen = replace(settings, method="listen", options=OPTIONS["listen"], prompt_lengths=(1, 4))
    result = read(results, listen)
    assert 3 <= result["selections"]["live_prompts"] <= 20
    assert len(result["selections"]["overlap"]) == 15
    assert set(result["losses_by_prompt_length"]) == {"1", "4"}
    records = SelectionRecords.load(selections_path(results / f"{listen.name}.json"))
    assert records.tasks == [task for task in TASKS for _ in result["answers"][task]]
    assert records.config["base_model_name_or_path"].startswith("SmolLM2")
    assert summarize(records).mean_overlap == pytest.approx(result["selections"]["mean_overlap"])
    assert result["adapter_parameters"] == (2 * 20 + 5) * 32


def test_losses_at_several_prompt_lengths_are_a_separate_table(results, settings):
    listen = replace(settings, method="listen", options=OPTIONS["listen"], prompt_lengths=(1, 4))
    losses = read(results, listen)["losses_by_prompt_length"]
    header, _, line = sweep_table([Experiment("k = 4 in training", listen, (0,))], read_results(results)).splitlines()
    assert header == "| validation loss at k = | 1 | 4 |"
    means = [f"{statistics.fmean(by_task.values()):.3f}" for by_task in losses.values()]
    assert line == f"| k = 4 in training | {means[0]} | {means[1]} |"
    lora = replace(settings, method="lora", options={"rank": 2})
    assert sweep_table([Experiment("LoRA", lora, (0,))], read_results(results)) == ""


def test_tuned_methods_have_rates_that_were_tried():
    base = RunSettings(method="projector")
    tried = [experiment.settings for experiment in GROUPS["learning_rates"](base)]
    tuned = [experiment.settings for experiment in GROUPS["tuned_methods"](base)]
    assert [settings.method for settings in tuned] == ["lora", "listen", "soft_prompt", "listen"]
    assert all(settings in tried for settings in tuned[:3])
    assert all(settings.value_learning_rate == 10 * settings.learning_rate for settings in tuned + tried)


def test_examples_get_the_wordings_of_another_split_in_turn():
    examples = [{"task": task, "instruction": "old"} for task in ("asr", "sqa", "er", "asr", "asr")]
    rows = reworded(examples, "validation")
    assert [row["task"] for row in rows] == ["asr", "er", "asr", "asr"]
    first, second = INSTRUCTIONS["asr"]["validation"]
    assert [row["instruction"] for row in rows if row["task"] == "asr"] == [first, second, first]
    assert examples[0]["instruction"] == "old"


def test_the_loss_with_unseen_wordings_is_a_table_of_the_runs_that_have_it(results, settings, tmp_path):
    lora = Experiment("LoRA", replace(settings, method="lora", options={"rank": 2}), (0,))
    (line,) = wordings_table([lora, replace(lora, label="the same again")], read_results(results)).splitlines()[2:]
    result = read(results, lora.settings)
    known = result["validation_loss_training_wordings"]
    assert set(known) == set(TASKS) - {"sqa"}
    expected = [statistics.fmean(losses[task] for task in known) for losses in (result["validation_loss"], known)]
    assert line == f"| LoRA | {settings.learning_rate:g} | 0 | {expected[0]:.3f} | {expected[1]:.3f} |"
    assert wordings_table([lora], {}) == ""


def test_lora_beside_the_pool_is_trained(results, settings):
    both = replace(settings, method="listen", options={**OPTIONS["listen"], "lora_rank": 2})
    lora = replace(settings, method="lora", options={"rank": 2})
    expected = (2 * 20 + 5) * 32 + read(results, lora)["adapter_parameters"]
    assert read(results, both)["adapter_parameters"] == expected


def test_a_run_that_has_a_result_is_not_run_again(results, settings, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *args: pytest.fail("the run was repeated"))
    lora = replace(settings, method="lora", options={"rank": 2})
    assert run(lora, None, results / "work", results, "unused.json") == read(results, lora)


def test_a_run_that_another_process_performs_is_skipped(results, material, settings, tmp_path, monkeypatch, capsys):
    lora, projector = (replace(settings, method=name, options=OPTIONS[name]) for name in ("lora", "projector"))
    monkeypatch.setitem(GROUPS, "few", lambda base: [Experiment(one.method, one, (0,)) for one in (lora, projector)])
    monkeypatch.setattr("benchmarks.mini_listen.base.make_base", lambda folder: (material.base_dir, material.data_dir))
    command = f"run --groups few --folder {tmp_path} --results {tmp_path / 'results'}".split()
    monkeypatch.setattr(sys, "argv", [*command, *"--test-per-task 1 --validation-per-task 1".split()])
    (tmp_path / "checkpoints").mkdir()
    with FileLock(tmp_path / "checkpoints" / f"{lora.name}.lock"):
        run_module.main()
    assert "running in another process" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["few--projector--seed0.json"]
    run_module.main()
    assert len(list((tmp_path / "results").iterdir())) == 2

    monkeypatch.setattr("benchmarks.mini_listen.base.make_base", lambda folder: pytest.fail("nothing was left to run"))
    capsys.readouterr()
    run_module.main()
    assert capsys.readouterr().out.startswith("2 runs, 2 of them stored in ")


def test_wins_are_counted_over_common_seeds():
    experiments = list(GROUPS["methods"](RunSettings(method="projector")))
    reference = reference_of(experiments)
    assert reference is experiments[0]
    assert wins(experiments, reference, {}) == []
    stored = {}
    for number, mean in enumerate((0.5, 0.6, 0.4)):  # LoRA, the pool, the soft prompt
        for one in experiments[number].runs():
            scores = {task: {"score": mean + one.seed / 100} for task in TASKS}
            stored[one.name] = {"settings": one.as_json(), "test": scores, "test_size": 12}
    assert stored_test_sizes(stored) == "12"

    # A seed that only LoRA has does not count against the others.
    for number in (1, 2):
        del stored[experiments[number].runs()[0].name]
    lora = experiments[0].runs()[0].name
    stored[lora] = {**stored[lora], "test": {task: {"score": 1.0} for task in TASKS}}
    pool, soft_prompt = wins(experiments, reference, stored)
    assert pool.endswith("6 of 6 tasks (asr, en2zh, er, sv, sqa, acap), over 2 common seeds.")
    assert soft_prompt.endswith("0 of 6 tasks, over 2 common seeds.")


def test_an_interrupted_run_gives_the_result_of_an_uninterrupted_one(
    results, material, settings, tmp_path, monkeypatch
):
    listen = replace(settings, method="listen", options=OPTIONS["listen"], prompt_lengths=(1, 4))
    monkeypatch.setattr(run_module.Evaluator, "answers", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(listen, material, tmp_path / "work", tmp_path / "results", "run.json")
    assert not list(tmp_path.glob("results/*"))
    monkeypatch.undo()
    (checkpoint,) = (tmp_path / "work" / listen.name).glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3"
    resumed = run(listen, material, tmp_path / "work", tmp_path / "results", "run.json")
    assert resumed["validation_loss"] == pytest.approx(read(results, listen)["validation_loss"], rel=1e-4)


def _interrupt(*args):
    raise KeyboardInterrupt


def test_all_methods_see_the_same_balanced_batches():
    examples = [{"task": task, "id": f"{task}{index}"} for task in "ab" for index in range(5)]
    stream = mixture(examples, batch_size=4, steps=5, seed=1)
    assert stream == mixture(examples, batch_size=4, steps=5, seed=1)
    assert stream != mixture(examples, batch_size=4, steps=5, seed=2)
    for start in range(0, 20, 4):
        assert sorted(example["task"] for example in stream[start : start + 4]) == ["a", "a", "b", "b"]
    assert len({example["id"] for example in stream[:10]}) == 10


def test_no_two_runs_share_a_name_or_a_file(settings):
    base = replace(settings, steps=600)
    experiments = [experiment for group in GROUPS for experiment in select_experiments(group, base)]
    names: dict[str, RunSettings] = {}
    for experiment in experiments:
        for one in experiment.runs():
            assert names.setdefault(one.name, one) == one
    assert len(names) > 40
    for common in (base, RunSettings(method="projector")):
        files = [planned.file_name for planned in plan_runs(list(GROUPS), common).values()]
        assert len(set(files)) == len(files) > 40
    assert [e.seeds for e in select_experiments("methods", settings, [1])] == [(1,)] * 3 + [()] * 3
    assert PAPER["paper_form"]


def test_runs_whose_options_were_removed_are_shown_and_not_planned():
    base = RunSettings(method="projector")
    experiments = [experiment for group in GROUPS for experiment in GROUPS[group](base)]
    removed = [one for one in experiments if not one.is_runnable]
    assert {one.label for one in removed} == {
        *("balanced usage", "reseeding", "exploration", "DPS, P = 380, half left out")
    }
    stored, planned = read_results(RESULTS), plan_runs(list(GROUPS), base)
    assert all(load_runs(one, stored) and one.runs()[0].name not in planned for one in removed)
    known = {field.name for field in fields(ListenConfig)} | set(inspect.signature(METHODS["listen"]).parameters)
    for one in planned.values():
        assert one.settings.method != "listen" or set(one.settings.options) <= known


def test_every_published_run_is_stored_under_the_name_that_is_planned_for_it():
    planned, stored = plan_runs(list(GROUPS), RunSettings(method="projector")), read_results(RESULTS)
    assert set(planned) <= set(stored)
    for name, one in planned.items():
        run = json.loads((RESULTS / one.file_name).read_text())
        assert run == stored[name]
        assert run["settings_hash"] == one.settings.hash


def test_stored_answers_have_the_stored_scores():
    examples = [json.loads(line) for line in TEST_EXAMPLES.read_text().splitlines()]
    for stored in read_results(RESULTS).values():
        assert stored["test_size"] == len(examples)
        by_task = {task: iter(answers) for task, answers in stored["answers"].items()}
        pairs = [(one, next(by_task[one["task"]])) for one in examples]
        for task in ("er", "sv", "sqa"):
            rows = [(one, answer) for one, answer in pairs if one["task"] == task]
            scores = score([one for one, _ in rows], [answer for _, answer in rows])
            assert scores[task]["score"] == pytest.approx(stored["test"][task]["score"])


def test_results_are_written_as_json_with_a_line_for_each_short_list(tmp_path):
    content = {
        "settings": {"tasks": ["asr", "er"]},
        "log": [{"step": 1}, {"step": 2}],
        "answers": ["中" * 400],
        "x": [],
    }
    text = to_json(content)
    assert json.loads(text) == content
    assert text.splitlines()[1:5] == [' "settings": {', '  "tasks": ["asr", "er"]', " },", ' "log": [']
    write_result(tmp_path / "results", "run.json", content)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["run.json"]


def test_studies_take_a_third_of_the_steps_and_share_one_run():
    base = RunSettings(method="projector", steps=600)
    studies = {
        name: list(GROUPS[name](base)) for name in ("selectors", "remedies", "prompt_lengths", "key_loss", "tasks")
    }
    assert {experiment.settings.steps for experiments in studies.values() for experiment in experiments} == {200}
    del studies["selectors"]  # of a larger pool
    names = [{run.name for experiment in experiments for run in experiment.runs()} for experiments in studies.values()]
    (shared,) = set.intersection(*names)
    assert shared.startswith("listen-seed0-")


def test_tables_name_what_was_run_and_what_was_not(results, settings, tmp_path):
    lora = Experiment("LoRA", replace(settings, method="lora", options={"rank": 2}), seeds=(0, 1))
    missing = Experiment("missing", replace(settings, method="lora", options={"rank": 3}))
    assert len(load_runs(lora, read_results(results))) == 1
    table = group_table("methods", [lora, missing], read_results(results))
    assert "| LoRA | 1 of 2 |" in table
    assert "| missing | not run |" in table
    assert group_table("selectors", [missing, missing], read_results(results)).endswith(
        "*Not run yet: missing; missing.*"
    )

    listen = replace(settings, method="listen", options=OPTIONS["listen"], prompt_lengths=(1, 4))
    selections = read(results, listen)["selections"]
    for experiment in GROUPS["methods"](settings):
        # The same measurements for each experiment of the group.
        for one in experiment.runs()[:2]:
            run = {**read(results, lora.runs()[0]), "settings": one.as_json()}
            if one.method == "listen":
                run["selections"] = selections
            write_result(tmp_path / "results", f"{one.name}.json", run)
    arguments = Namespace(groups=["methods"], steps=3, batch_size=6, train_per_task=2, results=tmp_path / "results")
    text = report(arguments)
    assert "at or above LoRA, r = 8 on q, v on 6 of 6 tasks" in text
    paths = plot(arguments, tmp_path / "plots")
    drawn = [path.read_text() for path in paths]
    assert all(content.rstrip().endswith("</svg>") for content in drawn)
    assert [path.read_text() for path in plot(arguments, tmp_path / "plots")] == drawn
