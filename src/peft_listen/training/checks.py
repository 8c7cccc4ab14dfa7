"""Warns about trainer options that drop or distort the key loss."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainingArguments

from ..tuners.listen import ListenConfig


_ADVICE = (
    "Leave {option} at its default, or pass `listen_query_mask`, which marks the prompt, in every batch and add "
    "`model.key_loss` to the loss yourself."
)


def check_trainer_arguments(
    args: TrainingArguments, compute_loss_func: Any = None, config: ListenConfig | None = None
) -> list[str]:
    """
    Warns about trainer options that drop or distort the key loss, or do not fit the adapter.

    Args:
        args ([`~transformers.TrainingArguments`]): arguments of a `Trainer` or of one of TRL's.
        compute_loss_func (`Callable`, *optional*): loss function that is passed to the trainer.
        config ([`ListenConfig`], *optional*): of the trained adapter.

    Returns:
        `list[str]`: the messages, each also issued as a `UserWarning`; empty if all options are supported.
    """
    messages = []
    if getattr(args, "label_smoothing_factor", 0.0):
        messages.append(
            f"`label_smoothing_factor`={args.label_smoothing_factor}: the trainer does not pass the labels to the "
            "model, so the query includes the answer and the key loss is dropped. "
            + _ADVICE.format(option="`label_smoothing_factor`")
        )
    if compute_loss_func is not None:
        messages.append(
            "`compute_loss_func`: the trainer does not pass the labels to the model, so the query includes the answer "
            "and the key loss is dropped. " + _ADVICE.format(option="`compute_loss_func`")
        )
    if getattr(args, "loss_type", None) == "dft":
        messages.append(
            "`loss_type='dft'` weights the loss of every token, and with it the key loss, by the token's probability: "
            "if answers are unlikely, the keys are hardly trained. Use `loss_type='nll'`."
        )
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        messages.append(
            "`packing` and `padding_free` put several documents into one row, which the adapter does not support "
            "because each document needs its own prompts. Set both to `False`."
        )
    if hasattr(args, "num_generations") and config is not None and config.stochastic_prompt_length:
        messages.append(
            f"The trainer generates with {config.prompt_length} prompts (`prompt_length`), but its loss is computed with 1 to "
            f"{config.max_train_prompt_length}, since `stochastic_prompt_length=True`: it trains other outputs than those that "
            "the rewards are for. Set `model.peft_config['default'].stochastic_prompt_length = False` before training."
        )
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=2)
    return messages
