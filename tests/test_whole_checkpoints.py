"""A checkpoint is loaded whole or not at all: missing weights are an error, and a save that is killed mixes nothing."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, pipeline

from peft_listen import (
    AudioListenConfig,
    AudioListenForCausalLM,
    AudioListenModel,
    BeatsConfig,
    BeatsForAudioClassification,
    BeatsModel,
    ListenConfig,
)
from peft_listen.folder_saving import replaced_checkpoint
from tests.kills import killed_at_change
from tests.small_models import QFORMER, make_beats_config, make_llm


def remove_weights(folder: Path, *beginnings: str) -> list[str]:
    """Removes the weights whose names begin so, and returns the names."""
    weights = load_file(folder / "model.safetensors")
    removed = [name for name in weights if name.startswith(beginnings)]
    assert removed
    kept = {name: tensor for name, tensor in weights.items() if name not in removed}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return removed


LOADERS = {
    "AudioListenForCausalLM": AudioListenForCausalLM.from_pretrained,
    "AudioListenModel": AudioListenModel.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained,
    "AutoModelForMultimodalLM": AutoModelForMultimodalLM.from_pretrained,
    "pipeline": lambda folder: pipeline("audio-text-to-text", model=str(folder)),
}


class TestMissingWeights:
    @pytest.fixture
    def folder(self, composite_folder, tmp_path) -> Path:
        shutil.copytree(composite_folder, tmp_path / "saved")
        return tmp_path / "saved"

    @pytest.mark.parametrize(
        "beginning",
        [
            "lm_head.weight",
            "model.multi_modal_projector.query_tokens",
            "model.multi_modal_projector.linear",
            "model.speech_tower.layers.0.fc1.weight",
            "model.speech_tower.embed_positions",
            "model.language_model.embed_tokens",
            "model.language_model.layers.1.",
            "model.multi_modal_projector.",
        ],
    )
    def test_of_a_composite_are_named(self, folder, beginning):
        removed = remove_weights(folder, beginning)
        with pytest.raises(ValueError, match=rf"lacks {len(removed)} of the .*weights.*{min(removed)}"):
            AudioListenForCausalLM.from_pretrained(folder)

    @pytest.mark.parametrize("loader", LOADERS)
    def test_by_every_door(self, folder, loader):
        remove_weights(folder, "model.multi_modal_projector.query_tokens")
        with pytest.raises(ValueError, match="query_tokens"):
            LOADERS[loader](folder)

    def test_under_an_adapter(self, folder, make_adapted, tmp_path):
        make_adapted("listen").save_pretrained(tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(folder)}))
        remove_weights(folder, "model.language_model.layers.0.")
        for load in LOADERS.values():
            with pytest.raises(ValueError, match=r"language_model\.layers\.0\."):
                load(tmp_path / "adapter")

    def test_are_reported_to_a_caller_who_asks_for_the_report(self, folder):
        removed = remove_weights(folder, "lm_head.weight")
        _, info = AudioListenForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert info["missing_keys"] == set(removed)

    @pytest.mark.parametrize("part", ["speech", "sound", "llm"])
    @pytest.mark.parametrize("save_frozen", [None, False])
    def test_of_a_part_are_named(self, published_parts, tmp_path, part, save_frozen):
        parts = {name: tmp_path / name for name in published_parts}
        for name, source in published_parts.items():
            shutil.copytree(source, parts[name])
        if save_frozen is False:
            model = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)
            model.save_pretrained(tmp_path / "saved", save_frozen=False)
        beginning = {"speech": "model.encoder.layers.0.fc2", "sound": "encoder.layers.0", "llm": "model.layers.1.mlp"}
        removed = remove_weights(parts[part], beginning[part], beginning[part].removeprefix("model."))
        with pytest.raises(ValueError, match=rf"`{part}`: .*{part} lacks {len(removed)} of the .* weights"):
            if save_frozen is False:
                AudioListenForCausalLM.from_pretrained(tmp_path / "saved")
            else:
                AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)

    @pytest.mark.parametrize("model_class", [BeatsModel, BeatsForAudioClassification])
    def test_of_a_sound_encoder_are_named(self, tmp_path, model_class):
        model_class(make_beats_config()).save_pretrained(tmp_path)
        model_class.from_pretrained(tmp_path)
        prefix = "" if model_class is BeatsModel else "beats."
        remove_weights(tmp_path, f"{prefix}encoder.layers.0.fc1.weight", f"{prefix}encoder.layers.0.")
        with pytest.raises(ValueError, match=r"encoder\.layers\.0\."):
            model_class.from_pretrained(tmp_path)

    def test_a_new_class_head_is_not_missing(self, tmp_path):
        BeatsModel(make_beats_config()).save_pretrained(tmp_path)
        assert BeatsForAudioClassification.from_pretrained(tmp_path).classifier.weight.isfinite().all()

    def test_tied_weights_are_not_missing(self, make_model, tmp_path):
        make_model(llm="llama_tied").save_pretrained(tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        AudioListenForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("leftover", [None, "model.safetensors", "processor_config.json"])
@pytest.mark.parametrize(
    "model_class", [AudioListenForCausalLM, AudioListenModel, BeatsModel, AudioListenConfig, BeatsConfig]
)
def test_a_folder_without_a_configuration_is_not_a_model_of_default_size(
    composite_folder, tmp_path, model_class, leftover
):
    if leftover is not None:
        shutil.copy(composite_folder / leftover, tmp_path)
    with pytest.raises(OSError, match=rf"{tmp_path.name} has no `config\.json`"):
        model_class.from_pretrained(tmp_path)


def composite(scale: float, window_stride: int) -> AudioListenForCausalLM:
    from tests.small_models import make_model

    model = make_model(window_stride=window_stride)
    with torch.no_grad():
        model.lm_head.weight.fill_(scale)
    return model


def adapter(scale: float, prompt_length: int) -> PeftModel:
    model = get_peft_model(make_llm("llama"), ListenConfig(pool_size=8, prompt_length=prompt_length))
    with torch.no_grad():
        model.base_model.layer.listen_pools["default"].values.fill_(scale)
    return model


def load_composite(folder: Path) -> tuple[float, int]:
    model = AudioListenForCausalLM.from_pretrained(folder)
    return float(model.lm_head.weight[0, 0]), model.config.window_stride


def load_listen(folder: Path) -> tuple[float, int]:
    model = PeftModel.from_pretrained(make_llm("llama"), folder)
    pool = model.base_model.layer.listen_pools["default"]
    return float(pool.values[0, 0]), model.peft_config["default"].prompt_length


KINDS = {"composite": (composite, load_composite), "adapter": (adapter, load_listen)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "composite" else kind for kind in KINDS]
)
def test_a_killed_save_over_an_older_checkpoint_mixes_nothing(kind, tmp_path):
    build, load = KINDS[kind]
    old, new = (build(1.0, 2), build(2.0, 3))
    seen = set()
    for number in range(1, 100):
        folder = tmp_path / f"run{number}" / "saved"
        old.save_pretrained(folder)
        assert load(folder) == (1.0, 2)
        ended = killed_at_change(number, folder, lambda folder=folder: new.save_pretrained(folder))
        try:
            found = load(folder)
        except (OSError, ValueError):
            found = None
        assert found in ((1.0, 2), (2.0, 3), None), f"killed at change {number}"
        seen.add(found)
        new.save_pretrained(folder)  # cleans up after the process that was killed
        assert load(folder) == (2.0, 3)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        shutil.rmtree(folder.parent)
        if ended:
            break
    assert ended and number > 5 and (1.0, 2) in seen and (2.0, 3) in seen


FILES = ("model.safetensors", "adapter_model.safetensors", "adapter_config.json", "config.json")
FILES_OF_LORA = ("lora/adapter_model.safetensors", "lora/adapter_config.json")


def save_version(version: str, folder: Path, names: tuple[str, ...]) -> None:
    with replaced_checkpoint(folder, dropped=FILES_OF_LORA) as temporary:
        (temporary / "lora").mkdir()
        for name in names:
            (temporary / name).write_text(version)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("new", [(*FILES, *FILES_OF_LORA), FILES], ids=["with lora", "without lora"])
def test_a_killed_save_mixes_no_adapter_of_a_subfolder(new, tmp_path):
    old = (*FILES, *FILES_OF_LORA)
    whole = (dict.fromkeys(old, "old"), dict.fromkeys(new, "new"))
    seen = []
    for number in range(1, 100):
        folder = tmp_path / f"run{number}"
        save_version("old", folder, old)
        ended = killed_at_change(number, folder, lambda folder=folder: save_version("new", folder, new))
        if (folder / "config.json").exists():
            found = {name: (folder / name).read_text() for name in old if (folder / name).exists()}
            assert found in whole, f"killed at change {number}"
            seen.append(found)
        if ended:
            break
    assert ended and seen[0] == whole[0] and seen[-1] == whole[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_that_fails_leaves_the_old_checkpoint(kind, tmp_path, monkeypatch):
    build, load = KINDS[kind]
    folder = tmp_path / "saved"
    build(1.0, 2).save_pretrained(folder)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    for name in ("transformers.modeling_utils.safe_save_file", "peft.peft_model.safe_save_file"):
        monkeypatch.setattr(name, fail)
    with pytest.raises(OSError, match="No space left"):
        build(2.0, 3).save_pretrained(folder)
    monkeypatch.undo()
    assert load(folder) == (1.0, 2)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_shards_of_an_older_checkpoint_are_removed_and_other_files_stay(make_model, tmp_path):
    model = make_model()
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    AudioListenForCausalLM.from_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_several_adapters_and_the_model_card_are_saved(tmp_path):
    model = adapter(1.0, 2)
    model.add_adapter("second", ListenConfig(pool_size=4, prompt_length=2))
    model.save_pretrained(tmp_path / "saved")
    card = tmp_path / "saved" / "README.md"
    assert "saved" in card.read_text()
    card.write_text(card.read_text() + "\nMy own words.\n")
    for _ in range(2):
        model.save_pretrained(tmp_path / "saved")
    assert "My own words." in card.read_text()
    for folder in (tmp_path / "saved", tmp_path / "saved" / "second"):
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert not [path for path in (tmp_path / "saved").iterdir() if path.name.startswith(".")]


def test_the_folder_of_a_running_process_is_left_alone(tmp_path):
    with replaced_checkpoint(tmp_path) as first:
        machine, _, start, random = first.parent.name.removesuffix(".tmp").rpartition(".")[2].split("-")
        other = tmp_path / f".checkpoint.{machine}-999999999-{start}-{random}.tmp"
        other.mkdir()
        (first / "config.json").write_text("{}")
        process = os.fork()
        if process == 0:
            with replaced_checkpoint(tmp_path):
                os._exit(0 if first.exists() and not other.exists() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_killed_process_of_the_same_id_is_not_running(tmp_path):
    with replaced_checkpoint(tmp_path) as first:
        beginning, pid, start, random = first.parent.name.removesuffix(".tmp").rsplit("-", 3)
    assert int(pid) == os.getpid()
    # In a container, the process ids start again at 1, so the next process often has the id of the killed one.
    old = tmp_path / f"{beginning}-{pid}-{int(start) - 3_600}-{random}.tmp"
    (old / tmp_path.name).mkdir(parents=True)
    with replaced_checkpoint(tmp_path) as folder:
        assert not old.exists()
        (folder / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_base_model_replaces_the_adapter_beside_an_older_one(make_model, make_adapted, tmp_path):
    make_adapted("listen").save_pretrained(tmp_path)
    make_adapted("listen").save_pretrained(tmp_path / "other")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    make_model().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter_*"))
    assert len(list((tmp_path / "other").glob("adapter_*"))) == 2
    make_adapted("listen").save_pretrained(tmp_path)  # an adapter is added to a base model
    assert {"config.json", "model.safetensors", "adapter_config.json"} <= {path.name for path in tmp_path.iterdir()}
