"""`Trainer(compute_metrics=...)`: predictions are logits that fit the labels position by position, on any number of processes."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from peft_listen.training import AudioListenCollator, FeatureCache, ListenCallback


class Recorder:
    """A `compute_metrics` that keeps its argument."""

    def __call__(self, prediction):
        self.prediction = prediction
        predicted, labels = prediction.predictions.argmax(-1)[:, :-1], prediction.label_ids[:, 1:]
        supervised = labels != -100
        return {"accuracy": float((predicted == labels)[supervised].mean()), "tokens": int(supervised.sum())}


@pytest.fixture(scope="module")
def build(make_model, make_adapted):
    return {
        "listen": make_adapted,
        "listen without centering": lambda: make_adapted(center_queries=False, num_shared_prompts=2),
        "lora": lambda: get_peft_model(make_model(), LoraConfig(target_modules=r".*language_model.*q_proj")),
        "base": make_model,
        "without sound encoder": lambda: make_model(sound=False),
    }


MODELS = ("listen", "listen without centering", "lora", "base", "without sound encoder")


def make_trainer(model, examples, collator, folder, **changes):
    settings = {"per_device_eval_batch_size": 3, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    args = TrainingArguments(str(folder), remove_unused_columns=False, **(settings | changes))
    recorder = Recorder()
    callbacks = [ListenCallback()] if changes.get("max_steps") else []
    trainer = Trainer(
        model,
        args,
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collator,
        compute_metrics=recorder,
        callbacks=callbacks,
    )
    return trainer, recorder


def check(prediction, model, processor, examples):
    """Compares predictions with the logits and labels of every row alone."""
    assert isinstance(prediction.predictions, np.ndarray) and isinstance(prediction.label_ids, np.ndarray)
    assert prediction.predictions.shape[:2] == prediction.label_ids.shape
    assert len(prediction.predictions) == len(examples)
    collator = AudioListenCollator(processor, supervised_logits_only=False)
    for logits, labels, example in zip(prediction.predictions, prediction.label_ids, examples, strict=True):
        batch = collator([example])
        with torch.no_grad():
            alone = model(**batch).logits[0]
        expected = batch["labels"][0]
        assert labels[labels != -100].tolist() == expected[expected != -100].tolist()
        # The logits at a position predict the label at the next one.
        predicting = logits[:-1][labels[1:] != -100]
        np.testing.assert_allclose(predicting, alone[:-1][expected[1:] != -100].cpu(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("supervised_logits_only", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_predictions_are_logits_that_fit_the_labels(
    build, make_processor, examples, tmp_path, kind, supervised_logits_only
):
    model = build[kind]()
    processor = make_processor(sound=kind != "without sound encoder")
    collator = AudioListenCollator(processor, supervised_logits_only=supervised_logits_only)
    trainer, recorder = make_trainer(model, examples, collator, tmp_path)
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert metrics["eval_tokens"] == sum((collator([row])["labels"] != -100).sum() for row in examples)
    check(recorder.prediction, model, processor, examples)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_eval_batch_size": 1},
        {"per_device_eval_batch_size": 4},
        {"eval_accumulation_steps": 1},
        {"eval_do_concat_batches": True, "dataloader_num_workers": 1},
        {"include_for_metrics": ["inputs", "loss"]},
    ],
)
def test_settings_of_the_evaluation(build, processor, examples, tmp_path, settings):
    model = build["listen"]()
    trainer, recorder = make_trainer(model, examples, AudioListenCollator(processor), tmp_path, **settings)
    trainer.evaluate()
    check(recorder.prediction, model, processor, examples)


def test_predict_and_cached_features(build, make_model, processor, examples, clips, tmp_path):
    cache = FeatureCache(tmp_path / "features", make_model())
    cache.build(make_model().eval(), processor, clips)
    model = build["listen"]()
    trainer, _ = make_trainer(model, examples, AudioListenCollator(processor, feature_cache=cache), tmp_path)
    check(trainer.predict(examples), model, processor, examples)


def test_an_evaluation_during_training_measures_what_is_learned(build, make_model, processor, examples, tmp_path):
    model = build["listen"]()
    for weight in model.parameters():
        weight.requires_grad_(True)
    settings = {
        "max_steps": 40,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "learning_rate": 1e-2,
        "save_strategy": "no",
    }
    trainer, _ = make_trainer(model, examples[:2], AudioListenCollator(processor), tmp_path, **settings)
    trainer.train()
    measured = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert len(measured) == 2 and measured[-1] == 1.0


def test_the_loss_of_an_evaluation_is_that_of_the_supervised_logits(make_model, processor, examples):
    model = make_model().eval()
    batch = AudioListenCollator(processor)(examples)
    expected = model(**batch).loss
    with torch.no_grad():
        output = model(**batch)
    torch.testing.assert_close(output.loss, expected.detach())
    assert output.logits.shape[:2] == batch["labels"].shape
    unsupervised = {name: value for name, value in batch.items() if name not in ("labels", "shift_labels")}
    with torch.no_grad():
        assert model(**unsupervised).logits.shape[1] == batch["logits_to_keep"]


# Judged by the files that the processes write: gloo at times aborts when they exit.
WORKER = """
import pickle, torch
torch.set_num_threads(1)
from peft_listen.training import AudioListenCollator
from tests import small_models
from tests.training.test_evaluation import make_trainer

model = small_models.make_adapted_chat_model()
collator = AudioListenCollator(small_models.make_chat_processor())
for size in (1, 2, 3):
    trainer, recorder = make_trainer(model, {examples!r}, collator, {folder!r}, per_device_eval_batch_size=size)
    metrics = trainer.evaluate()
    with open({folder!r} + f"/size{{size}}-rank{{trainer.args.process_index}}.pickle", "wb") as file:
        pickle.dump((metrics, recorder.prediction), file)
"""


@pytest.mark.slow
def test_two_processes_give_the_predictions_of_one(build, processor, examples, tmp_path):
    model = build["listen"]()
    rows = examples[:3]  # an odd number: one process gets a row twice
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(examples=rows, folder=str(tmp_path)))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "src"), str(root)])
    processes = []
    for rank in ("0", "1"):
        with (tmp_path / f"stderr{rank}").open("w") as stderr:
            environment |= {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(
                subprocess.Popen([sys.executable, str(script)], env=environment, stdout=stderr, stderr=stderr)
            )
    for process in processes:
        process.wait(timeout=240)
    for size in (1, 2, 3):
        for rank in (0, 1):
            file = tmp_path / f"size{size}-rank{rank}.pickle"
            assert file.exists(), (tmp_path / f"stderr{rank}").read_text()[-2000:]
            metrics, prediction = pickle.loads(file.read_bytes())
            check(prediction, model, processor, rows)
            assert metrics["eval_tokens"] == (prediction.label_ids != -100).sum()
