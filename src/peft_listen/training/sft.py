"""Configuration of TRL's `SFTTrainer` for audio data: its defaults would drop the audio."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from .checks import check_trainer_arguments


if TYPE_CHECKING:
    from trl import SFTConfig


# Required values, and the effect of any other value on examples with audio.
_REQUIRED = {
    "remove_unused_columns": (False, "removes the `audio` column before the collator receives it"),
    "packing": (False, "puts several examples into one row, which requires tokenizing them without their audio"),
    "eval_packing": (False, "puts several examples into one row, which requires tokenizing them without their audio"),
    "padding_free": (False, "replaces the collator that loads the audio"),
    "assistant_only_loss": (False, "tokenizes the examples without their audio; the collator masks the prompt itself"),
    "max_length": (None, "would truncate audio tokens but not the audio features that replace them"),
}


def sft_config(output_dir: str | os.PathLike[str], **kwargs: Any) -> SFTConfig:
    """
    Creates a [`~trl.SFTConfig`] with which TRL's `SFTTrainer` can train [`AudioListenForCausalLM`].

    By default, `SFTTrainer` prepares the dataset itself and removes unknown columns, so the model would be trained on
    text without audio. With this configuration, the collator receives the examples unchanged.

    Args:
        output_dir (`str` or `os.PathLike`): folder for checkpoints.
        **kwargs (`Any`): other fields of [`~trl.SFTConfig`], such as `learning_rate`.

    Returns:
        [`~trl.SFTConfig`]

    Raises:
        ImportError: if trl is not installed.
        ValueError: for a field value with which the audio would be lost; the message names the field.

    Example:

    ```python
    trainer = SFTTrainer(
        model,
        sft_config("output", per_device_train_batch_size=8),
        train_dataset=dataset,  # rows of {"audio", "instruction", "answer", "task"}
        data_collator=AudioListenCollator(processor, supervised_logits_only=False),
        processing_class=processor,
        callbacks=[ListenCallback()],
    )
    ```
    """
    try:
        from trl import SFTConfig
    except ImportError as error:
        raise ImportError('SFTTrainer needs trl: pip install "peft-listen[train]"') from error

    dataset_kwargs = {"skip_prepare_dataset": True, **(kwargs.pop("dataset_kwargs", None) or {})}
    if not dataset_kwargs["skip_prepare_dataset"]:
        raise ValueError(
            "`dataset_kwargs={'skip_prepare_dataset': False}` tokenizes the examples without their audio. Leave it out."
        )
    for name, (required, consequence) in _REQUIRED.items():
        if kwargs.setdefault(name, required) != required:
            raise ValueError(f"`{name}={kwargs[name]!r}` {consequence}. Leave it out, or set it to {required}.")
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__:
        # The newer name of `gradient_checkpointing`; transformers warns of the older one, which is TRL's default.
        default = SFTConfig.__dataclass_fields__["gradient_checkpointing"].default
        kwargs.setdefault("activation_checkpointing", kwargs.pop("gradient_checkpointing", default))
    # Pinned memory needs an accelerator; torch warns of it in every run without one.
    kwargs.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    config = SFTConfig(output_dir=str(output_dir), dataset_kwargs=dataset_kwargs, **kwargs)
    check_trainer_arguments(config)
    return config
