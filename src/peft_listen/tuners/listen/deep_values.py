"""Deep values (not part of the paper): vectors that are added to the prompts at the input of some decoder layers.

They have the reach of deep prompt tuning (P-Tuning v2, arXiv 2110.07602): prompts come first and attention is causal, so a
vector at a prompt's position in a layer acts like a prompt of that layer. The hooks that add them are in
`deep_value_hooks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

from .config import ListenConfig
from .initialization import hidden_size, vocabulary_embeddings
from .placement import PromptPlacement
from .selectors import Selection


if TYPE_CHECKING:  # some builds of torch do not have it
    from torch.distributed import ProcessGroup


# Tokens of the vocabulary whose embeddings are measured.
NUM_MEASURED_TOKENS = 1024


class DeepValues:
    """
    The deep values of one adapter: at the input of each of `config.value_layers`, one vector for each value of the pool
    and, where shared prompts are added to the selected ones, one for each shared prompt.

    At the input of layer l, the hidden state at the place j of the prompt changes by
    `scale_l * (shared_values[l, j] + weight_j * values[l, i_j])`, where i_j is the prompt that is selected for this place,
    and weight_j its factor, if the selector has factors. The selection is that of the input's prompts. The first position of
    a row is left out: decoders use it as an attention sink, with hidden states a hundred times as large as others.

    `scale_l` is the median RMS of the prompts' hidden states at layer l, divided by the RMS of the vocabulary's
    embeddings, so that a step of the optimizer changes the hidden states of each layer in the same proportion as it changes
    the prompts. It is measured in the first forward pass in training, and is a constant from then on.

    The tensors are registered in the pool, under the names `deep_values`, `deep_shared_values` and `deep_scales`: PEFT
    saves tensors of the module of an adapter, and not those of modules in it.

    Args:
        pool (`nn.Module`): module of the adapter, which gets the tensors.
        config ([`ListenConfig`]): of the adapter.
        model_config: the decoder's configuration, for the width of its layers.
        device (`torch.device`): device of all tensors.
    """

    def __init__(self, pool: nn.Module, config: ListenConfig, model_config: object, device: torch.device) -> None:
        self.layers = tuple(config.value_layers or ())
        self._pool = pool
        # Shared prompts that are not added come before the selected ones, so the first position is one of them.
        self._has_first_position = config.adds_shared_prompts or config.num_shared_prompts == 0
        self._model_config = model_config
        self._seed = config.seed
        self._is_measured = False
        self._differs_between_processes = False
        # With `init_weights=False` the values are random, for tests in which they must have an effect before any training.
        is_test = config.init_weights is False
        generator = torch.Generator().manual_seed(config.seed + 1)

        def initial(count: int) -> nn.Parameter:
            shape = (len(self.layers), count, hidden_size(model_config))
            tensor = torch.randn(shape, generator=generator) if is_test else torch.zeros(shape)
            return nn.Parameter(tensor.to(device))

        pool.register_parameter("deep_values", initial(config.pool_size))
        shared_values = initial(config.num_shared_prompts) if config.adds_shared_prompts else None
        pool.register_parameter("deep_shared_values", shared_values)
        scales = torch.ones(len(self.layers)) if is_test else torch.zeros(len(self.layers))
        pool.register_buffer("deep_scales", scales.to(device))

    @property
    def values(self) -> torch.Tensor:
        """Parameter, `(num_value_layers, pool_size, hidden_size)`, initially zero."""
        values: torch.Tensor = self._pool.deep_values  # type: ignore[assignment]
        return values

    @property
    def shared_values(self) -> torch.Tensor | None:
        """Parameter, `(num_value_layers, num_shared_prompts, hidden_size)`, initially zero; `None` unless shared prompts are
        added to the selected ones."""
        shared_values: torch.Tensor | None = self._pool.deep_shared_values  # type: ignore[assignment]
        return shared_values

    @property
    def scales(self) -> torch.Tensor:
        """Buffer, `(num_value_layers,)`: scale of each layer; 0 before it is measured."""
        scales: torch.Tensor = self._pool.deep_scales  # type: ignore[assignment]
        return scales

    def forget_scales(self) -> None:
        """Reads the scales again; called when they are loaded."""
        self._is_measured = self._differs_between_processes = False

    def select(self, selection: Selection, is_training_step: bool) -> DeepPrompts:
        """
        The vectors of the selected prompts.

        Args:
            selection ([`Selection`]): of the rows' prompts.
            is_training_step (`bool`): whether the scales are to be measured if they are not.

        Returns:
            [`DeepPrompts`]
        """
        first = 1 if self._has_first_position else 0
        indices = selection.indices[:, first:]
        vectors = self.values.to(indices.device)[:, indices].float()  # [num_value_layers, batch, n, d]
        if selection.weights is not None:
            vectors = vectors * selection.weights[:, first:, None]
        if self.shared_values is not None:
            shared = self.shared_values.to(indices.device)[:, first : first + indices.shape[1]].float()
            # If there are more selected values than shared prompts, the remaining values are unchanged.
            missing = indices.shape[1] - shared.shape[1]
            vectors = vectors + F.pad(shared, (0, 0, 0, missing)).unsqueeze(1)
        measures = is_training_step and indices.shape[1] > 0 and not self._has_scales()
        return DeepPrompts(vectors.transpose(0, 1), self, measures)

    def _has_scales(self) -> bool:
        # Reading a buffer waits for the device, so it is read only until the scales are there.
        if not self._is_measured:
            self._is_measured = bool((self.scales > 0).all())
        return self._is_measured

    @torch.no_grad()
    def measure(self, index: int, hidden_states: torch.Tensor, embedding: nn.Module) -> None:
        """
        Sets the scale of a layer.

        Args:
            index (`int`): of the layer in `layers`.
            hidden_states (`torch.FloatTensor` of shape `(batch_size, n, hidden_size)`):
                hidden states at the layer's input, at the places that vectors are added to.
            embedding (`nn.Module`): the decoder's input embedding.
        """
        generator = torch.Generator().manual_seed(self._seed)
        embeds = vocabulary_embeddings(embedding, self._model_config, NUM_MEASURED_TOKENS, generator)
        rms = hidden_states.float().square().mean(dim=-1).sqrt().nanmedian()
        scale = rms / (1.0 if embeds is None else embeds.square().mean().sqrt())
        is_valid = scale.isfinite() & (scale > 0)
        self.scales[index] = torch.where(is_valid, scale, 0.0).to(self.scales)
        self._differs_between_processes = True

    @torch.no_grad()
    def reduce_scales(self, groups: Sequence[ProcessGroup]) -> None:
        """
        Sets scales that were just measured to their mean over the processes that train together. All processes of the
        groups must call it after their first forward pass.

        Args:
            groups (`Sequence[ProcessGroup]`): one for each dimension along which processes train together.
        """
        if not self._differs_between_processes:
            return
        self._differs_between_processes = False
        for group in groups:
            torch.distributed.all_reduce(self.scales, group=group)
            self.scales.div_(group.size())


class DeepPrompts(NamedTuple):
    """
    Vectors to add to the hidden states of the last `n` places of each row's prompt.

    Attributes:
        vectors (`torch.FloatTensor` of shape `(batch_size, num_value_layers, n, hidden_size)`): before scaling, float32.
        source ([`DeepValues`]): that they are of.
        measures (`bool`): whether the scale of each layer is measured in this forward pass.
    """

    vectors: torch.Tensor
    source: DeepValues
    measures: bool


class PendingDeepValues:
    """
    The deep values of one forward pass, each of which is added once.

    Args:
        prompts ([`DeepPrompts`]): of the rows of the pass.
        placement ([`PromptPlacement`]): position of the prompts in these rows.
        embedding (`nn.Module`): the decoder's input embedding.
    """

    def __init__(self, prompts: DeepPrompts, placement: PromptPlacement, embedding: nn.Module) -> None:
        self._prompts = prompts
        self._placement = placement
        self._embedding = embedding
        self._remaining = set(prompts.source.layers)

    def add(self, layer: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        The hidden states at the input of a layer, with its deep values; unchanged if the layer has none, or if they were
        added before.

        Args:
            layer (`int`): number of the decoder layer.
            hidden_states (`torch.FloatTensor` of shape `(batch_size, k + length, hidden_size)`)
        """
        if layer not in self._remaining:
            return hidden_states
        self._remaining.remove(layer)
        prompts, source = self._prompts, self._prompts.source
        index = source.layers.index(layer)
        vectors = prompts.vectors[:, index]
        if prompts.measures:
            source.measure(index, self._placement.last_prompts(hidden_states, vectors.shape[1]), self._embedding)
        # A copy, because the buffer changes before the backward pass: other layers are measured, or it is reduced.
        scale = source.scales[index].to(vectors, copy=True)
        return self._placement.add_to_last_prompts(hidden_states, vectors * scale)
