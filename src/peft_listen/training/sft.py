"""TRL's `SFTTrainer` with audio: the settings without which the audio is lost on the way to the model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .checks import check_trainer_arguments


if TYPE_CHECKING:
    from trl import SFTConfig


# What each option would do to audio examples, if it were set to anything else.
_REQUIRED = {
    "remove_unused_columns": (False, "takes the `audio` column away before the collator sees it"),
    "packing": (False, "puts several examples into one row, which needs them tokenised without their audio"),
    "eval_packing": (False, "puts several examples into one row, which needs them tokenised without their audio"),
    "padding_free": (False, "replaces the collator that loads the audio"),
    "assistant_only_loss": (False, "tokenises the examples without their audio; the collator masks the prompt itself"),
    "max_length": (None, "would cut audio tokens off, apart from the audio that they stand for"),
}


def sft_config(output_dir: str | os.PathLike[str], **kwargs: Any) -> SFTConfig:
    """
    A [`~trl.SFTConfig`] with which TRL's `SFTTrainer` trains [`AudioListenForCausalLM`].

    By its defaults `SFTTrainer` prepares the data set itself and removes the columns it does not know, so the audio
    never arrives and the model learns from text alone. Here the collator gets the examples as they are.

    Args:
        output_dir (`str` or `os.PathLike`): Where checkpoints go.
        kwargs: Other fields of [`~trl.SFTConfig`], such as `learning_rate`, with its own defaults.

    Returns:
        [`~trl.SFTConfig`]

    Raises:
        ImportError: if trl is not installed.
        ValueError: for a field with which the audio would be lost; the message names it.

    Example:

    ```python
    trainer = SFTTrainer(
        model,
        sft_config("output", per_device_train_batch_size=8),
        train_dataset=dataset,  # of {"audio", "instruction", "answer", "task"}
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
            "`dataset_kwargs={'skip_prepare_dataset': False}` tokenises the examples without their audio. Leave it out."
        )
    for name, (required, consequence) in _REQUIRED.items():
        if kwargs.setdefault(name, required) != required:
            raise ValueError(f"`{name}={kwargs[name]!r}` {consequence}. Leave it out, or set it to {required}.")
    config = SFTConfig(output_dir=str(output_dir), dataset_kwargs=dataset_kwargs, **kwargs)
    check_trainer_arguments(config)
    return config
