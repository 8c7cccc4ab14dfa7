"""Settings of one benchmark run: exactly the values that its result depends on."""

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
        seed (`int`, defaults to 0): seed of the initialization, the order of the data and the prompt lengths.
        steps (`int`, defaults to 300): number of optimizer steps.
        batch_size (`int`, defaults to 8): clips per step.
        learning_rate (`float`, defaults to 5e-4): learning rate of the projector, of LoRA and of the keys.
        value_learning_rate (`float`, defaults to 5e-3): learning rate of soft prompts, and of the pool's values unless the
            method scales it.
        tasks (`tuple[str, ...]`): tasks to train on; all tasks are evaluated.
        train_per_task (`int`, defaults to 800): training examples per task, taken from the beginning of the file.
        prompt_lengths (`tuple[int, ...]`): additional prompt lengths at which the trained pool is evaluated.
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
    def hash(self) -> str:
        """Hash of all settings, 8 hexadecimal digits."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Identifier of the run: method, seed and hash. No two runs share one."""
        return f"{self.method}-seed{self.seed}-{self.hash}"

    def as_json(self) -> dict[str, Any]:
        """The settings as they are stored in a run's result file."""
        return json.loads(json.dumps(asdict(self)))
