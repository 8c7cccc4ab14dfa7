"""The fingerprint of a checkpoint changes with everything that its answers depend on."""

import pytest

from peft_listen.settings_record import checkpoint_fingerprint


FILES = [
    "model.safetensors",
    "config.json",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
    "lora/adapter_model.safetensors",
]


@pytest.fixture
def checkpoint(tmp_path):
    for name in [*FILES, "README.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_the_fingerprint_depends_on_each_file_that_is_loaded(checkpoint, name):
    before = checkpoint_fingerprint(checkpoint)
    (checkpoint / name).write_text("b")
    assert checkpoint_fingerprint(checkpoint) != before
    (checkpoint / name).write_text("a")
    assert checkpoint_fingerprint(checkpoint) == before


def test_the_fingerprint_does_not_depend_on_the_model_card(checkpoint):
    before = checkpoint_fingerprint(checkpoint)
    (checkpoint / "README.md").write_text("b")
    assert checkpoint_fingerprint(checkpoint) == before


def test_a_name_of_a_repository_has_no_fingerprint():
    assert checkpoint_fingerprint("me/adapter") is None
