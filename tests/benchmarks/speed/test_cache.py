import re
import sys

import pytest
import torch

from benchmarks.speed import cache
from peft_listen.training import AudioListenCollator, FeatureCache
from tests import small_models


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a base model whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("base")
    small_models.save_chat_base(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, base):
    threads = torch.get_num_threads()

    def run(*arguments):
        small = [
            "--base",
            str(base),
            "--folder",
            str(tmp_path),
            "--clips",
            "3",
            "--seconds",
            "0.4",
            "--batch-size",
            "2",
        ]
        monkeypatch.setattr(sys, "argv", ["cache", *small, "--device", "cpu", "--threads", "1", *arguments])
        cache.main()
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_each_number_of_workers_has_a_row(run):
    output = run("--workers", "0", "1", "--repeats", "2", "--language-model-repeats", "1")
    rows = re.findall(
        r"^\| (.*?): cached / not cached \| (\d\.\d+) \| \d\.\d+ to \d\.\d+ \|$", output, flags=re.MULTILINE
    )
    assert [name for name, _ in rows] == [
        "audio part, 0 workers",
        "audio part, 1 workers",
        "training with the language model, 0 workers",
        "training with the language model, 1 workers",
    ]
    assert all(float(ratio) > 0 for _, ratio in rows)


def test_cpu_time_is_measured_without_workers(run, capsys):
    options = ["--clock", "cpu", "--repeats", "1", "--language-model-repeats", "0"]
    assert "| audio part, 0 workers: cached / not cached |" in run("--workers", "0", *options)
    with pytest.raises(SystemExit):
        run("--workers", "0", "2", *options)
    assert "--clock cpu does not count the time of workers" in capsys.readouterr().err


@pytest.mark.parametrize("language_model", [False, True])
def test_both_epochs_take_all_clips_and_only_one_reads_the_cache(run, monkeypatch, language_model):
    steps, caches = [], []
    monkeypatch.setattr(
        cache.Benchmark, "run", lambda self, **_: [call() for call in self.calls(0, language_model)][:0]
    )
    train_step = cache.Benchmark.train_step

    def counted(self, batch, language_model):
        steps.append(set(batch) & {"input_features", "speech_features"})
        train_step(self, batch, language_model)

    def collator(processor, feature_cache):
        caches.append(feature_cache)
        return AudioListenCollator(processor, feature_cache)

    monkeypatch.setattr(cache.Benchmark, "train_step", counted)
    monkeypatch.setattr(cache, "AudioListenCollator", collator)
    run("--repeats", "1", "--language-model-repeats", "0")
    assert steps == [{"speech_features"}] * 2 + [{"input_features"}] * 2
    assert [type(each) for each in caches] == [FeatureCache, type(None)]
