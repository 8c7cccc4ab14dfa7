"""The paper's configuration trains tiny models, resumes an interrupted training, and rejects unknown overrides."""

import json

import pytest

from benchmarks.paper.answer import answer, scores
from benchmarks.paper.train import CONFIG, read_config, train
from peft_listen import ListenConfig


@pytest.fixture(scope="module")
def data_file(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    return path


@pytest.fixture
def config(parts, data_file):
    overrides = [f"{name}={value}" for name, value in parts.items()]
    overrides += [f"data.{split}={data_file}" for split in ("train", "validation", "test")]
    overrides += ["training.max_steps=3", "training.warmup_steps=1", "training.per_device_train_batch_size=2"]
    overrides += ["training.eval_steps=2", "training.save_steps=2", "training.logging_steps=1", "training.bf16=false"]
    return read_config(CONFIG, [*overrides, "dtype=float32", "listen.pool_size=20", "training.use_cpu=true"])


def test_the_papers_configuration_trains_and_answers_with_tiny_models(config, data_file, tmp_path):
    trainer = train(config, tmp_path)
    assert trainer.state.global_step == 3
    assert any("eval_loss" in row for row in trainer.state.log_history)
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not adapter["center_queries"] and adapter["key_loss_reduction"] == "sum"

    predictions = tmp_path / "predictions.jsonl"
    answers = answer(str(tmp_path / "adapter"), data_file, predictions, batch_size=3, max_new_tokens=4)
    assert [row["task"] for row in answers] == ["asr", "sounds", "asr", "sounds"]
    assert set(scores(answers)) == {"asr/wer", "sounds/exact_match"}
    # An interrupted run continues after its last complete line.
    lines = predictions.read_text().splitlines(keepends=True)
    predictions.write_text("".join(lines[:3]) + lines[3][:10])
    assert answer(str(tmp_path / "adapter"), data_file, predictions, batch_size=3, max_new_tokens=4) == answers


def test_an_interrupted_training_is_resumed(config, tmp_path):
    config["training"]["max_steps"] = 2
    train(config, tmp_path)
    config["training"]["max_steps"] = 3
    trainer = train(config, tmp_path)
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2, 3]


def test_the_file_holds_the_papers_pool():
    config = read_config(CONFIG, [])
    listen = ListenConfig.paper(**config["listen"])
    assert (listen.pool_size, listen.max_train_prompt_length, listen.center_queries) == (400, 400, False)
    assert 2 * listen.pool_size * 4096 == 3_276_800


@pytest.mark.parametrize("override", ["steps=3", "training", "data.trial=x", "speech.name=x"])
def test_an_override_of_an_unknown_name_is_rejected(override):
    with pytest.raises(ValueError, match=r"expected NAME=VALUE with a name that"):
        read_config(CONFIG, [override])
