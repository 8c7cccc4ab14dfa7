"""A tiny form of the benchmark: every method is trained, evaluated and stored once."""

import json
import os
import statistics
import sys
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from benchmarks.mini_listen import run as run_module
from benchmarks.mini_listen import settings as settings_module
from benchmarks.mini_listen.estimate import estimate
from benchmarks.mini_listen.evaluation import clip_scores, further_metrics
from benchmarks.mini_listen.experiments import GROUPED, GROUPS, Experiment
from benchmarks.mini_listen.instructions import INSTRUCTIONS, reworded, wordings_of
from benchmarks.mini_listen.material import adapt, prepare, projector_hash, projector_path
from benchmarks.mini_listen.methods import METHODS
from benchmarks.mini_listen.planning import PlannedRun
from benchmarks.mini_listen.questions import FRAMES
from benchmarks.mini_listen.run import in_processes, run
from benchmarks.mini_listen.settings import TASKS, Form, RunSettings
from benchmarks.mini_listen.start import train_projector
from benchmarks.mini_listen.storage import read_results, selections_path, to_json, write_result, write_test_examples
from benchmarks.mini_listen.training import mixture, read_split
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.analysis import SelectionRecords, summarize


ANSWERS = {
    **{task: ["fox", "dog"] for task in TASKS},
    "asr": ["the quick brown fox", "a lazy dog"],
    "en2zh": ["敏捷的狐狸", "懒狗"],
    "sv": ["Yes", "No"],
    "acap": ["a loud bell", "a soft bell, then rain"],
}
SMALL_POOL = {"pool_size": 20, "prompt_length": 5, "num_shared_prompts": 5, "selector_kwargs": {"num_groups": 5}}
OPTIONS = {
    "projector": {},
    "lora": {"rank": 2},
    "soft_prompt": {"prompt_length": 4},
    "routed": {"rule": "task", "prompt_length": 4, "prompts_per_position": 12, "value_rate": 0.2},
    "listen": {**GROUPED, **SMALL_POOL, "init_keys_at_steps": [2]},
}
FORM = Form(
    "tiny", steps=3, batch_size=12, train_per_task=2, validation_per_task=1, test_per_task=2, precision="float32"
)


@pytest.fixture(scope="module")
def material(tmp_path_factory, parts, clips):
    folder = tmp_path_factory.mktemp("mini_listen")
    question = {"direct": "What is it", "indirect": "what it is"}
    rows = [
        {
            **{
                "audio": clips[index % len(clips)],
                "instruction": f"What is it? {task}",
                "answer": answer,
                "task": task,
            },
            **(question if task == "sqa" else {}),
        }
        for task, answers in ANSWERS.items()
        for index, answer in enumerate(answers)
    ]
    for split in ("train", "validation", "test"):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)), encoding="utf-8")
    processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
    qformer = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    base = AudioListenForCausalLM.from_sub_models_pretrained(
        **parts, tokenizer=processor.tokenizer, qformer_config=qformer
    )
    base.save_pretrained(folder / "base", save_frozen=False)
    processor.save_pretrained(folder / "base")
    return prepare(folder, folder / "base", folder, FORM)


@pytest.fixture(scope="module")
def settings():
    return RunSettings.of_form(FORM)


def settings_with(settings, method, **others):
    lengths = (1, 4) if method == "listen" else ()
    return replace(settings, method=method, options=OPTIONS[method], prompt_lengths=lengths, **others)


@pytest.fixture(scope="module")
def results(tmp_path_factory, material, settings):
    folder = tmp_path_factory.mktemp("results")
    for method in OPTIONS:
        perform(settings_with(settings, method), material, folder)
    return folder


def perform(settings, material, folder):
    return run(settings, material, folder / "work", folder, f"{settings.name}.json")


def read(folder, settings):
    return json.loads((folder / f"{settings.name}.json").read_text())


def test_every_method_stores_a_result(results, settings):
    assert set(OPTIONS) == set(METHODS) - {"random_prompts"}  # of the stage before the runs
    for method in OPTIONS:
        settings_of_method = settings_with(settings, method)
        result = read(results, settings_of_method)
        assert result["settings"]["method"] == method
        assert result["settings"]["form"] == "tiny"
        assert set(result["test"]) == set(result["train_loss"]) == set(result["validation_loss"]) == set(TASKS)
        assert set(result["validation_loss_training_wordings"]) == set(TASKS)
        for task, scores in result["clip_scores"].items():
            assert len(scores) == len(result["answers"][task]) == 2
            assert result["test"][task]["score"] == pytest.approx(statistics.fmean(scores))
            assert all(0 <= score <= 1 for score in scores)
        assert {"wer", "cer"} <= set(result["test"]["asr"]) and {"chrf", "bleu"} <= set(result["test"]["en2zh"])
        assert 0 <= result["test"]["sv"]["eer"] <= 1
        assert result["settings_hash"] == settings_of_method.hash and result["start"] is None
        assert ("selections" in result) == (method == "listen")
        assert result["device"] == "cpu" and result["seconds_per_step"] > 0
        assert any("train_loss" in row for row in result["log"])
        assert not (results / "work" / settings_of_method.name).exists()


def test_parameters_are_those_that_decide_something(results, settings):
    counts = {method: read(results, settings_with(settings, method))["adapter_parameters"] for method in OPTIONS}
    size = 32
    assert counts["projector"] == 0
    assert counts["soft_prompt"] == 4 * size
    assert counts["routed"] == (4 * 12 + 4) * size  # without keys
    assert counts["listen"] == (2 * 20 + 5) * size


def test_selections_and_the_sweep_of_prompt_lengths_are_kept(results, settings):
    listen = settings_with(settings, "listen")
    result = read(results, listen)
    assert 3 <= result["selections"]["live_prompts"] <= 20
    assert set(result["losses_by_prompt_length"]) == {"1", "4"}
    records = SelectionRecords.load(selections_path(results / f"{listen.name}.json"))
    assert records.tasks == [task for task in TASKS for _ in result["answers"][task]]
    assert records.config["base_model_name_or_path"].startswith("SmolLM2")
    assert summarize(records).mean_overlap == pytest.approx(result["selections"]["mean_overlap"])


def test_bfloat16_autocast_gives_nearly_the_same_losses_on_the_evaluated_tasks(results, material, settings, tmp_path):
    lora = settings_with(settings, "lora")
    half = perform(replace(lora, precision="bf16", evaluated_tasks=("asr", "er")), material, tmp_path)
    assert half["settings"]["precision"] == "bf16"
    expected = {task: read(results, lora)["validation_loss"][task] for task in ("asr", "er")}
    assert half["validation_loss"] == pytest.approx(expected, rel=0.05)
    assert half["validation_loss"] != expected
    assert set(half["test"]) == {"asr", "er"} and half["test_size"] == 4


def test_a_run_without_test_examples_has_losses_alone(material, settings, tmp_path):
    result = perform(settings_with(settings, "listen", test_per_task=0), material, tmp_path)
    assert set(result["validation_loss"]) == set(result["train_loss"]) == set(TASKS)
    assert result["test"] == result["answers"] == result["clip_scores"] == {}
    assert result["test_size"] == 0 and "selections" not in result
    assert set(result["losses_by_prompt_length"]) == {"1", "4"}


def test_the_score_of_a_clip_is_from_0_to_1():
    examples = [{"task": task, "answer": answer} for task, answers in ANSWERS.items() for answer in answers[:1]]
    right = clip_scores(examples, [example["answer"] for example in examples])
    assert right == {task: [1.0] for task in TASKS}
    assert clip_scores(examples, ["bird"] * len(examples)) == {task: [0.0] for task in TASKS}
    half = clip_scores([{"task": "asr", "answer": "a b c d"}], ["a b"])
    assert half == {"asr": [0.5]}
    # More wrong words than there are right ones do not count below 0.
    assert clip_scores([{"task": "asr", "answer": "a"}], ["b c d"]) == {"asr": [0.0]}
    assert further_metrics(examples, ["bird"] * len(examples))["asr"]["wer"] == 1.0


def test_a_training_stream_draws_a_wording_for_every_row():
    question = {"direct": "What is it", "indirect": "what it is"}
    examples = [
        {"task": task, "instruction": "old", "id": index, **(question if task == "sqa" else {})}
        for task in ("asr", "sqa")
        for index in range(3)
    ]
    stream = mixture(examples, batch_size=4, steps=30, seed=1)
    by_task = {task: [row["instruction"] for row in stream if row["task"] == task] for task in ("asr", "sqa")}
    assert set(by_task["asr"]) == set(INSTRUCTIONS["asr"]["train"])
    assert len(set(by_task["sqa"])) == len(FRAMES["train"])
    # The same clip comes with different wordings.
    assert len({row["instruction"] for row in stream if row["task"] == "asr" and row["id"] == 0}) > 5
    assert stream == mixture(examples, batch_size=4, steps=30, seed=1)
    other = mixture(examples, batch_size=4, steps=30, seed=2)
    assert [row["instruction"] for row in other] != [row["instruction"] for row in stream]
    assert examples[0]["instruction"] == "old"


def test_a_longer_run_begins_with_the_same_rows():
    examples = [{"task": "er", "id": index} for index in range(5)]
    assert mixture(examples, 4, 10, seed=0)[:20] == mixture(examples, 4, 5, seed=0)


def test_all_methods_see_the_same_balanced_batches():
    examples = [{"task": task, "id": f"{task}{index}"} for task in ("er", "sv") for index in range(5)]
    stream = mixture(examples, batch_size=4, steps=5, seed=1)
    for start in range(0, 20, 4):
        assert sorted(example["task"] for example in stream[start : start + 4]) == ["er", "er", "sv", "sv"]
    assert len({example["id"] for example in stream[:10]}) == 10


def test_examples_get_the_wordings_of_another_split_in_turn():
    question = {"direct": "Who sings", "indirect": "who sings"}
    examples = [{"task": task, "instruction": "old", **question} for task in ("asr", "sqa", "er", "asr", "asr", "asr")]
    rows = reworded(examples, "validation")
    wordings = INSTRUCTIONS["asr"]["validation"]
    assert [row["instruction"] for row in rows if row["task"] == "asr"] == [*wordings, wordings[0]]
    assert rows[1]["instruction"] == "According to the clip, who sings?"
    assert wordings_of(examples[1], "test")[0] == "Say who sings."


def test_a_run_that_has_a_result_is_not_run_again(results, settings, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *args: pytest.fail("the run was repeated"))
    lora = settings_with(settings, "lora")
    assert run(lora, None, results / "work", results, "unused.json") == read(results, lora)


@pytest.fixture
def command(material, settings, tmp_path, monkeypatch):
    """Runs the command on the tiny form with two experiments, and returns its exit status."""
    few = [Experiment(name, settings_with(settings, name)) for name in ("lora", "projector")]
    monkeypatch.setitem(GROUPS, "few", lambda base: iter(few))
    monkeypatch.setitem(settings_module.FORMS, "tiny", FORM)
    monkeypatch.setattr(
        "benchmarks.mini_listen.base.make_base", lambda *args, **kwargs: (material.base_dir, material.data_dir)
    )

    def main(*arguments):
        options = ["--form", "tiny", "--groups", "few", "--threads", "1"]
        options += ["--folder", str(tmp_path), "--results", str(tmp_path / "results")]
        monkeypatch.setattr(sys, "argv", ["run", *options, *arguments])
        try:
            run_module.main()
        except SystemExit as end:
            return end.code
        return 0

    return main


def test_a_run_that_another_process_performs_is_skipped(command, settings, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny" / "checkpoints").mkdir(parents=True)
    lora = settings_with(settings, "lora")
    with FileLock(tmp_path / "tiny" / "checkpoints" / f"{lora.name}.lock"):
        assert command() == 0
    assert "running in another process" in capsys.readouterr().out
    folder = tmp_path / "results" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["few--projector--seed0.json", "test_examples.jsonl"]
    capsys.readouterr()
    assert command("--list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lora", "3", "steps", "seeds", "0", "(missing)"] in lines
    assert ["projector", "3", "steps", "seeds", "0"] in lines
    assert command("--only", "lora", "--seeds", "0") == 0
    assert len(read_results(folder)) == 2

    monkeypatch.setattr("benchmarks.mini_listen.base.make_base", lambda *args, **kw: pytest.fail("nothing was left"))
    capsys.readouterr()
    assert command() == 0
    assert capsys.readouterr().out.startswith("2 runs, 2 of them stored in ")


def test_a_run_that_fails_does_not_stop_the_others(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "lora", _broken)
    assert command() == 1
    output = capsys.readouterr()
    assert "failed: lora, seed 0" in output.out and "ZeroDivisionError" in output.err
    assert [run["settings"]["method"] for run in read_results(tmp_path / "results" / "tiny").values()] == ["projector"]


def _broken(base, processor, seed, rank):
    return 1 / 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "LORA"], "No experiment of few has the label 'LORA'"),
        (["--processes", "0"], "--processes 0: expected 1 or more"),
        (["--device", "cuda"], "torch finds no CUDA device"),
    ],
)
def test_impossible_commands_are_refused(command, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_failure_in_one_of_several_processes_is_reported(tmp_path):
    assert in_processes(2, os.makedirs, str(tmp_path / "made"), 0o777, True) == 0
    assert (tmp_path / "made").is_dir()
    # One of the two finds it made already.
    assert in_processes(2, os.mkdir, str(tmp_path / "once")) == 1


def test_the_estimate_times_each_kind_of_run_once(material, settings, capsys):
    lora = settings_with(settings, "lora")
    planned = [PlannedRun(replace(lora, seed=seed, steps=3600), "LoRA", "") for seed in (0, 1)]
    text = estimate(planned, material, "cpu", evaluation_batch_size=2, steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in lines if line.startswith("LoRA")] == ["LoRA: 2 steps"]
    assert text.startswith("all 2 runs, one after another: about ")


def test_an_interrupted_run_gives_the_result_of_an_uninterrupted_one(
    results, material, settings, tmp_path, monkeypatch
):
    listen = settings_with(settings, "listen")
    monkeypatch.setattr(run_module.Evaluator, "answers", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(listen, material, tmp_path / "work", tmp_path / "results", "run.json")
    assert not list(tmp_path.glob("results/*"))
    monkeypatch.undo()
    (checkpoint,) = (tmp_path / "work" / listen.name).glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3"
    resumed = run(listen, material, tmp_path / "work", tmp_path / "results", "run.json")
    assert resumed["seconds_per_step"] is None  # no step was left
    assert resumed["validation_loss"] == pytest.approx(read(results, listen)["validation_loss"], rel=1e-4)


def _interrupt(*args):
    raise KeyboardInterrupt


def test_a_split_that_is_too_small_is_refused(material):
    assert len(read_split(material.data_dir, "test", TASKS, 2)) == 2 * len(TASKS)
    with pytest.raises(ValueError, match=r"test.jsonl has 2 examples of 'asr', and 3 are needed"):
        read_split(material.data_dir, "test", TASKS, 3)


def test_runs_on_other_test_examples_are_not_mixed(material, tmp_path):
    write_test_examples(tmp_path, material.test)
    write_test_examples(tmp_path, material.test)
    rows = [json.loads(line) for line in (tmp_path / "test_examples.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == [task for task in TASKS for _ in range(2)]
    assert not any(row["clip"].startswith("/") for row in rows)
    with pytest.raises(
        ValueError, match="evaluated on other test examples, .* another folder with `--results FOLDER`"
    ):
        write_test_examples(tmp_path, material.test[1:])


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


def test_all_runs_of_a_form_start_from_the_projector_that_was_trained_once(tmp_path, material):
    form = replace(FORM, projector_steps=4)
    assert train_projector(FORM, material, tmp_path) is None
    untrained = adapt(RunSettings.of_form(FORM), material)[0].model.model.multi_modal_projector.state_dict()
    path = train_projector(form, material, tmp_path)
    assert json.loads(path.with_suffix(".json").read_text()).keys() == {
        "the projector alone",
        "the projector with random prompts",
    }
    first, second = load_file(projector_path(material, 3)), load_file(path)
    assert not torch.equal(first["linear.weight"], second["linear.weight"])
    written = path.stat().st_mtime_ns
    assert path == train_projector(form, material, tmp_path) == projector_path(material, 4)
    assert path.stat().st_mtime_ns == written

    for method in ("projector", "lora", "listen"):
        adapted, _ = adapt(settings_with(RunSettings.of_form(form), method, seed=3), material)
        base = adapted.model if method == "projector" else adapted.model.get_base_model()
        projector = base.model.multi_modal_projector
        start = projector if method == "projector" else projector.modules_to_save["default"]
        trained = load_file(path)
        assert all(torch.equal(weight, trained[name]) for name, weight in start.state_dict().items())
        assert not torch.equal(start.linear.weight, untrained["linear.weight"])
    assert projector_hash(material, 0) is None and projector_hash(material, 3) != projector_hash(material, 4)
