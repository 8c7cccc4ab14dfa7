"""The registry of metrics.

```python
>>> from peft_listen.metrics import get_metric
>>> get_metric("exact_match").compute(predictions=["Happy."], references=["happy"])
{'exact_match': 1.0}

```

The metrics that are shipped, the library each stands on, and the range of its value:

| name | of | library | range |
|---|---|---|---|
| `exact_match` | answers | | 0 to 1, higher is better |
| `accuracy` | answers among known labels | scikit-learn | 0 to 1, higher is better |
| `wer`, `cer` | transcripts | jiwer | from 0, lower is better |
| `bleu`, `chrf` | translations | sacrebleu | 0 to 100, higher is better |
| `rouge_l` | captions | rouge-score | 0 to 1, higher is better |
| `eer` | scores of speaker verification | scikit-learn | 0 to 1, lower is better |
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar


if TYPE_CHECKING:
    import evaluate

MetricType = TypeVar("MetricType", bound="type[evaluate.Metric]")

# Modules of this package, imported on first use: they need `evaluate`, which `import peft_listen` must not.
_SHIPPED = ("accuracy", "bleu", "chrf", "equal_error_rate", "error_rates", "exact_match", "rouge_l")

_METRICS: dict[str, type[evaluate.Metric]] = {}


def register_metric(name: str) -> Callable[[MetricType], MetricType]:
    """
    Class decorator that makes an `evaluate.Metric` available as `get_metric(name)`. [`BaseMetric`] is a good parent: it
    checks the inputs and keeps them in memory.

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
        name (`str`): the name for [`get_metric`].

    Raises:
        ValueError: if another class is registered under this name.
        TypeError: if the class is no `evaluate.Metric`.
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
                f"The metric name {name!r} is taken by {registered.__qualname__}; choose another name for "
                f"{cls.__qualname__}."
            )
        _METRICS[name] = cls
        return cls

    return register


def available_metrics() -> list[str]:
    """
    Names of all registered metrics, sorted.

    Raises:
        ImportError: if `evaluate` is not installed.
    """
    _import_shipped()
    return sorted(_METRICS)


def get_metric(name: str, **kwargs: Any) -> evaluate.Metric:
    """
    Makes the metric that is registered under `name`. No file is downloaded, and none is written unless several
    processes share the metric.

    Args:
        name (`str`): one of [`available_metrics`].
        **kwargs: options of the metric (see its class), and the settings of [`BaseMetric`].

    Returns:
        `evaluate.Metric`: `compute(predictions=..., references=...)` returns a `dict` whose entry `name` is the value;
        `add` and `add_batch` collect the inputs of a later `compute()`.

    Raises:
        ValueError: if no metric has that name, or if it does not take these arguments.
        ImportError: if a library of the extra `metrics` is not installed.
    """
    _import_shipped()
    if name not in _METRICS:
        raise ValueError(
            f"There is no metric {name!r}; registered are {', '.join(sorted(_METRICS))}. "
            "Add your own with `@register_metric`."
        )
    try:
        return _METRICS[name](**kwargs)
    except TypeError as error:
        raise ValueError(f"The metric {name!r} does not take the arguments {kwargs}: {error}") from error


def _import_shipped() -> None:
    for module in _SHIPPED:
        importlib.import_module(f".{module}", __package__)
