"""The stages of the demo: reuse by arguments with small stages in place of the real ones, and one run with small models."""

import importlib
import importlib.metadata
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo import run, stages, train
from demo.make_dataset import TASKS, make_dataset
from peft_listen.analysis import SelectionRecords


STAGES = ["base", "before", "trained", "after"]
SELECTIONS = {
    "pool_size": 64,
    "prompt_length": 8,
    "live_prompts": 3,
    "mean_overlap": 0.0,
    "overlap": [["sound", "sound", 1.0]],
}


class SmallStages:
    """Stands in for `demo.stages.execute`: each stage writes what it read and the options that it got."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.interrupted: str | None = None
        self.dataset = "0"

    def __call__(self, module: str, *arguments: Any) -> None:
        words = [str(each) for each in arguments]
        split = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
        *inputs, output = map(Path, words[:split])
        name = output.parent.name if output.suffix else output.name
        stage = name.partition("-")[0]
        self.ran.append(stage)
        if stage == "models":
            return
        if stage == "data":
            manifest = {"seed": 0, "clips_per_task": {"test": 1}, "sha256": self.dataset}
            output.mkdir(exist_ok=True)
            (output / "manifest.json").write_text(json.dumps(manifest))
            (output / "test.jsonl").write_text("{}")
            return
        options = [each for each in words[split:] if "features" not in each]
        history = [(each.parent if each.name == "adapter" else each) / "text" for each in inputs[:1]]
        text = " ".join([*(each.read_text() for each in history), *options])
        folder = output.parent if output.suffix else output
        (folder / "text").write_text(text)
        if stage == self.interrupted:
            raise KeyboardInterrupt
        for product in PRODUCTS[stage]:
            (folder / product).parent.mkdir(exist_ok=True)
            (folder / product).write_text("{}")
        if output.suffix:
            row = {"audio": "a.wav", "task": "sound", "instruction": "?", "answer": "rain", "generated": text}
            scores = {name: {"sound": 0.25} for name in ("guessing", "accuracy", "exact_match")}
            selections = {"selections": SELECTIONS} if stage == "after" else {}
            output.write_text(json.dumps({**scores, "answers": [{**row, "is_right": False}], **selections}))


PRODUCTS = {
    "base": ["config.json", "processor_config.json"],
    "before": ["answers.json"],
    "trained": ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
    "after": ["answers.json", "selections.safetensors"],
}


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch) -> SmallStages:
    replacement = SmallStages()
    for module in (run, stages):
        monkeypatch.setattr(module, "execute", replacement)
    monkeypatch.setattr(run, "SHOWN_CHARACTERS", 1000)
    return replacement


@pytest.fixture
def demo(
    small_stages: SmallStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[str], str]]:
    """Runs the demo in one folder; returns the stages that were made, and the output."""

    def call(*arguments: str) -> tuple[list[str], str]:
        small_stages.ran.clear()
        monkeypatch.setattr(sys, "argv", ["run", "--folder", str(tmp_path / "demo"), *arguments])
        run.main()
        return [stage for stage in small_stages.ran if stage in STAGES], capsys.readouterr().out

    return call


# Another value of each argument, and the stages whose output it changes.
CHANGES = {
    "speech": ("other/whisper", STAGES),
    "llm": ("meta/llama", STAGES),
    "sound": ("other/beats", STAGES),
    "steps": ("7", ["trained", "after"]),
    "batch_size": ("3", ["trained", "after"]),
    "learning_rate": ("0.25", ["trained", "after"]),
    "audio_scale": ("2.0", STAGES),
    "seed": ("5", STAGES),
}


def test_the_changes_cover_all_arguments() -> None:
    names = {action.dest for action in run.make_parser()._actions} - {"help", "folder"}
    assert names == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_another_argument_makes_what_depends_on_it_and_keeps_the_former_output(
    name: str, demo: Callable[..., tuple[list[str], str]]
) -> None:
    value, changed = CHANGES[name]
    option = [f"--{name.replace('_', '-')}", value]
    made, first = demo()
    assert made == STAGES
    made, other = demo(*option)
    assert made == changed
    assert other.count("made with the same arguments") == len(STAGES) - len(changed)
    # The small stages answer with the arguments of all stages before them.
    answers = {output: answer_of(output) for output in (first, other)}
    assert shlex.join(option) in answers[other]
    assert shlex.join(option) not in answers[first]

    for arguments, output in (((), first), (option, other)):
        made, again = demo(*arguments)
        assert made == []
        assert again.count("made with the same arguments") == len(STAGES)
        assert answer_of(again) == answers[output]


def answer_of(output: str) -> str:
    return next(line for line in output.splitlines() if "trained: " in line and "untrained" not in line)


def test_all_arguments_are_printed_at_the_beginning_and_with_the_results(
    demo: Callable[..., tuple[list[str], str]], tmp_path: Path
) -> None:
    options = [word for name, (value, _) in CHANGES.items() for word in (f"--{name.replace('_', '-')}", value)]
    _, output = demo(*options)
    summary = ", ".join(f"{name} {value}" for name, (value, _) in CHANGES.items())
    summary = f"folder {tmp_path / 'demo'}, {summary}"
    assert output.startswith(f"Arguments: {summary}\n")
    assert f"== Results of: {summary}\n" in output
    (trained,) = (tmp_path / "demo").glob("trained-*")
    (after,) = (tmp_path / "demo").glob("after-*")
    assert f'"What do you hear?" --model {trained / "adapter"}\n' in output
    command = f"peft-listen demo {trained / 'adapter'} --records {after / 'selections.safetensors'}"
    assert output.rstrip().endswith(f"{command} --data {tmp_path / 'demo' / 'data' / 'test.jsonl'}")


def test_a_manifest_holds_the_settings_of_all_stages_before_it(
    demo: Callable[..., tuple[list[str], str]], tmp_path: Path
) -> None:
    demo("--llm", "meta/llama", "--seed", "5")
    (path,) = (tmp_path / "demo").glob("after-*/stage.json")
    manifest = json.loads(path.read_text())
    trained, data = manifest["inputs"]
    assert (manifest["module"], trained["module"], data["module"]) == (
        "demo.evaluate",
        "demo.train",
        "demo.make_dataset",
    )
    assert trained["settings"]["seed"] == 5
    assert trained["inputs"][0]["settings"]["llm"] == "meta/llama"


@pytest.mark.parametrize("interrupted", STAGES)
def test_an_interrupted_stage_is_not_reused(
    interrupted: str, demo: Callable[..., tuple[list[str], str]], small_stages: SmallStages
) -> None:
    small_stages.interrupted = interrupted
    with pytest.raises(KeyboardInterrupt):
        demo()
    small_stages.interrupted = None
    made, output = demo()
    assert made == STAGES[STAGES.index(interrupted) :]
    assert output.count("is incomplete and is ") == 1
    assert demo()[0] == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("damage", ["no manifest", "damaged manifest", "other manifest", "no product"])
def test_an_output_without_its_manifest_or_products_is_made_again(
    stage: str, damage: str, demo: Callable[..., tuple[list[str], str]], tmp_path: Path
) -> None:
    demo()
    (folder,) = (tmp_path / "demo").glob(f"{stage}-*")
    manifest = folder / "stage.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "damaged manifest":
        manifest.write_text(manifest.read_text()[:50])
    elif damage == "other manifest":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "module": "other"}))
    else:
        (folder / PRODUCTS[stage][0]).unlink()
    assert demo()[0] == [stage]
    assert demo()[0] == []


def test_the_output_of_an_earlier_version_is_not_used(
    demo: Callable[..., tuple[list[str], str]], tmp_path: Path
) -> None:
    for name in ("base/processor_config.json", "trained/adapter/adapter_config.json", "before.json", "after.json"):
        path = tmp_path / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    made, output = demo()
    assert made == STAGES
    for name in ("base", "trained", "before.json", "after.json"):
        assert f"{tmp_path / 'demo' / name} was made by an earlier version of the demo and is not used" in output


@pytest.mark.parametrize("name", ["speech", "llm", "sound"])
def test_a_model_that_was_changed_in_place_is_another_one(
    name: str, demo: Callable[..., tuple[list[str], str]], tmp_path: Path
) -> None:
    weights = tmp_path / "own" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_text("first")
    arguments = [f"--{name}", str(weights.parent)]
    assert demo(*arguments)[0] == STAGES
    assert demo(*arguments)[0] == []
    weights.write_text("other")
    os.utime(weights, ns=(1, 1))
    assert demo(*arguments)[0] == STAGES


def test_another_dataset_makes_what_depends_on_it(
    demo: Callable[..., tuple[list[str], str]], small_stages: SmallStages
) -> None:
    demo()
    small_stages.dataset = "1"
    assert demo()[0] == ["before", "trained", "after"]
    assert demo()[0] == []


def test_other_code_or_versions_make_what_depends_on_them(
    demo: Callable[..., tuple[list[str], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo()
    monkeypatch.setattr(stages, "_code_hash", lambda *modules: "1" if "demo.scoring" in modules else "0")
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1")
    assert demo()[0] == STAGES
    assert demo()[0] == []
    monkeypatch.setattr(stages, "_code_hash", lambda *modules: "2" if "demo.scoring" in modules else "0")
    assert demo()[0] == ["before", "after"]
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2")
    assert demo()[0] == STAGES


def test_a_stage_that_writes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "execute", lambda *arguments: None)
    stage = stages.Stage("Title", tmp_path, "name", "demo.train", products=("weights",))
    with pytest.raises(RuntimeError, match="demo.train ended without writing weights to"):
        stage.run()
    assert not stage.is_complete


def test_a_checkpoint_that_was_not_finished_is_skipped(tmp_path: Path) -> None:
    for step, name in ((50, "trainer_state.json"), (100, "model.safetensors")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    assert train._last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-50")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-50"]
    assert train._last_checkpoint(tmp_path / "missing") is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("espeakng_loader", "soundfile", "soxr"):
        pytest.importorskip(package)
    return make_dataset(
        tmp_path_factory.mktemp("made") / "data", train_per_task=2, validation_per_task=1, test_per_task=4
    )


def test_a_run_with_small_models(
    data: Path,
    published_parts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    executed = []

    def execute(module: str, *arguments: Any) -> None:
        executed.append(module)
        if module == "demo.make_dataset":
            shutil.copytree(data, arguments[0], dirs_exist_ok=True)
            return
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *map(str, arguments)])
            importlib.import_module(module).main()

    for module in (run, stages):
        monkeypatch.setattr(module, "execute", execute)
    folder = tmp_path / "demo"
    options = ["--folder", folder, "--speech", published_parts["speech"], "--llm", published_parts["llm"]]
    options += ["--steps", 2, "--batch-size", 4]

    def start(*more: Any) -> str:
        executed.clear()
        monkeypatch.setattr(sys, "argv", ["run", *map(str, [*options, *more])])
        run.main()
        captured = capsys.readouterr()
        return captured.out + captured.err

    output = start()
    assert output.count("Answering: 100%") == 2
    assert executed == ["demo.make_dataset", "offline.build_base", "demo.evaluate", "demo.train", "demo.evaluate"]
    for task, guessing in zip(TASKS, ["25%", "50%", "25%", "25%"], strict=True):
        (row,) = (line.split() for line in output.splitlines() if line.startswith(f"{task} ") and "%" in line)
        assert row[1] == guessing
        assert len(row) == 6
    assert "an answer is right if it names the right option and none of the others" in output
    assert "of 64 in use" in output
    (path,) = folder.glob("after-*/selections.safetensors")
    records = SelectionRecords.load(path)
    assert (records.pool_size, len(records.tasks), records.task_names) == (64, 16, sorted(TASKS))
    first = weights_of(folder)

    start()
    assert executed == ["demo.make_dataset"]  # which checks its folder itself
    assert weights_of(folder) == first

    output = start("--seed", 1)
    assert executed == ["demo.make_dataset", "offline.build_base", "demo.evaluate", "demo.train", "demo.evaluate"]
    assert "(8 clips)" in output  # the encoder outputs of the first training
    weights = weights_of(folder)
    assert len(weights) == 2
    assert first.items() < weights.items()
    assert len(set(weights.values())) == 2


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.parts[-3]: path.read_bytes() for path in folder.glob("trained-*/adapter/adapter_model.safetensors")}
