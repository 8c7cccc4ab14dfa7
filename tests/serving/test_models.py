"""Several adapters of one base model, which is loaded once."""

import json
import shutil

import pytest
from peft import get_peft_model
from transformers import AutoModelForMultimodalLM, pipeline

from peft_listen import ListenConfig
from peft_listen.serving import load_models, name_models
from tests.serving.conftest import client_of, running


QUESTION = "What is it?"


@pytest.fixture(scope="module")
def adapters(composite_folder, tmp_path_factory):
    """Folders of three adapters with different prompts and projectors, each in a folder `model`."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("dogs", "cats", "birds")):
        base = AutoModelForMultimodalLM.from_pretrained(composite_folder)
        settings = {"pool_size": 8 + seed, "prompt_length": 2 + seed, "init_weights": False, "seed": seed}
        model = get_peft_model(base, ListenConfig(**settings, modules_to_save=["multi_modal_projector"]))
        for parameter_name, parameter in model.named_parameters():
            if "modules_to_save" in parameter_name:
                parameter.data *= 1 + seed
        model.save_pretrained(folder / name / "model")
    return folder


def test_the_name_in_a_request_selects_the_adapter(adapters, clips, as_part):
    names = ["dogs", "cats", "birds"]
    models = load_models([f"{name}={adapters / name / 'model'}" for name in names])
    assert models.names == names
    expected = {}
    for name in names:
        pipe = pipeline("audio-text-to-text", model=str(adapters / name / "model"))
        expected[name] = pipe(clips[0], text=QUESTION, max_new_tokens=6)[0]["generated_text"]
    assert len(set(expected.values())) == 3, "the test needs different answers"
    with running(models, max_new_tokens=6) as url, client_of(url) as client:
        assert [model.id for model in client.models.list()] == names
        messages = [{"role": "user", "content": [as_part(clips[0]), {"type": "text", "text": QUESTION}]}]
        for name in [*names, *reversed(names), "dogs"]:
            completion = client.chat.completions.create(model=name, messages=messages)
            assert (completion.model, completion.choices[0].message.content) == (name, expected[name])


def test_names_are_those_of_folders_and_must_differ(adapters):
    folder = str(adapters / "dogs" / "model")
    assert load_models([folder + "/"]).names == ["model"]
    with pytest.raises(ValueError, match=r"would both be served as 'model'. Give them names: one=.* two="):
        load_models([folder, str(adapters / "cats" / "model")])
    with pytest.raises(ValueError, match="at least one"):
        load_models([])


def test_the_model_of_a_run_has_the_name_of_the_run(tmp_path, monkeypatch):
    for run in ("dogs", "cats"):
        (tmp_path / run / "model").mkdir(parents=True)
    (tmp_path / "dogs" / "settings.json").write_text("{}")
    dogs, cats = (str(tmp_path / run / "model") for run in ("dogs", "cats"))
    assert name_models([dogs, cats]) == {"dogs": dogs, "model": cats}
    monkeypatch.chdir(tmp_path / "dogs")
    assert name_models(["model/"]) == {"dogs": "model/"}
    assert name_models([f"own={dogs}"]) == {"own": dogs}


def test_models_with_other_bases_are_refused(adapters, composite_folder, tmp_path):
    first = f"dogs={adapters / 'dogs' / 'model'}"
    with pytest.raises(ValueError, match=r"adapters of the same base model: .* is not an adapter"):
        load_models([first, str(composite_folder)])
    config = json.loads((adapters / "cats" / "model" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/other"}))
    with pytest.raises(ValueError, match=r"is an adapter of 'org/other'"):
        load_models([first, str(tmp_path)])
    shutil.copytree(adapters / "cats" / "model", tmp_path / "both")
    shutil.copytree(adapters / "cats" / "model", tmp_path / "both" / "lora")
    with pytest.raises(ValueError, match=r"both' has a LoRA adapter beside the prompts"):
        load_models([first, str(tmp_path / "both")])
