"""
Original BEATs checkpoints (microsoft/unilm `beats/`): reading, writing, and conversion to a transformers folder.

```bash
python -m peft_listen.models.beats.convert_beats_original_checkpoint BEATs_iter3_plus_AS2M.pt beats-iter3-plus
```
"""

import argparse
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from .configuration_beats import ORIGINAL_ACTIVATIONS, ORIGINAL_FIELDS, BeatsConfig
from .feature_extraction_beats import BeatsFeatureExtractor
from .modeling_beats import BeatsForAudioClassification, BeatsModel, BeatsPreTrainedModel


BeatsModelType = TypeVar("BeatsModelType", bound=BeatsPreTrainedModel)

# Parts of our parameter names and what the original calls them.
_NAMES = {
    r"^beats\.": "",
    r"^embeddings\.projection\.": "post_extract_proj.",
    r"^embeddings\.": "",
    r"^classifier\.": "predictor.",
    r"\.pos_conv_embed\.conv\.parametrizations\.weight\.original0$": ".pos_conv.0.weight_g",
    r"\.pos_conv_embed\.conv\.parametrizations\.weight\.original1$": ".pos_conv.0.weight_v",
    r"\.pos_conv_embed\.conv\.": ".pos_conv.0.",
    r"\.gru_rel_pos_linear\.": ".grep_linear.",
    r"\.gru_rel_pos_const$": ".grep_a",
}
_POSITION_BIAS = "encoder.relative_attention_bias.weight"
_GATE = re.compile(r"^encoder\.layers\.\d+\.self_attn\.grep_(a|linear\.weight|linear\.bias)$")


def _original_names(name: str, num_layers: int) -> list[str]:
    """What an original file calls one of our parameters; the shared position bias has a copy in every layer."""
    for pattern, replacement in _NAMES.items():
        name = re.sub(pattern, replacement, name)
    if name == _POSITION_BIAS:
        return [f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight" for layer in range(num_layers)]
    return [name]


def _read_original_checkpoint(checkpoint_path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # What unpickling raises depends on the bytes it meets.
        raise OSError(
            f"{os.fspath(checkpoint_path)!r} cannot be read as a PyTorch file of tensors and plain values. Either it is "
            "damaged or no PyTorch file, or it holds pickled code, which is never run here. Get the checkpoint from "
            "its publisher again, or save its `cfg` and `model` alone as a plain dict with `torch.save`."
        ) from error
    if not (
        isinstance(checkpoint, dict)
        and isinstance(checkpoint.get("cfg"), dict)
        and isinstance(checkpoint.get("model"), dict)
        and all(isinstance(tensor, torch.Tensor) for tensor in checkpoint["model"].values())
    ):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"{os.fspath(checkpoint_path)!r} is no original BEATs checkpoint: expected a dict with the dicts `cfg` and "
            f"`model` (tensors by name), found {found}. A folder in transformers' format is loaded by "
            "`from_pretrained`."
        )
    return checkpoint


def load_original_checkpoint(
    model_class: type[BeatsModelType], checkpoint_path: str | os.PathLike[str]
) -> BeatsModelType:
    """Loads an original checkpoint as a `model_class`; see [`~BeatsModel.from_original_checkpoint`]."""
    return _build_model(model_class, _read_original_checkpoint(checkpoint_path))


def _build_model(model_class: type[BeatsModelType], checkpoint: dict[str, Any]) -> BeatsModelType:
    config = BeatsConfig.from_original(checkpoint["cfg"])
    has_head = issubclass(model_class, BeatsForAudioClassification)
    if has_head:
        if not checkpoint["cfg"].get("finetuned_model", False):
            raise ValueError(
                "The original checkpoint is not fine-tuned and has no class head (`finetuned_model` is not set in its "
                "`cfg`). Load it with `BeatsModel`."
            )
        _set_labels(config, checkpoint.get("label_dict"))
    model = model_class(config)
    model.load_state_dict(_from_original_state_dict(model, checkpoint["model"], has_head))
    return model.eval()


def _set_labels(config: BeatsConfig, label_dict: dict[int, str] | None) -> None:
    if label_dict is None:
        return
    num_labels = cast(int, config.num_labels)
    if set(label_dict) != set(range(num_labels)):
        raise ValueError(
            f"`label_dict` must name the classes 0 to {num_labels - 1} (`predictor_class`), but names "
            f"{sorted(label_dict, key=str)}."
        )
    id2label = {index: str(label_dict[index]) for index in range(num_labels)}
    config.id2label = id2label
    config.label2id = {label: index for index, label in id2label.items()}


def _from_original_state_dict(
    model: BeatsPreTrainedModel, original: dict[str, torch.Tensor], has_head: bool
) -> dict[str, torch.Tensor]:
    names = {name: _original_names(name, model.config.num_hidden_layers) for name in model.state_dict()}
    expected = {original_name for original_names in names.values() for original_name in original_names}
    ignored = {name for name in original if not has_head and name.startswith("predictor.")}
    if not model.config.use_relative_position_bias:
        # The original creates the gates even where there is no bias for them to scale.
        ignored |= {name for name in original if _GATE.match(name)}

    problems = _problem("missing", expected - original.keys())
    problems += _problem("unexpected", original.keys() - expected - ignored)
    state_dict = {}
    for name, parameter in model.state_dict().items():
        copies = {original_name: original[original_name] for original_name in names[name] if original_name in original}
        state_dict[name] = next(iter(copies.values()), parameter)
        wrong = {key: tuple(copy.shape) for key, copy in copies.items() if copy.shape != parameter.shape}
        problems += _problem(
            "of the wrong shape",
            [f"{key} {shape} instead of {tuple(parameter.shape)}" for key, shape in wrong.items()],
        )
        if not wrong and any(not torch.equal(copy, state_dict[name]) for copy in copies.values()):
            problems += _problem("different from layer to layer, though shared", names[name])
    if problems:
        raise ValueError(
            f"The weights of the original checkpoint do not fit its `cfg` and {type(model).__name__}.\n"
            + "\n".join(problems)
        )
    return state_dict


def _problem(kind: str, names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return [f"{len(names)} {kind}: {', '.join(names)}"] if names else []


def to_original_checkpoint(model: BeatsPreTrainedModel, checkpoint_path: str | os.PathLike[str]) -> None:
    """
    Writes a BEATs model in the original format, `{"cfg", "model"[, "label_dict"]}`, so that the original code and
    [`~BeatsModel.from_original_checkpoint`] can load it. Weights are stored in float32. The file appears under its name
    only once it is complete.

    Args:
        model ([`BeatsModel`] or [`BeatsForAudioClassification`]): The model to write.
        checkpoint_path (`str` or `os.PathLike`): Path of the file; an existing file is replaced.

    Raises:
        `ValueError`: if the configuration has what the original cannot express (another activation, epsilon or number
            of mel bins).
        `OSError`: if the file cannot be written.
    """
    config = model.config
    if config.hidden_act not in ORIGINAL_ACTIVATIONS or config.layer_norm_eps != 1e-5 or config.num_mel_bins != 128:
        raise ValueError(
            f"The original format has activations {', '.join(map(repr, ORIGINAL_ACTIVATIONS))}, a layer norm epsilon of "
            f"1e-5 and 128 mel bins; the model has `hidden_act={config.hidden_act!r}`, "
            f"`layer_norm_eps={config.layer_norm_eps}` and `num_mel_bins={config.num_mel_bins}`."
        )
    has_head = isinstance(model, BeatsForAudioClassification)
    cfg = {key: getattr(config, field) for key, (field, _) in ORIGINAL_FIELDS.items()}
    cfg |= {"input_patch_size": config.patch_size, "activation_fn": config.hidden_act, "finetuned_model": has_head}
    # The original creates the gates even where there is no bias for them to scale.
    cfg["gru_rel_pos"] = config.use_relative_position_bias and config.use_gated_position_bias
    weights = {
        original_name: tensor.detach().cpu().float().clone()
        for name, tensor in model.state_dict().items()
        for original_name in _original_names(name, config.num_hidden_layers)
    }
    checkpoint: dict[str, Any] = {"cfg": cfg, "model": weights}
    if has_head:
        cfg["predictor_class"] = config.num_labels
        checkpoint["label_dict"] = cast(dict[int, str], config.id2label)

    path = Path(checkpoint_path)
    temporary = _temporary_sibling(path)
    try:
        torch.save(checkpoint, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def convert_beats_checkpoint(checkpoint_path: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> Path:
    """
    Converts an original checkpoint into a folder for `from_pretrained`: configuration, safetensors weights and feature
    extractor. A fine-tuned checkpoint becomes a [`BeatsForAudioClassification`], any other a [`BeatsModel`]. The folder
    appears under its name only once it is complete.

    Args:
        checkpoint_path (`str` or `os.PathLike`): The original file.
        output_dir (`str` or `os.PathLike`): The folder to create; it must not exist, or be empty.

    Returns:
        `pathlib.Path`: The folder.

    Raises:
        `OSError`: if the file cannot be read (see [`~BeatsModel.from_original_checkpoint`]), the folder is not empty, or
            it cannot be written.
        `ValueError`: if the file is no BEATs checkpoint, or its weights do not fit.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(
            f"{str(output_dir)!r} exists and is not an empty folder. Name another one, or remove it."
        )
    checkpoint = _read_original_checkpoint(checkpoint_path)
    is_finetuned = checkpoint["cfg"].get("finetuned_model", False)
    model = _build_model(BeatsForAudioClassification if is_finetuned else BeatsModel, checkpoint)

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(output_dir)
    try:
        model.save_pretrained(temporary)
        BeatsFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(temporary)
        if output_dir.exists():
            output_dir.rmdir()
        temporary.rename(output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output_dir


def _temporary_sibling(path: Path) -> Path:
    # In the same folder, hence on the same file system, so that the final rename is atomic.
    return path.absolute().with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of [`convert_beats_checkpoint`]; `arguments` defaults to those of the process."""
    parser = argparse.ArgumentParser(description="Convert an original BEATs checkpoint to transformers' format.")
    parser.add_argument("checkpoint_path", help="original checkpoint, e.g. BEATs_iter3_plus_AS2M.pt")
    parser.add_argument("output_dir", help="folder to create; must not exist, or be empty")
    options = parser.parse_args(arguments)
    try:
        folder = convert_beats_checkpoint(options.checkpoint_path, options.output_dir)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"Wrote {folder}\n")


if __name__ == "__main__":
    main()
