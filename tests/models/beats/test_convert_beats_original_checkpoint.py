import os
import subprocess
import sys

import pytest
import torch

from peft_listen import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel
from peft_listen.models.beats import convert_beats_original_checkpoint as convert
from peft_listen.models.beats.convert_beats_original_checkpoint import convert_beats_checkpoint, to_original_checkpoint
from peft_listen.models.beats.original_checkpoint import original_names


VARIANTS = ["iter3plus", "finetuned", "postnorm_nogate", "prenorm"]


def model_class_of(variant):
    return BeatsForAudioClassification if variant == "finetuned" else BeatsModel


@pytest.fixture
def edited_checkpoint(checkpoints, tmp_path):
    """Writes a modified original checkpoint and returns its path."""

    def edit(change, variant="iter3plus"):
        checkpoint = torch.load(checkpoints[variant], weights_only=True)
        checkpoint = change(checkpoint) or checkpoint
        path = tmp_path / "edited.pt"
        torch.save(checkpoint, path)
        return path

    return edit


# Reading


@pytest.mark.parametrize("size", ["pretrained", "finetuned"])
def test_the_released_sizes_have_the_original_names_and_shapes(released_sizes, tmp_path, size):
    config = BeatsConfig.from_original(released_sizes[size]["cfg"])
    with torch.device("meta"):
        model = (BeatsForAudioClassification if size == "finetuned" else BeatsModel)(config)
    shapes = {
        name: list(tensor.shape)
        for ours, tensor in model.state_dict().items()
        for name in original_names(ours, config.num_hidden_layers)
    }
    assert shapes == released_sizes[size]["params"]
    assert sum(parameter.numel() for parameter in model.parameters()) == released_sizes[size]["n_params"]


def test_a_finetuned_checkpoint_loads_as_encoder_without_its_head(checkpoints):
    encoder = BeatsModel.from_original_checkpoint(checkpoints["finetuned"])
    classifier = BeatsForAudioClassification.from_original_checkpoint(checkpoints["finetuned"])
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, classifier.beats.state_dict()[name])


def test_the_labels_come_from_label_dict(checkpoints, edited_checkpoint):
    config = BeatsForAudioClassification.from_original_checkpoint(checkpoints["finetuned"]).config
    assert config.id2label[3] == "/m/003"
    assert config.label2id["/m/003"] == 3
    assert config.num_labels == 10
    unnamed = edited_checkpoint(lambda checkpoint: checkpoint.pop("label_dict") and checkpoint, "finetuned")
    assert BeatsForAudioClassification.from_original_checkpoint(unnamed).config.num_labels == 10


def test_gates_without_a_bias_to_scale_are_ignored(edited_checkpoint):
    def without_bias(checkpoint):
        checkpoint["cfg"]["relative_position_embedding"] = False
        for name in [name for name in checkpoint["model"] if "relative_attention_bias" in name]:
            del checkpoint["model"][name]

    model = BeatsModel.from_original_checkpoint(edited_checkpoint(without_bias))
    assert not any("gru_rel_pos" in name for name in model.state_dict())


def remove(*names):
    def change(checkpoint):
        for name in names:
            del checkpoint["model"][name]

    return change


def put(name, tensor):
    return lambda checkpoint: checkpoint["model"].update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove("encoder.layers.1.fc1.bias", "layer_norm.weight"),
            "2 missing: encoder.layers.1.fc1.bias, layer_norm.weight",
        ),
        (put("decoder.weight", torch.zeros(1)), "1 unexpected: decoder.weight"),
        (put("encoder.layers.0.fc1.weight", torch.zeros(3, 64)), r"fc1.weight \(3, 64\) instead of \(128, 64\)"),
        (
            put("encoder.layers.2.self_attn.relative_attention_bias.weight", torch.zeros(320, 4)),
            "different from layer to layer",
        ),
        (
            put("encoder.layers.2.self_attn.relative_attention_bias.weight", torch.zeros(32, 4)),
            r"layers.2.self_attn.relative_attention_bias.weight \(32, 4\) instead of \(320, 4\)",
        ),
        (
            remove("encoder.layers.2.self_attn.relative_attention_bias.weight"),
            "1 missing: encoder.layers.2.self_attn.rel",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(edited_checkpoint, change, message):
    with pytest.raises(ValueError, match=message):
        BeatsModel.from_original_checkpoint(edited_checkpoint(change))


def test_a_classifier_needs_the_head(checkpoints, edited_checkpoint):
    with pytest.raises(ValueError, match=r"has no class head .* Load it with `BeatsModel`"):
        BeatsForAudioClassification.from_original_checkpoint(checkpoints["iter3plus"])
    with pytest.raises(ValueError, match=r"1 missing: predictor.bias"):
        BeatsForAudioClassification.from_original_checkpoint(edited_checkpoint(remove("predictor.bias"), "finetuned"))


def test_labels_that_do_not_name_every_class_are_refused(edited_checkpoint):
    path = edited_checkpoint(lambda checkpoint: checkpoint["label_dict"].pop(4) and None, "finetuned")
    with pytest.raises(ValueError, match="`label_dict` must name the classes 0 to 9"):
        BeatsForAudioClassification.from_original_checkpoint(path)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch, edited_checkpoint):
    monkeypatch.chdir(tmp_path)
    path = edited_checkpoint(lambda checkpoint: checkpoint | {"extra": RunsCode()})
    with pytest.raises(OSError, match="pickled code, which is never run here"):
        BeatsModel.from_original_checkpoint(path)
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 broken archive"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"damaged\.pt' cannot be read as a PyTorch file"):
        BeatsModel.from_original_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(tmp_path, checkpoints):
    path = tmp_path / "truncated.pt"
    path.write_bytes(checkpoints["iter3plus"].read_bytes()[:100_000])
    with pytest.raises(OSError, match=r"truncated\.pt' cannot be read"):
        BeatsModel.from_original_checkpoint(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        BeatsModel.from_original_checkpoint(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": {}}, r"found \['state_dict'\]"),
        ({"cfg": {}, "model": [1]}, r"found \['cfg', 'model'\]"),
        ({"cfg": {}, "model": {"a": 1}}, r"found \['cfg', 'model'\]"),
        (torch.zeros(2), "found Tensor"),
    ],
)
def test_a_file_that_is_not_a_beats_checkpoint_is_refused(tmp_path, content, found):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"other\.pt' is not an original BEATs checkpoint: .*{found}"):
        BeatsModel.from_original_checkpoint(path)


# Writing the original format


@pytest.mark.parametrize("variant", VARIANTS)
def test_writing_and_reading_the_original_format_is_exact(checkpoints, tmp_path, variant):
    model = model_class_of(variant).from_original_checkpoint(checkpoints[variant])
    path = tmp_path / "written.pt"
    to_original_checkpoint(model, path)
    assert os.listdir(tmp_path) == ["written.pt"]

    original = torch.load(checkpoints[variant], weights_only=True)
    written = torch.load(path, weights_only=True)
    assert written.keys() == original.keys()
    assert written.get("label_dict") == original.get("label_dict")
    assert written["model"].keys() == original["model"].keys()
    assert all(torch.equal(tensor, original["model"][name]) for name, tensor in written["model"].items())
    # `layer_wise_gradient_decay_ratio` only affects the original's training.
    assert all(written["cfg"][key] == value for key, value in original["cfg"].items() if "decay" not in key)
    loaded = model_class_of(variant).from_original_checkpoint(path)
    assert loaded.config.to_dict() == model.config.to_dict()


def test_half_precision_weights_are_written_as_float32(checkpoints, tmp_path):
    model = BeatsModel.from_original_checkpoint(checkpoints["iter3plus"]).half()
    to_original_checkpoint(model, tmp_path / "written.pt")
    weights = torch.load(tmp_path / "written.pt", weights_only=True)["model"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize("fields", [{"hidden_act": "silu"}, {"layer_norm_eps": 1e-6}, {"num_mel_bins": 64}])
def test_a_configuration_that_the_original_cannot_express_is_refused(tmp_path, fields):
    model = BeatsModel(BeatsConfig(hidden_size=48, num_hidden_layers=1, patch_embedding_size=16, **fields))
    with pytest.raises(ValueError, match=r"The original format has activations .* 128 mel bins"):
        to_original_checkpoint(model, tmp_path / "written.pt")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(checkpoints, tmp_path, monkeypatch):
    path = tmp_path / "written.pt"
    path.write_bytes(b"old")

    def fail_half_way(checkpoint, temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    model = BeatsModel.from_original_checkpoint(checkpoints["iter3plus"])
    monkeypatch.setattr(convert.torch, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        to_original_checkpoint(model, path)
    assert os.listdir(tmp_path) == ["written.pt"]
    assert path.read_bytes() == b"old"


# Converting


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_converted_folder_contains_model_and_feature_extractor(checkpoints, tmp_path, variant):
    folder = convert_beats_checkpoint(checkpoints[variant], tmp_path / "new" / "folder")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert os.listdir(tmp_path / "new") == ["folder"]

    inputs = BeatsFeatureExtractor.from_pretrained(folder)(
        torch.randn(8000) / 10, sampling_rate=16000, return_tensors="pt"
    )
    expected = model_class_of(variant).from_original_checkpoint(checkpoints[variant])
    converted = model_class_of(variant).from_pretrained(folder)
    assert torch.equal(converted(**inputs)[0], expected(**inputs)[0])
    assert converted.config.id2label == expected.config.id2label


def test_an_empty_folder_may_be_filled(checkpoints, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert convert_beats_checkpoint(checkpoints["iter3plus"], str(folder)) == folder
    assert (folder / "model.safetensors").is_file()


def test_a_folder_with_content_or_a_file_is_not_overwritten(checkpoints, tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    for output in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(FileExistsError, match="is not an empty folder"):
            convert_beats_checkpoint(checkpoints["iter3plus"], output)
    assert (tmp_path / "kept.txt").read_text() == "kept"
    assert os.listdir(tmp_path) == ["kept.txt"]


@pytest.mark.parametrize("exception", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_no_files(checkpoints, tmp_path, monkeypatch, exception):
    def stop(self, folder):
        assert os.path.isfile(os.path.join(folder, "model.safetensors"))
        raise exception

    monkeypatch.setattr(convert.BeatsFeatureExtractor, "save_pretrained", stop)
    with pytest.raises(type(exception)):
        convert_beats_checkpoint(checkpoints["iter3plus"], tmp_path / "folder")
    assert os.listdir(tmp_path) == []


def test_a_bad_checkpoint_leaves_no_files(tmp_path, edited_checkpoint):
    path = edited_checkpoint(put("decoder.weight", torch.zeros(1)))
    with pytest.raises(ValueError, match="1 unexpected"):
        convert_beats_checkpoint(path, tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == ["edited.pt"]


def test_the_command_line_converts(checkpoints, tmp_path):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", convert.__name__]
    result = subprocess.run(
        [*command, str(checkpoints["iter3plus"]), str(tmp_path / "folder")], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"Wrote {tmp_path / 'folder'}\n"
    assert (tmp_path / "folder" / "model.safetensors").is_file()


def test_the_command_line_reports_errors_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert.main([str(tmp_path / "absent.pt"), str(tmp_path / "folder")])
    assert stopped.value.code == 2
    assert "absent.pt" in capsys.readouterr().err.splitlines()[-1]
