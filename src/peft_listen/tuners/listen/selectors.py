"""Which prompts of the pool an input gets: the registry of selectors, and the three of the paper.

A selector sees nothing but queries and keys, so it can be tried in three lines:

```python
>>> import torch
>>> from peft_listen import get_selector
>>> get_selector("similarity").select(torch.eye(4)[:1], torch.eye(4), k=1).indices
tensor([[0]])

```
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from .pool import cluster_centers
from .pursuit import MatchingPursuit


@dataclass(frozen=True)
class Selection:
    """
    What a selector returns.

    Attributes:
        indices (`torch.LongTensor` of shape `(batch_size, k)`):
            The chosen prompts of each row, in the order in which they are prepended: best first, unless the selector
            says otherwise.
        scores (`torch.FloatTensor` of shape `(batch_size, k)`):
            The selector's score of each chosen prompt, in the same order.
        weights (`torch.FloatTensor` of shape `(batch_size, k)`, *optional*):
            Factors for the chosen values; `None` stands for ones.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor | None = None


class Selector(ABC):
    """
    Chooses `k` of `pool_size` prompts for each row of a batch.

    A selector whose `select` also takes `bias` (`torch.FloatTensor` of shape `(pool_size,)` or
    `(batch_size, pool_size)`), which is added to its scores before it chooses, can be used with
    `ListenConfig(usage_balance=...)` and `ListenConfig(exploration=...)`.

    Attributes:
        keys_receive_gradient (`bool`):
            Whether the weights carry the language-model loss to the keys. Where they do not, the keys learn from the
            key loss alone.
    """

    keys_receive_gradient: bool = False

    @classmethod
    def takes_bias(cls) -> bool:
        """Whether `select` has an argument `bias`."""
        return "bias" in inspect.signature(cls.select).parameters

    @abstractmethod
    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        """
        Args:
            query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): float32.
            keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): float32.
            k (`int`): how many to choose, from 1 to `pool_size`.

        Returns:
            [`Selection`]: for any `k`, the first `k` of what a larger `k` would give.
        """

    def initial_keys(self, queries: torch.Tensor, pool_size: int, seed: int) -> torch.Tensor:
        """
        Keys that are started from real queries: the centres of a k-means clustering, unless a selector needs others.

        Args:
            queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`): as the keys see them.
            pool_size (`int`): how many keys.
            seed (`int`): the same seed and queries give the same keys.

        Returns:
            `torch.FloatTensor` of shape `(pool_size, embedding_size)`.
        """
        return cluster_centers(queries, pool_size, seed=seed)


SelectorType = TypeVar("SelectorType", bound=type[Selector])

_SELECTORS: dict[str, type[Selector]] = {}


def register_selector(name: str) -> Callable[[SelectorType], SelectorType]:
    """
    Class decorator that makes a [`Selector`] available as `ListenConfig(selector=name)`.

    ```python
    >>> import torch
    >>> from peft_listen import ListenConfig, Selection, Selector, register_selector

    >>> @register_selector("euclidean")
    ... class EuclideanSelector(Selector):
    ...     def select(self, query, keys, k):
    ...         distances, indices = torch.cdist(query, keys).sort(dim=-1, stable=True)
    ...         return Selection(indices=indices[:, :k], scores=-distances[:, :k])

    >>> config = ListenConfig(selector="euclidean")

    ```

    Args:
        name (`str`): what `ListenConfig(selector=...)` and [`get_selector`] find it by.

    Raises:
        ValueError: if another class is registered under this name.
        TypeError: if the class is no [`Selector`].
    """

    def register(cls: SelectorType) -> SelectorType:
        if not (inspect.isclass(cls) and issubclass(cls, Selector)):
            raise TypeError(f"A selector must be a subclass of `Selector`, got {cls!r}.")
        registered = _SELECTORS.get(name)
        # A class defined again under the same qualified name (a re-run notebook cell) replaces itself.
        if registered is not None and registered.__qualname__ != cls.__qualname__:
            raise ValueError(
                f"The selector name {name!r} is taken by {registered.__qualname__}; choose another name for "
                f"{cls.__qualname__}."
            )
        _SELECTORS[name] = cls
        return cls

    return register


def available_selectors() -> list[str]:
    """Names of all registered selectors, sorted."""
    return sorted(_SELECTORS)


def get_selector(name: str, **kwargs: Any) -> Selector:
    """
    Makes the selector that is registered under `name`, with `kwargs` for its constructor.

    Raises:
        ValueError: if no selector has that name, or if it does not take these arguments.
    """
    if name not in _SELECTORS:
        raise ValueError(
            f"There is no selector {name!r}; registered are {', '.join(available_selectors())}. "
            "Add your own with `@register_selector`."
        )
    cls = _SELECTORS[name]
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ValueError(f"The selector {name!r} does not take `selector_kwargs`={kwargs}: {error}") from error


def best_prompts(scores: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    Indices of the `k` highest scores of each row, best first; of equal ones, the lower index comes first.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, pool_size)`)
        k (`int`)
        bias (`torch.FloatTensor` of shape `(pool_size,)` or `(batch_size, pool_size)`, *optional*): added to the scores.

    Returns:
        `torch.LongTensor` of shape `(batch_size, k)`: for any `k`, the first `k` of what a larger `k` would give.
    """
    ranked = scores if bias is None else scores + bias
    # A stable sort, since `topk` breaks ties differently for different k, and a shorter prompt must be a prefix.
    return ranked.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def cosines(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Cosine of each query to each key, `(batch_size, pool_size)`."""
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T


@register_selector("similarity")
class SimilaritySelector(Selector):
    """The `k` keys of the highest cosine similarity to the query (arXiv 2505.18517). O(pool_size · d) per row."""

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> Selection:
        similarity = cosines(query, keys)
        indices = best_prompts(similarity, k, bias)
        return Selection(indices=indices, scores=similarity.gather(-1, indices))


@register_selector("attention")
class AttentionSelector(Selector):
    """
    The `k` keys of the highest attention weight `softmax(q K^T / sqrt(d))` (arXiv 2505.18517).

    The chosen values are scaled by their weights, renormalised over the chosen and multiplied by `k`, so that the
    mean factor stays 1 whatever `k` is (ours). The keys thereby get a gradient from the language-model loss. The
    paper found this selector unstable with a stochastic prompt length; it is computed in float32 here.

    Args:
        temperature (`float`, defaults to 1.0): divides the logits; above 1 the weights are more even.
    """

    keys_receive_gradient = True

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"`temperature` must be above 0, got {temperature!r}.")
        self.temperature = temperature

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> Selection:
        logits = query @ keys.T / (keys.shape[-1] ** 0.5 * self.temperature)  # [batch, pool_size]
        indices = best_prompts(logits, k, bias)
        scores = logits.softmax(dim=-1).gather(-1, indices)
        weights = logits.gather(-1, indices).softmax(dim=-1) * k
        return Selection(indices=indices, scores=scores, weights=weights)


@register_selector("residual")
class ResidualSelector(Selector):
    """
    Greedy matching pursuit (arXiv 2505.18517; the exact formula is ours): the key most similar to what the keys
    chosen before have left unexplained, `k` times over.

    The similarity is signed: a key opposite to the residual is no match, so the first choice is that of
    [`SimilaritySelector`]. Works on the Gram matrix of the keys, with O(pool_size) per row and choice; see
    [`MatchingPursuit`].
    """

    def __init__(self) -> None:
        self._pursuit = MatchingPursuit()

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> Selection:
        indices, scores = self._pursuit(query, keys, k, bias)
        return Selection(indices=indices, scores=scores)
