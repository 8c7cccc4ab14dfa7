"""Training runs: from data files and the names of models to a scored model. They need the extras `train` and `metrics`."""

from .options import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments
from .training_run import RunResult, TrainingRun


__all__ = [
    "AdapterOptions",
    "DataOptions",
    "ListenOptions",
    "ModelOptions",
    "RunArguments",
    "RunResult",
    "TrainingRun",
]
