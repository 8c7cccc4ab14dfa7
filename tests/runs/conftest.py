"""Data and a base model for runs that take a second."""

import json
from dataclasses import replace

import pytest

from peft_listen.runs import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments, TrainingRun
from tests import small_models


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A base model with a chat template."""
    return small_models.save_chat_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def data_file(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    return str(path)


@pytest.fixture
def make_run(base_folder, data_file, tmp_path):
    """A run of 4 steps; the arguments change its options by their names."""

    def make(callbacks=(), **changes):
        options = [
            ModelOptions(model=base_folder),
            AdapterOptions(),
            ListenOptions(listen_pool_size=6, listen_prompt_length=2),
            DataOptions(train_data=[data_file], max_new_tokens=3),
        ]
        for index, each in enumerate(options):
            names = [name for name in changes if hasattr(each, name)]
            options[index] = replace(each, **{name: changes.pop(name) for name in names})
        settings = {"output_dir": str(tmp_path / "run"), "max_steps": 4, "per_device_train_batch_size": 2}
        settings |= {"save_steps": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
        settings |= {"per_device_eval_batch_size": 3}
        return TrainingRun(*options, RunArguments(**(settings | changes)), callbacks=callbacks)

    return make
