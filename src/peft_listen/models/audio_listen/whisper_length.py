"""Runs Whisper's encoder on less than 30 s."""

import copy
from typing import Any

from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.output_capturing import maybe_install_capturing_hooks


def with_length(module: Any, num_frames: int) -> Any:
    """
    A view of Whisper's encoder for spectrograms of `2 * num_frames` mel frames, which get the first `num_frames` positions.

    The positions are sinusoidal, so the first ones mean the same in a shorter input; whisper.cpp has the same option as
    `--audio-ctx`. The view shares all parameters, layers and hooks with the encoder, which is not changed, so several threads
    may encode at different lengths. The view of a compiled encoder is not compiled.

    Args:
        module (`WhisperEncoder`, or a module that wraps one, as PEFT's `modules_to_save` does): The encoder.
        num_frames (`int`): Frames of 20 ms, from 1 to `config.max_source_positions`.

    Returns:
        A module of the class of `module`, or of the module that was compiled.
    """
    # The compiled code calls the compiled module, not the view.
    if "_orig_mod" in module._modules:
        return with_length(module._orig_mod, num_frames)
    if isinstance(module, WhisperEncoder):
        # These hooks record hidden states. The module that is called is marked as having them; the view is marked too.
        maybe_install_capturing_hooks(module)
    view = copy.copy(module)
    # accelerate replaces the method of a module on a device by one that calls that module, not the view. The modules inside
    # have hooks of their own, which move their inputs.
    view.__dict__.pop("forward", None)
    view.__dict__.pop("_compiled_call_impl", None)  # of `module.compile()`
    if not isinstance(module, WhisperEncoder):
        view._modules = {
            name: with_length(child, num_frames) if _holds_encoder(child) else child
            for name, child in module._modules.items()
        }
        return view
    positions = copy.copy(module.embed_positions)
    positions.num_embeddings = num_frames
    view._modules = {**module._modules, "embed_positions": positions}
    view.config = copy.copy(module.config)
    view.config.max_source_positions = num_frames
    return view


def _holds_encoder(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(part, WhisperEncoder) for part in module.modules())
