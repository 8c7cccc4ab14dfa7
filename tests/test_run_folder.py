"""The folder of a run is found by its model, and gives model and selections their name."""

import json

import pytest

from peft_listen.run_folder import display_name, find_run, read_run_settings


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run with the name `org`, which is in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "settings.json").write_text(json.dumps({"seed": 3}))
    return tmp_path / "org"


def test_a_run_is_found_by_the_folder_of_its_model(run):
    assert find_run("org/model") == run and display_name("org/model") == "org"
    assert read_run_settings("org/model") == {"seed": 3}


def test_a_name_on_the_hub_is_not_taken_for_a_run(run):
    (run / "model").rmdir()
    assert find_run("org/model") is None and display_name("org/model") == "org/model"
    assert read_run_settings("org/model") == {}


def test_selections_have_the_name_of_what_they_belong_to(run, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "adapter_config.json").touch()
    for folder in (run, tmp_path / "own", tmp_path):
        (folder / "selections.safetensors").touch()
    assert display_name("org/selections.safetensors") == "org"
    assert display_name("own/selections.safetensors") == "own"
    assert display_name("selections.safetensors") == "selections.safetensors"
