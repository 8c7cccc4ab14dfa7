"""Commands that are killed at random moments, and run again: the result is that of a run that was not killed."""

import json
import os
import random
import time

import pytest
import torch
from safetensors.torch import load_file

from peft_listen.models.audio_listen.configuration_audio_listen import QFORMER_DEFAULTS
from peft_listen_cli import main
from tests import small_models
from tests.kills import killed_after, killed_at_change, num_changes


pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.cpu_only("its processes are forked"),
]
NUM_ROWS = 7


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index in range(NUM_ROWS):
        small_models.write_wav(folder / f"{index}.wav", 0.4 + 0.15 * index, seed=index)
        task = ("asr", "sounds")[index % 2]
        rows.append({"audio": f"{index}.wav", "instruction": f"What is {index}?", "answer": "a dog", "task": task})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


class Training:
    """Builds the base model, trains to a step in the middle of an epoch with losses logged between checkpoints, and scores."""

    def __init__(self, parts, data_file):
        self.arguments = ["train", "--train-data", data_file, "--eval-data", data_file, "--max-steps", "5"]
        # What a run computes is not what is tested: without BEATs, and with clips that are padded to 2 s instead of 30 s.
        for name in ("speech", "llm"):
            self.arguments += [f"--{name}", str(parts[name])]
        self.arguments += ["--speech-chunk-multiple", "2"]
        self.arguments += ["--per-device-train-batch-size", "2", "--save-steps", "2", "--logging-steps", "3"]
        self.arguments += ["--eval-strategy", "steps", "--eval-steps", "2", "--eval-rows-per-task", "1"]
        self.arguments += [
            "--load-best-model-at-end",
            "--metric-for-best-model",
            "eval_loss",
            "--save-total-limit",
            "1",
        ]
        self.arguments += [
            "--listen-pool-size",
            "6",
            "--listen-prompt-length",
            "2",
            "--listen-ignore-template",
            "false",
        ]
        self.arguments += ["--init-keys-at-steps", "3", "--max-new-tokens", "3", "--use-cpu", "--disable-tqdm", "true"]

    def run(self, folder):
        return main([*self.arguments, "--output-dir", str(folder)])

    def read(self, folder):
        log = json.loads((folder / "training.json").read_text())
        names = ("loss", "eval_loss", "key_loss", "live_prompts", "step")
        return {
            "log": [[row.get(name, -1) for name in names] for row in log["log_history"] if "train_runtime" not in row],
            "best": [log["best_step"], log["best_metric"]],
            "weights": load_file(folder / "model" / "adapter_model.safetensors"),
            "predictions": (folder / "eval" / "predictions.jsonl").read_text(),
            "result": json.loads((folder / "result.json").read_text()),
            "names": sorted(path.name for path in folder.iterdir()),
        }

    def check_unfinished(self, folder, whole):
        """What is there under its own name after a kill is whole."""
        if (folder / "result.json").exists():
            assert json.loads((folder / "result.json").read_text()) == whole["result"]
        if (folder / "eval" / "predictions.jsonl").exists():
            assert (folder / "eval" / "predictions.jsonl").read_text() == whole["predictions"]
        if (folder / "training.json").exists():
            assert_equal(load_file(folder / "model" / "adapter_model.safetensors"), whole["weights"])


class Caching:
    def __init__(self, model, data_file):
        self.arguments = ["cache-features", data_file, "--model", str(model), "--batch-size", "2", "--shard-size", "2"]

    def run(self, folder):
        return main([*self.arguments, "--folder", str(folder)])

    def read(self, folder):
        features = {}
        for shard in folder.rglob("*.safetensors"):
            features.update(load_file(shard))
        assert len({name.partition("/")[0] for name in features}) == NUM_ROWS
        assert len(list((folder / "index").glob("*.json"))) == 1
        return features

    def check_unfinished(self, folder, whole):
        for shard in folder.rglob("*.safetensors"):
            for name, feature in load_file(shard).items():
                torch.testing.assert_close(feature, whole[name], atol=1e-6, rtol=0)


class Predicting:
    def __init__(self, model, data_file):
        self.arguments = [
            "predict",
            str(model),
            data_file,
            "--batch-size",
            "2",
            "--max-new-tokens",
            "8",
            "--device",
            "cpu",
        ]

    def run(self, folder):
        folder.mkdir(exist_ok=True)
        return main([*self.arguments, "--output", str(folder / "p.jsonl")])

    def read(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == ["p.jsonl", "p.jsonl.settings.json"]
        return (folder / "p.jsonl").read_text()

    def check_unfinished(self, folder, whole):
        if (folder / "p.jsonl").exists():
            assert (folder / "p.jsonl").read_text() == whole


def assert_equal(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    elif isinstance(expected, list) and expected and isinstance(expected[0], (list, float)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-6)
    else:
        assert found == expected


@pytest.fixture(params=["train", "cache-features", "predict"])
def command(request, published_parts, composite_folder, data_file, monkeypatch):
    for name, value in small_models.QFORMER.items():
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    if request.param == "train":
        return Training(published_parts, data_file)
    return {"cache-features": Caching, "predict": Predicting}[request.param](composite_folder, data_file)


@pytest.mark.slow  # 20 kills of each command
def test_commands_that_are_killed_often(command, tmp_path):
    kill_and_compare(command, tmp_path, num_kills=20)


def test_killed_commands_give_the_result_of_one_that_was_not_killed(command, tmp_path):
    kill_and_compare(command, tmp_path, num_kills=2)


def kill_and_compare(command, tmp_path, num_kills):
    """Half of the kills are at a random change of the output folder, half at a random time."""
    random_numbers = random.Random(0)
    start = time.monotonic()
    changes = num_changes(tmp_path / "whole", lambda: command.run(tmp_path / "whole"))
    duration = time.monotonic() - start
    assert changes > 5
    whole = command.read(tmp_path / "whole")
    kills = run = 0
    while kills < num_kills:
        folder = tmp_path / f"run{run}"
        is_ended = False
        while not is_ended and kills < num_kills:
            if kills % 2:
                is_ended = killed_after(random_numbers.uniform(0, duration), lambda folder=folder: command.run(folder))
            else:
                number = random_numbers.randint(1, changes)
                is_ended = killed_at_change(number, folder, lambda folder=folder: command.run(folder))
            if not is_ended:
                kills += 1
                command.check_unfinished(folder, whole)
        assert is_ended or killed_after(600, lambda folder=folder: command.run(folder))
        assert_equal(command.read(folder), whole)
        run += 1
