"""
Original BEATs checkpoints (microsoft/unilm, `beats/`): reading them, and mapping their names to ours.

This module knows the configuration and plain tensors only. The models load checkpoints with it, and
`convert_beats_original_checkpoint` writes them.
"""

import os
import re
from collections.abc import Iterable
from typing import Any, cast

import torch

from .configuration_beats import BeatsConfig


# Patterns in our parameter names and their replacements in the original's, applied in this order.
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


def original_names(name: str, num_layers: int) -> list[str]:
    """
    Names of one of our parameters in an original checkpoint: a single one, except for the position bias, which our
    layers share and the original stores once per layer.
    """
    for pattern, replacement in _NAMES.items():
        name = re.sub(pattern, replacement, name)
    if name == _POSITION_BIAS:
        return [f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight" for layer in range(num_layers)]
    return [name]


def has_class_head(state_dict: Iterable[str]) -> bool:
    """Whether one of our state dicts (or its parameter names) contains a class head."""
    return any(name.startswith("classifier.") for name in state_dict)


def read_original_checkpoint(checkpoint_path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Reads an original checkpoint with `weights_only=True`.

    Args:
        checkpoint_path (`str` or `os.PathLike`): Path of the file.

    Returns:
        `dict`: the checkpoint, with the dicts `cfg` and `model` (tensors by name) and, if it is fine-tuned, usually
        `label_dict`.

    Raises:
        `OSError`: if the file is missing, cannot be read, or contains more than tensors and plain values.
        `ValueError`: if it is not a BEATs checkpoint.
    """
    try:
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # The type of an unpickling error depends on the bytes of the file.
        raise OSError(
            f"{os.fspath(checkpoint_path)!r} cannot be read as a PyTorch file of tensors and plain values. The file is "
            "damaged, or is not a PyTorch file, or contains pickled code, which is never run here. Download the "
            "checkpoint again, or save only its `cfg` and `model`, as a plain dict, with `torch.save`."
        ) from error
    if not (
        isinstance(checkpoint, dict)
        and isinstance(checkpoint.get("cfg"), dict)
        and isinstance(checkpoint.get("model"), dict)
        and all(isinstance(tensor, torch.Tensor) for tensor in checkpoint["model"].values())
    ):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"{os.fspath(checkpoint_path)!r} is not an original BEATs checkpoint: expected a dict with the dicts `cfg` "
            f"and `model` (tensors by name), found {found}. Load a folder in transformers' format with "
            "`from_pretrained`."
        )
    return checkpoint


def set_labels(config: BeatsConfig, label_dict: dict[int, str] | None) -> None:
    """
    Sets `config.id2label` and `config.label2id` from the `label_dict` of a fine-tuned checkpoint, if it has one.

    Raises:
        `ValueError`: if `label_dict` does not name every class.
    """
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


def from_original_state_dict(
    original: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], config: BeatsConfig, model_name: str
) -> dict[str, torch.Tensor]:
    """
    Renames the weights of an original checkpoint.

    Args:
        original (`dict[str, torch.Tensor]`): The checkpoint's `model`.
        expected (`dict[str, torch.Tensor]`): State dict of the model to load, for its names and shapes.
        config ([`BeatsConfig`]): Configuration of that model.
        model_name (`str`): Class of that model, for the error message.

    Returns:
        `dict[str, torch.Tensor]`: the weights, with the names of `expected`.

    Raises:
        `ValueError`: if weights are missing, unexpected, of the wrong shape, or differ between layers although our
            layers share them; the message lists them.
    """
    names = {name: original_names(name, config.num_hidden_layers) for name in expected}
    needed = {original_name for of_parameter in names.values() for original_name in of_parameter}
    # A fine-tuned checkpoint may be loaded without its class head.
    ignored = {name for name in original if not has_class_head(expected) and name.startswith("predictor.")}
    if not config.use_relative_position_bias:
        # The original creates the gates even if there is no bias for them to scale.
        ignored |= {name for name in original if _GATE.match(name)}

    problems = _problem("missing", needed - original.keys())
    problems += _problem("unexpected", original.keys() - needed - ignored)
    state_dict = {}
    for name, parameter in expected.items():
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
            f"The weights of the original checkpoint do not fit its `cfg` and {model_name}.\n" + "\n".join(problems)
        )
    return state_dict


def _problem(kind: str, names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return [f"{len(names)} {kind}: {', '.join(names)}"] if names else []
