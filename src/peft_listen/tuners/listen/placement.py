"""Position of the prompts in each row, and its effect on masks, positions and outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .query import leading_padding


class PromptPlacement:
    """
    `k` prompts directly before the first real token of each row.

    The outputs of a row must not depend on its amount of padding, so with left padding the prompts are placed between
    the padding and the text. Without a mask there is no padding, and every operation is a plain concatenation or
    slice.

    Args:
        prompt_length (`int`): k.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
            1 for real tokens, 0 for padding, without the prompts.
    """

    def __init__(self, prompt_length: int, attention_mask: torch.Tensor | None = None) -> None:
        self.prompt_length = prompt_length
        self.offset = None if attention_mask is None else leading_padding(attention_mask)  # [batch, 1]

    def _insert(self, sequence: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Inserts `prompts` [batch, k, ...] into `sequence` [batch, length, ...] at each row's offset."""
        if self.offset is None:
            return torch.cat([prompts, sequence], dim=1)
        length = sequence.shape[1]
        target = torch.arange(length + self.prompt_length, device=sequence.device)  # [length + k]
        after_start = target >= self.offset  # [batch, length + k]
        after_end = target >= self.offset + self.prompt_length
        source = torch.where(after_end, target - self.prompt_length, target)
        source = torch.where(after_start & ~after_end, length + target - self.offset, source)
        return _gather(torch.cat([sequence, prompts], dim=1), source)

    def insert_embeds(self, inputs_embeds: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, d)` and `(batch_size, k, d)` to `(batch_size, k + length, d)`."""
        return self._insert(inputs_embeds, prompts.to(inputs_embeds))

    def insert_mask(self, mask: torch.Tensor, value: bool = True) -> torch.Tensor:
        """`(batch_size, length)` to `(batch_size, k + length)`, with `value` for the prompts. The mask is 0 wherever the
        attention mask begins with padding."""
        if self.offset is None:
            return self._insert(mask, mask.new_full((mask.shape[0], self.prompt_length), value))
        # Called in each decoding step. All values before the prompts are 0, so no gather is needed.
        shifted = F.pad(mask, (self.prompt_length, 0))
        if not value:
            return shifted
        distance = torch.arange(shifted.shape[1], device=mask.device) - self.offset  # [batch, k + length]
        return shifted.masked_fill((distance >= 0) & (distance < self.prompt_length), 1)

    def repeat_rows(self, batch_size: int) -> PromptPlacement:
        """The placement in a batch in which each row is repeated for its beams or return sequences."""
        repeated = PromptPlacement(self.prompt_length)
        if self.offset is not None:
            repeated.offset = self.offset.repeat_interleave(batch_size // len(self.offset), dim=0)
        return repeated

    def insert_positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """`(..., batch_size or 1, length)` to `(..., batch_size or 1, k + length)`. The positions of the prompts start
        at that of the first real token, and the text continues after them. Each leading axis (of multimodal rotary
        embeddings, for example) is treated separately."""
        if position_ids.ndim > 2:
            return torch.stack([self.insert_positions(axis) for axis in position_ids])
        if self.offset is None:
            first = position_ids[:, :1]
            shifted = position_ids + self.prompt_length
        else:
            position_ids = position_ids.expand(self.offset.shape[0], -1)
            first = position_ids.gather(-1, self.offset)
            index = torch.arange(position_ids.shape[1], device=position_ids.device)
            shifted = position_ids + self.prompt_length * (index >= self.offset).to(position_ids.dtype)
        prompts = first + torch.arange(self.prompt_length, device=position_ids.device, dtype=position_ids.dtype)
        return self._insert(shifted, prompts)

    def last_prompts(self, sequence: torch.Tensor, count: int) -> torch.Tensor:
        """The last `count` prompts of each row of `(batch_size, k + length, d)`, `(batch_size, count, d)`."""
        start = self.prompt_length - count
        if self.offset is None:
            return sequence[:, start : self.prompt_length]
        return _gather(sequence, self._indices(start, sequence.device))

    def add_to_last_prompts(self, sequence: torch.Tensor, addition: torch.Tensor) -> torch.Tensor:
        """Adds `(batch_size, count, d)` to the last `count` prompts of each row of `(batch_size, k + length, d)`."""
        start = self.prompt_length - addition.shape[1]
        changed = self.last_prompts(sequence, addition.shape[1]) + addition.to(sequence)
        if self.offset is None:
            return torch.cat([sequence[:, :start], changed, sequence[:, self.prompt_length :]], dim=1)
        index = self._indices(start, sequence.device)
        return sequence.scatter(1, index.unsqueeze(-1).expand_as(changed), changed)

    def _indices(self, start: int, device: torch.device) -> torch.Tensor:
        """Positions of the prompts from `start` on, `(batch_size, k - start)`."""
        assert self.offset is not None
        return self.offset.to(device) + torch.arange(start, self.prompt_length, device=device)

    def strip(self, sequence: torch.Tensor) -> torch.Tensor:
        """`(batch_size, k + length, ...)` back to `(batch_size, length, ...)`."""
        if self.offset is None:
            return sequence[:, self.prompt_length :]
        target = torch.arange(sequence.shape[1] - self.prompt_length, device=sequence.device)
        return _gather(sequence, torch.where(target >= self.offset, target + self.prompt_length, target))


def _gather(sequence: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    index = index.reshape(index.shape + (1,) * (sequence.ndim - 2)).expand(-1, -1, *sequence.shape[2:])
    return sequence.gather(1, index)


def positions_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each token, counted over real tokens only, `(batch_size, length)`; 0 for padding."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)
