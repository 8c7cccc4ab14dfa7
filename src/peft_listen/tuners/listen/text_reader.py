"""Hidden states of a text after some layers of the frozen decoder, in a forward pass of its own that stops there."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn


class _Stopped(Exception):  # noqa: N818  (control flow, not an error)
    """Carries the hidden states out of a forward pass that stops there."""

    def __init__(self, hidden_states: torch.Tensor) -> None:
        super().__init__()
        self.hidden_states = hidden_states


class TextReader:
    """
    Runs the first layers of a decoder on embeddings, without prompts and without gradients.

    Args:
        backbone (`nn.Module`): the decoder.
        decoder_layers (`nn.ModuleList`): its layers, in the order in which they run.
    """

    def __init__(self, backbone: nn.Module, decoder_layers: nn.ModuleList) -> None:
        self._backbone = backbone
        self._decoder_layers = decoder_layers

    @torch.no_grad()
    def read(self, inputs_embeds: torch.Tensor, num_layers: int) -> torch.Tensor:
        """
        The hidden states after the first `num_layers` layers, before any later normalization.

        Args:
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, length, embedding_size)`):
                rows that begin at the first position. They need no mask: attention is causal, so padding behind the text of
                a row does not change its states.
            num_layers (`int`): from 1 to the number of layers.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, length, hidden_size)`: in the decoder's dtype.

        Raises:
            RuntimeError: if the forward pass does not run the layer.
        """
        owner = threading.get_ident()

        def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == owner:
                raise _Stopped(output if torch.is_tensor(output) else output[0])

        # The hook is there for this pass only, so no other pass has to ask whether to stop. The method `forward` is called
        # and not the module, whose hooks would prepend prompts.
        handle = self._decoder_layers[num_layers - 1].register_forward_hook(stop)
        try:
            self._backbone.forward(inputs_embeds=inputs_embeds, use_cache=False)
        except _Stopped as stopped:
            return stopped.hidden_states
        finally:
            handle.remove()
        raise RuntimeError(f"{type(self._backbone).__name__} did not run its layer {num_layers}.")
