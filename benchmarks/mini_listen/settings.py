"""What one run of the benchmark is: everything that its result depends on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


TASKS = ("asr", "en2zh", "er", "sv", "sqa", "acap")


@dataclass(frozen=True)
class RunSettings:
    """
    Settings of one run.

    Args:
        method (`str`): a name registered in `methods.py`.
        options (`dict`): the method's own options, as its function takes them.
        seed (`int`): of the initialisation, the order of the data and the prompt lengths.
        steps (`int`): optimizer steps.
        batch_size (`int`): clips of one step.
        learning_rate (`float`): of the projector, of LoRA, and of the keys.
        value_learning_rate (`float`): of soft prompts, and of the values of the pool unless the method says otherwise.
        tasks (`tuple[str, ...]`): the tasks that are trained; all are evaluated.
        train_per_task (`int`): examples of each task that are trained on, the first ones of the file.
        prompt_lengths (`tuple[int, ...]`): prompt lengths to evaluate besides the method's own.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 5e-4
    value_learning_rate: float = 5e-3
    tasks: tuple[str, ...] = TASKS
    train_per_task: int = 800
    prompt_lengths: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run's folder: the method, the seed and a hash of all else, so that no two runs share one."""
        content = json.dumps(asdict(self), sort_keys=True)
        return f"{self.method}-seed{self.seed}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def as_json(self) -> dict[str, Any]:
        """The settings as they are stored in a run's folder."""
        return json.loads(json.dumps(asdict(self)))
