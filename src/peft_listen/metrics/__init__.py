"""Task metrics as `evaluate.Metric` objects that need no network. They need the extra `metrics`."""

from .registry import available_metrics, get_metric, register_metric
from .scoring import TaskScore, mean_quality, score_predictions
from .tasks import MetricChoice, register_task_metrics, task_metrics


__all__ = [
    "MetricChoice",
    "TaskScore",
    "available_metrics",
    "get_metric",
    "mean_quality",
    "register_metric",
    "register_task_metrics",
    "score_predictions",
    "task_metrics",
]
