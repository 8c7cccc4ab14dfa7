"""Faults of the machine during a run: an error that says what happened, and the same command continues afterwards."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import get_worker_info
from transformers import TrainerCallback

from peft_listen.files import temporary_path
from peft_listen.models.audio_listen import AudioListenProcessor
from peft_listen.models.audio_listen.configuration_audio_listen import QFORMER_DEFAULTS
from peft_listen.training import AudioListenCollator
from tests import small_models


class Once(TrainerCallback):
    """Does something when the training begins."""

    def __init__(self, action):
        self.action = action

    def on_train_begin(self, args, state, control, **kwargs):
        self.action()


def losses(result):
    return [row["loss"] for row in result.log_history if "loss" in row]


def weights(result):
    return load_file(result.model_dir / "adapter_model.safetensors")


@pytest.fixture
def own_data(examples, tmp_path):
    """A data file with copies of the clips, and the path of the clip of the last row."""
    rows = []
    for index, row in enumerate(examples):
        copy = shutil.copy(row["audio"], tmp_path / f"own{index}.wav")
        os.utime(copy, (0, 0))
        rows.append({**row, "audio": str(copy)})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "own.jsonl"), Path(rows[-1]["audio"])


def test_a_run_that_was_killed_after_its_last_step_is_not_trained_further(make_run):
    # The third step is in the middle of an epoch.
    whole = make_run(max_steps=3).run()
    expected = weights(whole)
    for name in ("training.json", "result.json"):
        (whole.model_dir.parent / name).unlink()
    shutil.rmtree(whole.model_dir)
    resumed = make_run(max_steps=3).run()
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


@pytest.mark.slow
def test_the_best_model_is_found_in_a_run_that_was_moved_after_its_last_step(make_run, data_file, tmp_path):
    options = {"max_steps": 3, "eval_data": [data_file], "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    options |= {"eval_rows_per_task": 0, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    # The first checkpoint is the best one, as the lowest loss is taken for the worst.
    options |= {"greater_is_better": True, "save_total_limit": None, "learning_rate": 0.05}
    whole = make_run(**options).run()
    expected = weights(whole)
    for name in ("training.json", "result.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(whole.model_dir)
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed = make_run(output_dir=str(tmp_path / "moved"), **options).run()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())
    best = json.loads((tmp_path / "moved" / "training.json").read_text())["best_step"]

    for name in ("training.json", "result.json"):
        (tmp_path / "moved" / name).unlink()
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / f"checkpoint-{best}")
    with pytest.raises(OSError, match=rf"best checkpoint, .*checkpoint-{best}, is missing"):
        make_run(output_dir=str(tmp_path / "moved"), **options).run()


@contextmanager
def largest_file(num_bytes):
    """Writing beyond this size fails, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_checkpoint(make_run, tmp_path):
    whole = make_run(output_dir=str(tmp_path / "whole")).run()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole" / "checkpoints").rglob("checkpoint-2/*")}
    checkpoints = tmp_path / "run" / "checkpoints"
    # The weights, which safetensors writes, and the states of the optimizer, which torch writes.
    for name, reason in (("adapter_model.safetensors", "File too large"), ("optimizer.pt", "disk is full")):
        with largest_file(sizes[name] - 1000):
            with pytest.raises(
                OSError, match=rf"(?s)step 2 is not saved\. .*checkpoint-2 cannot be .*{reason}.*again"
            ):
                make_run().run()
        assert list(checkpoints.iterdir()) == []
    resumed = make_run().run()
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)


def test_a_disk_that_is_full_at_the_end_leaves_what_was_trained(make_run, tmp_path, monkeypatch):
    from peft_listen.runs import training_run

    save = training_run.TrainingRun._save

    def full(self, *arguments):
        with largest_file(1000):
            save(self, *arguments)

    monkeypatch.setattr(training_run.TrainingRun, "_save", full)
    with pytest.raises(OSError, match="File too large") as caught:
        make_run(max_steps=2, adapter="lora").run()
    assert "run/model" in str(caught.value)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "training.json").exists()
    assert len(losses(make_run(max_steps=2, adapter="lora").run())) == 2


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a folder as read-only")
def test_a_read_only_folder_is_named(make_run, tmp_path):
    (tmp_path / "run").mkdir()
    bind = subprocess.run(["mount", "--bind", tmp_path / "run", tmp_path / "run"], check=False, capture_output=True)
    if bind.returncode != 0:
        pytest.skip(f"mount: {bind.stderr.decode()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path / "run"], check=True)
        with pytest.raises(OSError, match=r"Read-only file system: '.*/run/settings\.json'"):
            make_run().run()
    finally:
        subprocess.run(["umount", tmp_path / "run"], check=True)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_worker_is_explained(make_run, monkeypatch):
    call = AudioListenCollator.__call__

    def killed(self, examples):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(self, examples)

    monkeypatch.setattr(AudioListenCollator, "__call__", killed)
    with pytest.raises(
        ChildProcessError, match=r"worker .*\(pid.*\) .*`dataloader_num_workers`.*continue from the last"
    ):
        make_run(dataloader_num_workers=1).run()
    monkeypatch.undo()
    assert len(losses(make_run(dataloader_num_workers=1).run())) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_clip_that_vanishes_during_a_run_is_named(make_run, own_data, num_workers):
    data_file, clip = own_data
    content = clip.read_bytes()
    # Without prompts, the first to read a clip is the data loader.
    options = {"train_data": [data_file], "adapter": "lora", "dataloader_num_workers": num_workers, "max_steps": 2}
    with pytest.raises(OSError, match=rf"{clip.name}: no such audio file") as error:
        make_run([Once(clip.unlink)], **options).run()
    assert "Traceback" not in str(error.value)
    clip.write_bytes(content)
    assert len(losses(make_run(**options).run())) == 2


def test_a_damaged_shard_is_named_and_built_again(make_run, own_data, tmp_path):
    data_file, _ = own_data
    options = {"train_data": [data_file], "adapter": "lora", "dataloader_num_workers": 1, "max_steps": 2}
    options["feature_cache"] = str(tmp_path / "features")
    options["standardize_frames"] = False  # it would read, and so check, the features before they are damaged

    def damage():
        (shard,) = (tmp_path / "features").rglob("*.safetensors")
        content = bytearray(shard.read_bytes())
        for position in range(len(content) // 2, len(content), 64):
            content[position] ^= 1
        shard.write_bytes(content)

    with pytest.raises(OSError, match=r"do not match their checksum.*Delete it") as error:
        make_run([Once(damage)], **options).run()
    assert "Traceback" not in str(error.value)
    for shard in (tmp_path / "features").rglob("*.safetensors"):
        shard.unlink()
    assert len(losses(make_run(**options).run())) == 2


@pytest.mark.slow
def test_a_clip_that_is_modified_after_it_was_cached_is_named(make_run, own_data, tmp_path):
    data_file, clip = own_data
    options = {"train_data": [data_file], "adapter": "lora", "max_steps": 2}
    options["feature_cache"] = str(tmp_path / "features")

    def modify():
        small_models.write_wav(clip, 0.6, seed=9)

    with pytest.raises(OSError, match=rf"{clip.name}.*not among the 4 clips .*modified during the run\? Run the same"):
        make_run([Once(modify)], **options).run()
    assert len(losses(make_run(**options).run())) == 2


def test_a_base_model_that_was_not_saved_whole_is_built_again(make_run, published_parts, tmp_path, monkeypatch):
    for name, value in small_models.QFORMER.items():
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    parts = {name: str(path) for name, path in published_parts.items() if name != "sound"}
    options = {"model": None, **parts, "listen_ignore_template": False, "max_steps": 1}

    def interrupted(self, folder, **kwargs):
        Path(folder, "processor_config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AudioListenProcessor, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_run(**options).run()
    assert list((tmp_path / "run" / "base").iterdir()) == []
    assert make_run(**options).run().model_dir.is_dir()


def test_a_run_that_was_killed_before_its_settings_were_written_begins_again(make_run, tmp_path):
    (tmp_path / "run").mkdir()
    name = temporary_path(tmp_path / "run" / "settings.json").name
    machine, _, _, number = name.split(".")[3].split("-")
    for other in (machine, "0" * 8):  # that of this machine, and of another one, which may be writing
        (tmp_path / "run" / f".settings.json.{other}-999999999-1700000000-{number}.tmp").write_text("{")
    assert len(losses(make_run(max_steps=1).run())) == 1
