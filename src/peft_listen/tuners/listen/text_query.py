"""Query from a hidden layer (not part of the paper): the decoder's own representation of the text, and the mean of audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from . import running_statistics
from .config import ListenConfig
from .query import TokenGroups, masked_mean, prompt_positions
from .running_statistics import StepSums
from .text_reader import TextReader


if TYPE_CHECKING:  # some builds of torch do not have it
    from torch.distributed import ProcessGroup


class TextState(NamedTuple):
    """
    Text half of a query.

    Attributes:
        state (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): float32, without gradient.
        exists (`torch.BoolTensor` of shape `(batch_size, 1)`): whether the row has text.
    """

    state: torch.Tensor
    exists: torch.Tensor


class TextQuery:
    """
    The query of one adapter with `config.query_layer`: the text half is a hidden state of the frozen decoder for the text
    alone, the audio half the mean of the embeddings of audio (and of images and video). A running mean is subtracted from
    each half, each is scaled to unit length, and the audio half is added with the factor `config.query_audio_weight`.

    The text is the prompt without audio, chat template included, as one sequence without gaps. The text half does not depend
    on the projector, and not on prompts.

    The means are registered in the pool, as `text_query_means`, `(2, embedding_size)`: of the text and of the audio half.

    Args:
        pool (`nn.Module`): module of the adapter, which gets the buffer.
        config ([`ListenConfig`]): of the adapter.
        size (`int`): embedding size.
        device (`torch.device`): device of the buffer.

    Attributes:
        reader ([`TextReader`], *optional*): runs the decoder; set when the adapter is attached.
    """

    def __init__(self, pool: nn.Module, config: ListenConfig, size: int, device: torch.device) -> None:
        self.reader: TextReader | None = None
        self._pool = pool
        self._config = config
        self._sums = StepSums()
        pool.register_buffer("text_query_means", torch.zeros(2, size, device=device))

    @property
    def means(self) -> torch.Tensor:
        """Buffer, `(2, embedding_size)`: running means of the text and the audio halves."""
        means: torch.Tensor = self._pool.text_query_means  # type: ignore[assignment]
        return means

    def read(
        self,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        query_mask: torch.Tensor | None,
        groups: TokenGroups,
    ) -> TextState:
        """
        The text halves of a batch.

        Args:
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, length, embedding_size)`)
            positions (`torch.BoolTensor` of shape `(batch_size, length)`): of the query, without ignored tokens.
            attention_mask, labels, query_mask: see [`prompt_positions`].
            groups ([`TokenGroups`]): positions that the query treats separately.

        Returns:
            [`TextState`]
        """
        assert self.reader is not None
        batch_size, length = inputs_embeds.shape[:2]
        device = inputs_embeds.device
        prompt = positions
        if groups.ignored is not None:  # the decoder reads the chat template too
            prompt, _ = prompt_positions(batch_size, length, attention_mask, labels, query_mask, device=device)
        is_text = torch.ones_like(prompt) if groups.modality is None else ~groups.modality.to(device)
        text, averaged = prompt & is_text, positions & is_text
        # The text first, in its order. Reading the length waits for the device; without it, the decoder would compute the
        # positions of the audio as well, which are most of the input.
        counts = text.sum(dim=-1, keepdim=True)  # [batch, 1]
        order = (~text).long().argsort(dim=-1, stable=True)[:, : max(int(counts.max()), 1)]
        embeds = inputs_embeds.gather(1, order.unsqueeze(-1).expand(-1, -1, inputs_embeds.shape[-1]))
        states = self.reader.read(embeds.detach(), self._config.query_layer).to(device)
        place = torch.arange(order.shape[1], device=device)
        if self._config.query_text == "last":
            wanted = place == counts - 1
        else:
            wanted = averaged.gather(1, order) & (place < counts)
        return TextState(masked_mean(states, wanted), wanted.any(dim=-1, keepdim=True))

    def combine(
        self,
        text: TextState,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        groups: TokenGroups,
        is_training_step: bool,
    ) -> torch.Tensor:
        """
        The queries of a batch.

        Args:
            text ([`TextState`]): the text halves.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, length, embedding_size)`)
            positions (`torch.BoolTensor` of shape `(batch_size, length)`): of the query.
            groups ([`TokenGroups`]): positions that the query treats separately.
            is_training_step (`bool`): whether the halves count for the running means.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, embedding_size)`: the sum of the halves. A row without text has the
            audio half alone, whatever its factor, and one without audio the text half.
        """
        in_audio = (
            torch.zeros_like(positions) if groups.modality is None else positions & groups.modality.to(positions)
        )
        audio, has_audio = masked_mean(inputs_embeds, in_audio), in_audio.any(dim=-1, keepdim=True)
        means = self.means.to(audio)
        # The mean in the place of a half that is not there: it does not move the running mean.
        halves = torch.stack(
            [torch.where(text.exists, text.state, means[0]), torch.where(has_audio, audio, means[1])], dim=1
        )  # [batch, 2, d]
        if is_training_step:
            self._sums.add(halves.detach().flatten(1), means.flatten())
        if self._config.center_queries:
            halves = halves - means
        halves = F.normalize(halves, dim=-1)
        text_factor = text.exists.to(halves)
        audio_factor = has_audio * (text_factor * self._config.query_audio_weight + (1 - text_factor))
        return text_factor * halves[:, 0] + audio_factor * halves[:, 1]

    def reduce(self, groups: Sequence[ProcessGroup]) -> None:
        """Adds the halves that other processes have seen in this step. All processes of the groups must call it."""
        self._sums.reduce(groups, self.means.flatten())

    def end_step(self, rate: float) -> None:
        """
        Moves the running means toward those of the step that has ended.

        Args:
            rate (`float`): weight of the step, in (0, 1].
        """
        statistics = self._sums.take()
        if statistics is not None:
            running_statistics.update(self.means.view(-1), statistics.mean, rate, statistics.num_rows)
