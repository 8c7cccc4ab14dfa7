"""Evaluation: answers of a model to the rows of data files, and their scores. It needs the extra `metrics`."""

from .prediction import predict
from .scores import format_scores, save_scores


__all__ = ["format_scores", "predict", "save_scores"]
