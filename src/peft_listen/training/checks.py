"""Trainer options under which the key loss is not what it should be."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainingArguments


_ADVICE = (
    "Leave {option} at its default, or name the prompt with `listen_query_mask` in every batch and add "
    "`model.key_loss` to the loss yourself."
)


def check_trainer_arguments(args: TrainingArguments, compute_loss_func: Any = None) -> list[str]:
    """
    Warns of trainer options that drop or distort the key loss.

    Args:
        args ([`~transformers.TrainingArguments`]): those of a `Trainer` or of TRL's `SFTTrainer`.
        compute_loss_func (`Callable`, *optional*): the one given to the trainer.

    Returns:
        `list[str]`: the warnings, each also given as a `UserWarning`; empty if there is nothing to say.
    """
    messages = []
    if getattr(args, "label_smoothing_factor", 0.0):
        messages.append(
            f"`label_smoothing_factor`={args.label_smoothing_factor}: the trainer then keeps the labels from the "
            "model, so the answer gets into the query and the key loss is dropped. "
            + _ADVICE.format(option="`label_smoothing_factor`")
        )
    if compute_loss_func is not None:
        messages.append(
            "`compute_loss_func`: the trainer then keeps the labels from the model, so the answer gets into the query "
            "and the key loss is dropped. " + _ADVICE.format(option="`compute_loss_func`")
        )
    if getattr(args, "loss_type", None) == "dft":
        messages.append(
            "`loss_type='dft'` weighs every token's loss by its probability, and the key loss with it: where answers "
            "are unlikely, the keys hardly move. Use `loss_type='nll'`."
        )
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        messages.append(
            "`packing` and `padding_free` put several documents into one row, which the adapter refuses: each needs "
            "prompts of its own. Set both to `False`."
        )
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=2)
    return messages
