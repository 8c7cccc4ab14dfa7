"""The selector protocol and its registry.

A selector takes queries and keys, and nothing else, so it can be tried in three lines:

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

from .clustering import cluster_centers


@dataclass(frozen=True)
class Selection:
    """
    Output of a selector.

    Attributes:
        indices (`torch.LongTensor` of shape `(batch_size, k)`):
            The selected prompts of each row, in the order in which they are prepended: best first, unless the selector
            documents another order.
        scores (`torch.FloatTensor` of shape `(batch_size, k)`):
            The selector's score of each selected prompt, in the same order.
        weights (`torch.FloatTensor` of shape `(batch_size, k)`, *optional*):
            Factors for the selected values; `None` is equivalent to ones.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor | None = None


class Selector(ABC):
    """
    Selects `k` of `pool_size` prompts for each row of a batch.

    Attributes:
        keys_receive_gradient (`bool`):
            Whether the weights propagate the gradient of the language-model loss to the keys. Where they do not, only
            the key loss trains the keys.
    """

    keys_receive_gradient: bool = False

    @abstractmethod
    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        """
        Selects `k` prompts for each query.

        Args:
            query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): float32.
            keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): float32.
            k (`int`): number of prompts to select, from 1 to `pool_size`.

        Returns:
            [`Selection`]: for any `k`, the first `k` entries of the selection for a larger `k`. On the device of the
                keys. Another shape or dtype raises an error; on a CPU, so do indices that are not in the pool.
        """

    def initial_keys(self, queries: torch.Tensor, pool_size: int, seed: int) -> torch.Tensor:
        """
        Computes keys from real queries. By default, these are the centers of a k-means clustering.

        Args:
            queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`): normalized like the queries that
                `select` gets.
            pool_size (`int`): number of keys.
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
        name (`str`): name by which `ListenConfig(selector=...)` and [`get_selector`] find the class.

    Raises:
        ValueError: if another class is registered under this name.
        TypeError: if the class is not a subclass of [`Selector`].
    """

    def register(cls: SelectorType) -> SelectorType:
        if not (inspect.isclass(cls) and issubclass(cls, Selector)):
            raise TypeError(f"A selector must be a subclass of `Selector`, got {cls!r}.")
        registered = _SELECTORS.get(name)
        # A class defined again under the same qualified name (a re-run notebook cell) replaces itself.
        if registered is not None and registered.__qualname__ != cls.__qualname__:
            raise ValueError(
                f"The selector name {name!r} is taken by {registered.__qualname__}; use another name for "
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
    Creates the selector that is registered under `name`, with `kwargs` for its constructor.

    Args:
        name (`str`): a registered name, see [`available_selectors`].
        kwargs: keyword arguments for the constructor.

    Returns:
        [`Selector`]

    Raises:
        ValueError: if no selector has that name, or if its constructor does not accept these arguments.
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


def check_selection(
    selection: Selection, selector: Selector, batch_size: int, k: int, keys: torch.Tensor, with_range: bool
) -> None:
    """
    Checks the output of [`Selector.select`].

    Args:
        selection ([`Selection`]): the output.
        selector ([`Selector`]): for the message.
        batch_size (`int`): number of queries.
        k (`int`): number of prompts to select.
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): the keys that it got.
        with_range (`bool`): whether to read the indices; on a GPU, this waits for the device.

    Raises:
        TypeError: if the output is not a [`Selection`] of tensors.
        ValueError: for tensors of another shape, dtype or device, and for indices that are not in the pool.
    """
    name, shape = type(selector).__name__, (batch_size, k)
    if not isinstance(selection, Selection):
        raise TypeError(
            f"`{name}.select` must return a `Selection`, got {type(selection).__name__}. Return "
            "`Selection(indices=indices, scores=scores)`."
        )
    for field in ("indices", "scores", "weights"):
        tensor = getattr(selection, field)
        if field == "weights" and tensor is None:
            continue
        expected = f"a tensor of {'dtype torch.int64' if field == 'indices' else 'floats'} and shape {shape}"
        if not torch.is_tensor(tensor):
            raise TypeError(f"`{name}.select` must return `{field}` as {expected}, got {type(tensor).__name__}.")
        is_right = tensor.dtype == torch.int64 if field == "indices" else tensor.is_floating_point()
        if not is_right or tuple(tensor.shape) != shape:
            raise ValueError(
                f"`{name}.select` must return `{field}` as {expected} (batch_size, k), got {tensor.dtype} and "
                f"{tuple(tensor.shape)}."
            )
        if tensor.device != keys.device:
            raise ValueError(
                f"`{name}.select` must return `{field}` on the device of the keys, {keys.device}, got {tensor.device}."
            )
    indices, pool_size = selection.indices, keys.shape[0]
    if with_range and bool(((indices < 0) | (indices >= pool_size)).any()):
        raise ValueError(
            f"`{name}.select` must return `indices` from 0 to {pool_size - 1}, got {int(indices.min())} to "
            f"{int(indices.max())}."
        )


def check_initial_keys(keys: torch.Tensor, selector: Selector, shape: torch.Size) -> None:
    """
    Checks the output of [`Selector.initial_keys`].

    Args:
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): the output.
        selector ([`Selector`]): for the message.
        shape (`torch.Size`): the expected shape.

    Raises:
        ValueError: if it is not a tensor of finite floats of this shape.
    """
    is_right = torch.is_tensor(keys) and keys.is_floating_point() and keys.shape == shape
    if not is_right or not bool(keys.isfinite().all()):
        found = f"{keys.dtype} and {tuple(keys.shape)}" if torch.is_tensor(keys) else type(keys).__name__
        raise ValueError(
            f"`{type(selector).__name__}.initial_keys` must return a tensor of finite floats and shape {tuple(shape)} "
            f"(pool_size, embedding_size), got {found}."
        )


def best_prompts(scores: torch.Tensor, k: int) -> torch.Tensor:
    """
    Indices of the `k` highest scores of each row, best first; of equal scores, the lower index comes first.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, pool_size)`)
        k (`int`)

    Returns:
        `torch.LongTensor` of shape `(batch_size, k)`: for any `k`, the first `k` entries of the result for a larger `k`.
    """
    # A stable sort, since `topk` breaks ties differently for different k, and a shorter prompt must be a prefix.
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def cosines(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Cosine of each query to each key, `(batch_size, pool_size)`."""
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T
