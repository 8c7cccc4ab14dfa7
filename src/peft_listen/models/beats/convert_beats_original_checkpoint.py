"""
Converts original BEATs checkpoints (microsoft/unilm, `beats/`) to transformers' format, and writes the original format.

```bash
python -m peft_listen.models.beats.convert_beats_original_checkpoint BEATs_iter3_plus_AS2M.pt beats-iter3-plus
```
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ...files import atomic_path
from .configuration_beats import ORIGINAL_ACTIVATIONS, ORIGINAL_FIELDS
from .feature_extraction_beats import BeatsFeatureExtractor
from .modeling_beats import BeatsForAudioClassification, BeatsModel, BeatsPreTrainedModel
from .original_checkpoint import has_class_head, original_names, read_original_checkpoint


def to_original_checkpoint(model: BeatsPreTrainedModel, checkpoint_path: str | os.PathLike[str]) -> None:
    """
    Writes a BEATs model in the original format, `{"cfg", "model"[, "label_dict"]}`, so that the original code and
    [`~BeatsModel.from_original_checkpoint`] can load it. Weights are stored in float32. The file is written under a
    temporary name and renamed when it is complete.

    Args:
        model ([`BeatsModel`] or [`BeatsForAudioClassification`]): The model to write.
        checkpoint_path (`str` or `os.PathLike`): Path of the file; an existing file is replaced.

    Raises:
        `ValueError`: if the original format cannot express the configuration (another activation, epsilon or number of
            mel bins).
        `OSError`: if the file cannot be written.
    """
    config = model.config
    if config.hidden_act not in ORIGINAL_ACTIVATIONS or config.layer_norm_eps != 1e-5 or config.num_mel_bins != 128:
        raise ValueError(
            f"The original format has activations {', '.join(map(repr, ORIGINAL_ACTIVATIONS))}, a layer norm epsilon of "
            f"1e-5 and 128 mel bins; the model has `hidden_act={config.hidden_act!r}`, "
            f"`layer_norm_eps={config.layer_norm_eps}` and `num_mel_bins={config.num_mel_bins}`."
        )
    state_dict = model.state_dict()
    has_head = has_class_head(state_dict)
    cfg = {key: getattr(config, field) for key, (field, _) in ORIGINAL_FIELDS.items()}
    cfg |= {"input_patch_size": config.patch_size, "activation_fn": config.hidden_act, "finetuned_model": has_head}
    # The original creates the gates even if there is no bias for them to scale.
    cfg["gru_rel_pos"] = config.use_relative_position_bias and config.use_gated_position_bias
    weights = {
        original_name: tensor.detach().cpu().float().clone()
        for name, tensor in state_dict.items()
        for original_name in original_names(name, config.num_hidden_layers)
    }
    checkpoint: dict[str, Any] = {"cfg": cfg, "model": weights}
    if has_head:
        cfg["predictor_class"] = config.num_labels
        checkpoint["label_dict"] = cast(dict[int, str], config.id2label)

    with atomic_path(checkpoint_path) as temporary:
        torch.save(checkpoint, temporary)


def convert_beats_checkpoint(checkpoint_path: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> Path:
    """
    Converts an original checkpoint into a folder for `from_pretrained`: configuration, safetensors weights and feature
    extractor. A fine-tuned checkpoint becomes a [`BeatsForAudioClassification`], any other a [`BeatsModel`]. The folder
    is written under a temporary name and renamed when it is complete.

    Args:
        checkpoint_path (`str` or `os.PathLike`): The original file.
        output_dir (`str` or `os.PathLike`): The folder to create; it must not exist, or be empty.

    Returns:
        `pathlib.Path`: The folder.

    Raises:
        `OSError`: if the file cannot be read (see [`~BeatsModel.from_original_checkpoint`]), the folder is not empty, or
            it cannot be written.
        `ValueError`: if the file is not a BEATs checkpoint, or its weights do not fit.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(
            f"{str(output_dir)!r} exists and is not an empty folder. Pass another folder, or remove this one."
        )
    checkpoint = read_original_checkpoint(checkpoint_path)
    is_finetuned = checkpoint["cfg"].get("finetuned_model", False)
    model_class = BeatsForAudioClassification if is_finetuned else BeatsModel
    model = model_class.from_original(checkpoint)

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output_dir) as temporary:
        model.save_pretrained(temporary)
        BeatsFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(temporary)
    return output_dir


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
