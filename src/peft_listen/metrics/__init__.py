"""Task metrics as `evaluate.Metric` objects that need no network. They need the extra `metrics`."""

from .registry import available_metrics, get_metric, register_metric


__all__ = ["available_metrics", "get_metric", "register_metric"]
