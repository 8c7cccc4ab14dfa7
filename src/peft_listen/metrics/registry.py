"""Registry of metrics.

```python
>>> from peft_listen.metrics import get_metric
>>> get_metric("exact_match").compute(predictions=["Happy."], references=["happy"])
{'exact_match': 1.0}

```

Built-in metrics, the library that each one uses, and the range of its values:

| name | inputs | library | range |
|---|---|---|---|
| `exact_match` | answers | | 0 to 1, higher is better |
| `squad_f1` | answers | | 0 to 1, higher is better |
| `accuracy` | answers among known labels | scikit-learn | 0 to 1, higher is better |
| `wer`, `cer` | transcripts | jiwer | from 0, lower is better |
| `bleu`, `chrf` | translations | sacrebleu | 0 to 100, higher is better |
| `rouge_l` | captions | rouge-score | 0 to 1, higher is better |
| `cider` | captions | | 0 to 10, higher is better |
| `eer` | speaker verification scores | scikit-learn | 0 to 1, lower is better |
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar


if TYPE_CHECKING:
    import evaluate

MetricType = TypeVar("MetricType", bound="type[evaluate.Metric]")

# Modules of this package that are imported on first use: they need `evaluate`, which `import peft_listen` must not need.
_BUILT_IN = ("answers", "captions", "cider", "transcripts", "translation", "verification")

_METRICS: dict[str, type[evaluate.Metric]] = {}


def register_metric(name: str) -> Callable[[MetricType], MetricType]:
    """
    Class decorator that makes an `evaluate.Metric` available as `get_metric(name)`. Derive from [`BaseMetric`] to have
    the inputs checked and kept in memory.

    ```python
    >>> from peft_listen.metrics import get_metric, register_metric
    >>> from peft_listen.metrics.base import BaseMetric

    >>> @register_metric("mean_length")
    ... class MeanLength(BaseMetric):
    ...     '''Mean number of characters of the predictions.'''
    ...
    ...     def _compute(self, predictions, references):
    ...         return {"mean_length": sum(map(len, predictions)) / len(predictions)}

    >>> get_metric("mean_length").compute(predictions=["four", "of"], references=["", ""])
    {'mean_length': 3.0}

    ```

    Args:
        name (`str`): name to pass to [`get_metric`].

    Raises:
        ValueError: if another class is registered under this name.
        TypeError: if the class is not a subclass of `evaluate.Metric`.
        ImportError: if `evaluate` is not installed.
    """

    def register(cls: MetricType) -> MetricType:
        from .base import evaluate

        if not (inspect.isclass(cls) and issubclass(cls, evaluate.Metric)):
            raise TypeError(f"A metric must be a subclass of `evaluate.Metric`, got {cls!r}.")
        registered = _METRICS.get(name)
        # A class defined again under the same qualified name (a re-run notebook cell) replaces itself.
        if registered is not None and registered.__qualname__ != cls.__qualname__:
            raise ValueError(
                f"The metric name {name!r} is already used by {registered.__qualname__}; register {cls.__qualname__} "
                "under another name."
            )
        _METRICS[name] = cls
        return cls

    return register


def available_metrics() -> list[str]:
    """
    Returns the names of all registered metrics, sorted.

    Raises:
        ImportError: if `evaluate` is not installed.
    """
    _import_built_in()
    return sorted(_METRICS)


def get_metric(name: str, **kwargs: Any) -> evaluate.Metric:
    """
    Creates the metric that is registered under `name`. Nothing is downloaded, and no file is written unless several
    processes share the metric.

    Args:
        name (`str`): one of [`available_metrics`].
        **kwargs (`Any`): options of the metric (see its class) and settings of [`BaseMetric`].

    Returns:
        `evaluate.Metric`: `compute(predictions=..., references=...)` returns a `dict` with the value under the key
        `name`; `add` and `add_batch` collect inputs for a later `compute()`.

    Raises:
        ValueError: if no metric has that name, or if the metric does not accept these arguments.
        ImportError: if a library of the extra `metrics` is not installed.
    """
    cls = metric_class(name)
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ValueError(f"The metric {name!r} does not accept the arguments {kwargs}: {error}") from error


def metric_class(name: str) -> type[evaluate.Metric]:
    """
    Returns the class of a metric.

    Args:
        name (`str`): one of [`available_metrics`].

    Raises:
        ValueError: if no metric has that name.
        ImportError: if `evaluate` is not installed.
    """
    _import_built_in()
    if not isinstance(name, str) or name not in _METRICS:
        raise ValueError(
            f"There is no metric {name!r}; registered metrics: {', '.join(sorted(_METRICS))}. "
            "Add your own with `@register_metric`."
        )
    return _METRICS[name]


def _import_built_in() -> None:
    for module in _BUILT_IN:
        importlib.import_module(f".{module}", __package__)
