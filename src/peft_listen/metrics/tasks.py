"""The metrics by which each task is scored, and their notation in data files and on the command line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .registry import get_metric, metric_class


if TYPE_CHECKING:
    import evaluate


# The tasks of the paper. It scores captions by METEOR and SPIDEr, which need Java.
_TASK_METRICS: dict[str, tuple[str, ...]] = {
    "asr": ("wer", "cer"),
    "en2zh": ("bleu:tokenize=zh", "chrf"),
    "er": ("accuracy",),
    "sv": ("accuracy",),
    "sqa": ("squad_f1", "exact_match"),
    "acap": ("rouge_l", "cider"),
}
_DEFAULT = ("exact_match",)


@dataclass(frozen=True)
class MetricChoice:
    """
    A metric and its options.

    The notation is `name` or `name:option=value,option=value`. A value is read as JSON where possible, and is a text
    otherwise; `|` separates the items of a list: `accuracy:labels=happy|sad|neutral`.

    ```python
    >>> from peft_listen.metrics import MetricChoice
    >>> MetricChoice.parse("bleu:tokenize=zh")
    MetricChoice(name='bleu', options={'tokenize': 'zh'})

    ```

    Attributes:
        name (`str`): name of a registered metric.
        options (`dict[str, Any]`): options of the metric's class.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> MetricChoice:
        """
        Reads the notation. The options are those of the metric itself, without the settings of `BaseMetric`, such as
        folders: data files may be written by somebody else.

        Args:
            text (`str`): a metric in the notation of this class.

        Raises:
            ValueError: if no metric has that name, an option is unknown, or the text is not in the notation.
        """
        name, _, options_text = text.strip().partition(":")
        allowed = _options_of(metric_class(name.strip()))
        options = {}
        for item in filter(None, (item.strip() for item in options_text.split(","))):
            option, equals, value = (part.strip() for part in item.partition("="))
            if not equals or option not in allowed:
                raise ValueError(
                    f"The metric {text!r} has the option {item!r}; expected `name` or `name:option=value,...`, and "
                    f"{name.strip()!r} has " + (f"the options {', '.join(allowed)}." if allowed else "no options.")
                )
            options[option] = _value(value)
        return cls(name.strip(), options)

    def create(self) -> evaluate.Metric:
        """
        Creates the metric.

        Raises:
            ValueError: if the metric does not accept a value of its options.
            ImportError: if the library of the metric is not installed.
        """
        return get_metric(self.name, **self.options)


def _options_of(metric: type) -> list[str]:
    from .base import BaseMetric, evaluate

    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    settings = {*inspect.signature(BaseMetric).parameters, *inspect.signature(evaluate.Metric).parameters}
    parameters = inspect.signature(metric).parameters.values()
    return [each.name for each in parameters if each.kind in kinds and each.name not in settings]


def _value(text: str) -> Any:
    if "|" in text:
        return [_value(item.strip()) for item in text.split("|")]
    try:
        return json.loads(text)
    except ValueError:
        return text


def register_task_metrics(task: str, *metrics: str) -> None:
    """
    Sets the metrics by which a task is scored where nothing else is said.

    Args:
        task (`str`): name of the task; case is ignored.
        metrics (`str`): one or more metrics in the notation of [`MetricChoice`]; the first is the main one.

    Raises:
        ValueError: if there is none, or one is not a metric.
    """
    if not metrics:
        raise ValueError(f"The task {task!r} needs at least one metric.")
    for metric in metrics:
        MetricChoice.parse(metric)
    _TASK_METRICS[task.casefold()] = metrics


def task_metrics(task: str) -> list[MetricChoice]:
    """
    Returns the metrics of a task: those of the paper's six tasks, those of [`register_task_metrics`], and exact match for
    all others.

    Args:
        task (`str`): name of the task; case is ignored.
    """
    return [MetricChoice.parse(metric) for metric in _TASK_METRICS.get(task.casefold(), _DEFAULT)]


def named_task_metrics() -> dict[str, tuple[str, ...]]:
    """The tasks whose names are known, with their metrics in the notation of [`MetricChoice`]; the first is the main one."""
    return dict(_TASK_METRICS)


def parse_task_metrics(assignments: Sequence[str]) -> dict[str, list[MetricChoice]]:
    """
    Reads assignments of metrics to tasks.

    ```python
    >>> from peft_listen.metrics.tasks import parse_task_metrics
    >>> parse_task_metrics(["asr=wer", "asr=cer", "tags=exact_match"])["asr"]
    [MetricChoice(name='wer', options={}), MetricChoice(name='cer', options={})]

    ```

    Args:
        assignments (`Sequence[str]`): `TASK=METRIC` each; a task may occur more than once, its first metric is the main one.

    Returns:
        `dict[str, list[MetricChoice]]`: the metrics of each task.

    Raises:
        ValueError: for an assignment of another form, or a metric that does not exist.
    """
    result: dict[str, list[MetricChoice]] = {}
    for assignment in assignments:
        task, equals, metric = assignment.partition("=")
        if not equals or not task.strip() or not metric.strip():
            raise ValueError(f"{assignment!r} does not assign a metric to a task; expected TASK=METRIC, e.g. asr=wer.")
        result.setdefault(task.strip(), []).append(MetricChoice.parse(metric))
    return result
