"""The tokens of the language model's vocabulary that are nearest to the prompts of an adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Pipeline

from ..tuners.listen import ListenLayer, PromptPool, find_listen_layer
from ..tuners.listen.sharding import call_with_whole_weight
from .records import SelectionRecords


# Random directions and random tokens with which the similarities are compared, and the quantile of the former.
_NUM_COMPARED = 128
_CHANCE_QUANTILE = 0.95

_MIN_NORM = 1e-6


@dataclass(frozen=True)
class NearWord:
    """
    A token near a prompt.

    Attributes:
        token_id (`int`): its id.
        text (`str`): its text; the tokenizer's own form of it, if it is not a whole character.
        similarity (`float`): cosine of its input embedding and the prompt, from -1 to 1.
    """

    token_id: int
    text: str
    similarity: float


@dataclass(frozen=True)
class NearestWords:
    """
    The nearest tokens of some prompts, and the similarities to compare theirs with.

    Attributes:
        prompts (`dict[int, list[NearWord]]`): for each prompt, the nearest tokens, nearest first; empty for a prompt whose
            vector is zero.
        chance_similarity (`float`): similarity of the nearest token that 95 % of random directions stay below. A prompt
            that stays below it is near no token.
        word_similarity (`float`): median similarity of a token and its nearest other token.
    """

    prompts: dict[int, list[NearWord]]
    chance_similarity: float
    word_similarity: float

    def is_near(self, prompt: int) -> bool:
        """
        Whether the nearest token of a prompt is nearer than chance.

        Raises:
            KeyError: if the prompt is not among `prompts`.
        """
        words = self.prompts[prompt]
        return bool(words) and words[0].similarity > self.chance_similarity

    @property
    def num_near(self) -> int:
        """Number of prompts whose nearest token is nearer than chance."""
        return sum(map(self.is_near, self.prompts))


@torch.no_grad()
def nearest_words(
    model: Pipeline | nn.Module,
    records: SelectionRecords | None = None,
    *,
    tokenizer: Any = None,
    top: int = 5,
    block_size: int = 4096,
) -> NearestWords:
    """
    Finds the tokens whose input embeddings are nearest to the prompts of the active adapter, by cosine.

    The vector of a prompt is its value. Where shared prompts are added to the values, it is the sum of the two, as the
    language model gets it: with the shared prompt of the position at which the records select the prompt most often, or of the
    first position without records. Special tokens, and rows of the embedding that no token uses, are left out.

    Trained prompts are often near no token: what they do need not be what a word does. The result therefore has two
    similarities to compare with, that of random directions and that of neighboring tokens. Both are computed from 128 samples
    with a fixed seed.

    Args:
        model ([`~transformers.Pipeline`] or `nn.Module`): pipeline or model with an active LiSTEN adapter.
        records ([`SelectionRecords`], *optional*): selections of this adapter; only prompts that they select are compared.
            Defaults to all prompts of the pool.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): required for a model; a pipeline has its own.
        top (`int`, defaults to 5): number of tokens for each prompt.
        block_size (`int`, defaults to 4096): number of tokens whose embeddings are in memory as float32 at a time, on the
            device of the embedding.

    Returns:
        [`NearestWords`]

    Raises:
        ValueError: if `top` or `block_size` is below 1, there is no active LiSTEN adapter or no tokenizer, the records are for
            a pool of another size, or the language model has no embedding matrix, or one without values (meta device) or without
            ordinary tokens.
    """
    for name, value in (("top", top), ("block_size", block_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    module: nn.Module = model.model if isinstance(model, Pipeline) else model
    if tokenizer is None:
        tokenizer = model.tokenizer if isinstance(model, Pipeline) else None
    if tokenizer is None:
        raise ValueError("Pass `tokenizer=`, the tokenizer of the language model; or pass a pipeline, which has it.")
    layer = find_listen_layer(module)
    pool = layer.pool_of()
    if records is not None and records.pool_size != pool.config.pool_size:
        raise ValueError(
            f"The records are for a pool of {records.pool_size} prompts, but the active adapter has "
            f"{pool.config.pool_size}. Pass the records of this adapter."
        )
    indices, vectors = _prompt_vectors(pool, records)
    vocabulary = _Vocabulary(layer, tokenizer, block_size)

    generator = torch.Generator().manual_seed(0)
    count = len(vocabulary.token_ids)
    sample = vocabulary.token_ids[torch.randint(count, (_NUM_COMPARED,), generator=generator, device="cpu")]
    directions = torch.randn(_NUM_COMPARED, vectors.shape[-1], generator=generator, device="cpu")
    compared = [vectors, directions, vocabulary.embeddings(sample).cpu()]
    sizes = [len(part) for part in compared]
    # A token of the sample is not its own neighbor.
    excluded = torch.cat([torch.full((sizes[0] + sizes[1],), -1, device="cpu"), sample])
    similarities, token_ids = vocabulary.nearest(torch.cat(compared), min(top, count), excluded)
    of_prompts, of_directions, of_tokens = similarities.split(sizes)
    is_zero = (vectors.norm(dim=-1) < _MIN_NORM).tolist()
    words = {
        index: []
        if is_zero[row]
        else [
            NearWord(token_id, _text_of(tokenizer, token_id), similarity)
            for token_id, similarity in zip(token_ids[row].tolist(), of_prompts[row].tolist(), strict=True)
        ]
        for row, index in enumerate(indices)
    }
    neighbors = of_tokens[:, 0]
    return NearestWords(
        prompts=words,
        chance_similarity=float(of_directions[:, 0].quantile(_CHANCE_QUANTILE)),
        word_similarity=float(neighbors[neighbors.isfinite()].median()) if count > 1 else 1.0,
    )


def _prompt_vectors(pool: PromptPool, records: SelectionRecords | None) -> tuple[list[int], torch.Tensor]:
    """Numbers of the prompts, and their vectors as the language model gets them, `(num_prompts, embedding_size)`."""
    values = _on_cpu(pool.values)
    if records is None:
        indices = list(range(len(values)))
        positions = dict.fromkeys(indices, 0)
    else:
        indices = sorted(set(records.indices.flatten().tolist()))
        counts: dict[int, Counter[int]] = {index: Counter() for index in indices}
        for row in records.indices.tolist():
            for position, index in enumerate(row):
                counts[index][position] += 1
        positions = {index: _most_frequent(counts[index]) for index in indices}
    vectors = values[indices]
    if pool.shared_values is not None and pool.config.adds_shared_prompts:
        shared = _on_cpu(pool.shared_values)
        for row, index in enumerate(indices):
            # Prompts beyond the shared ones are the values alone.
            if positions[index] < len(shared):
                vectors[row] += shared[positions[index]]
    return indices, vectors


def _most_frequent(counts: Counter[int]) -> int:
    """The number with the highest count, the lowest of several."""
    return max(counts, key=lambda number: (counts[number], -number))


def _on_cpu(parameter: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # of a DTensor
    return whole.detach().float().cpu()


class _Vocabulary:
    """The ordinary tokens of a language model and their input embeddings, read in blocks."""

    def __init__(self, layer: ListenLayer, tokenizer: Any, block_size: int) -> None:
        assert layer.hooks is not None
        self._embedding: nn.Module = layer.hooks.backbone.get_input_embeddings()  # type: ignore[operator]
        weight = getattr(self._embedding, "weight", None)
        if not isinstance(weight, torch.Tensor):
            raise ValueError(
                f"The input embedding of the language model, {type(self._embedding).__name__}, has no matrix `weight`, so there "
                "are no embeddings to compare the prompts with."
            )
        is_offloaded = hasattr(self._embedding, "_hf_hook")  # accelerate loads the weight for each call
        if weight.device.type == "meta" and not is_offloaded:
            raise ValueError(
                "The embedding of the language model holds no values (meta device). Load the model's weights."
            )
        self._device = torch.device("cpu") if weight.device.type == "meta" else weight.device
        self._block_size = block_size
        size = min(int(getattr(self._embedding, "num_embeddings", 0) or weight.shape[0]), len(tokenizer))
        special = set(tokenizer.all_special_ids)
        token_ids = torch.tensor([index for index in range(size) if index not in special], device="cpu").long()
        used = [block[self.embeddings(block).norm(dim=-1).cpu() > _MIN_NORM] for block in self._blocks(token_ids)]
        if not any(map(len, used)):
            raise ValueError(
                "The vocabulary has no ordinary tokens whose embeddings are not zero. Check the tokenizer."
            )
        self.token_ids = torch.cat(used)

    def _blocks(self, token_ids: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from token_ids.split(self._block_size)

    def embeddings(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of some tokens, float32; zero if they are not finite."""
        embeds = call_with_whole_weight(self._embedding, token_ids.to(self._device)).float()
        return torch.where(embeds.isfinite().all(dim=-1, keepdim=True), embeds, 0.0)

    def nearest(self, vectors: torch.Tensor, top: int, excluded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The nearest tokens of some vectors.

        Args:
            vectors (`torch.FloatTensor` of shape `(num_vectors, embedding_size)`)
            top (`int`): number of tokens for each.
            excluded (`torch.LongTensor` of shape `(num_vectors,)`): a token that each is not compared with, or -1.

        Returns:
            Similarities and token ids of shape `(num_vectors, top)` on the CPU, nearest first.
        """
        normalized = F.normalize(vectors, dim=-1).to(self._device)
        best = torch.empty(len(vectors), 0, device=self._device)
        best_ids = torch.empty(len(vectors), 0, dtype=torch.long, device=self._device)
        for block in self._blocks(self.token_ids):
            scores = normalized @ F.normalize(self.embeddings(block), dim=-1).to(self._device).T
            ids = block.to(self._device).expand(len(vectors), -1)
            scores = scores.masked_fill(ids == excluded.to(self._device)[:, None], -torch.inf)
            scores, ids = torch.cat([best, scores], dim=1), torch.cat([best_ids, ids], dim=1)
            best, order = scores.topk(min(top, scores.shape[1]), dim=1)
            best_ids = ids.gather(1, order)
        return best.cpu(), best_ids.cpu()


def _text_of(tokenizer: Any, token_id: int) -> str:
    text: str = tokenizer.decode([token_id])
    # A token may be a part of a character, which only the tokenizer's own form shows.
    return str(tokenizer.convert_ids_to_tokens(token_id)) if not text.strip() or "\ufffd" in text else text
