"""Settings of one benchmark run, exactly the values that its result depends on, and the forms of the benchmark."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


TASKS = (
    # Asked about the same clips of one spoken sentence.
    *("asr", "en2zh", "sqa", "first_word", "last_word", "word_count", "gender", "tempo", "sentence_type"),
    # Each about clips of its own.
    *("er", "sv", "acap"),
)

# Those whose skill the frozen language model has, by the rule of `skills.py`.
SKILLED_TASKS = ("asr", "first_word", "gender", "tempo", "er", "sv", "acap")

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Form:
    """
    A size of the benchmark. All forms have the same commands and experiments.

    Args:
        name (`str`): name of the form and of the folder of its results.
        steps (`int`): optimizer steps of a full run.
        batch_size (`int`): clips per step.
        train_per_task, validation_per_task, test_per_task (`int`): examples of each task. The training loss is measured
            on as many clips as the validation loss.
        precision (`str`): `"float32"`, or `"bf16"` for bfloat16 autocast.
        tasks (`tuple[str, ...]`, defaults to `TASKS`): tasks of the comparison.
        projector_steps (`int`, defaults to 0): optimizer steps of a stage before all runs, in which the projector is trained;
            see `start.py`.
    """

    name: str
    steps: int
    batch_size: int
    train_per_task: int
    validation_per_task: int
    test_per_task: int
    precision: Precision
    tasks: tuple[str, ...] = TASKS
    projector_steps: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each task, by split."""
        return {"train": self.train_per_task, "validation": self.validation_per_task, "test": self.test_per_task}


FORMS = {
    form.name: form
    for form in (
        Form("small", 80, 8, 800, 30, 60, "bf16", SKILLED_TASKS, projector_steps=800),
        Form("full", 1500, 16, 2000, 60, 300, "bf16"),
        Form("smoke", 3, 12, 8, 4, 4, "float32"),
    )
}


@dataclass(frozen=True)
class RunSettings:
    """
    Settings of one run.

    Args:
        method (`str`): a name registered in `methods.py`.
        options (`dict`): the method's own options, as its function takes them.
        seed (`int`, defaults to 0): seed of the initialization, the order of the data, the wordings and the prompt lengths.
        form (`str`, defaults to `"small"`): name of the form whose data are used.
        steps (`int`, defaults to 80): number of optimizer steps.
        batch_size (`int`, defaults to 8): clips per step.
        learning_rate (`float`, defaults to 5e-4): learning rate of the projector, of LoRA and of the keys.
        value_learning_rate (`float`, defaults to 5e-3): learning rate of soft prompts, and of the pool's values unless the
            method scales it.
        tasks (`tuple[str, ...]`): tasks to train on.
        evaluated_tasks (`tuple[str, ...]`): tasks to evaluate, in the order of `TASKS`.
        train_per_task, validation_per_task, test_per_task (`int`): examples of each task. Without test examples, the losses
            alone are measured.
        precision (`str`, defaults to `"float32"`): precision of training and evaluation.
        prompt_lengths (`tuple[int, ...]`): additional prompt lengths at which the trained pool is evaluated.
        projector_steps (`int`, defaults to 0): optimizer steps of the stage before, in which the projector was trained on
            all tasks of the form. With 0, its weights are the initial ones.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    form: str = "small"
    steps: int = 80
    batch_size: int = 8
    learning_rate: float = 5e-4
    value_learning_rate: float = 5e-3
    tasks: tuple[str, ...] = TASKS
    evaluated_tasks: tuple[str, ...] = TASKS
    train_per_task: int = 800
    validation_per_task: int = 30
    test_per_task: int = 60
    precision: Precision = "float32"
    prompt_lengths: tuple[int, ...] = ()
    projector_steps: int = 0

    @classmethod
    def of_form(cls, form: Form, **others: Any) -> RunSettings:
        """
        The settings that all runs of a form share.

        Args:
            form ([`Form`])
            others: values of other fields; the method is `"projector"` if not given.
        """
        return cls(
            **{
                "method": "projector",
                "form": form.name,
                "steps": form.steps,
                "batch_size": form.batch_size,
                **{f"{split}_per_task": count for split, count in form.sizes.items()},
                "precision": form.precision,
                "tasks": form.tasks,
                "evaluated_tasks": form.tasks,
                "projector_steps": form.projector_steps,
                **others,
            }
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each task, by split."""
        return {"train": self.train_per_task, "validation": self.validation_per_task, "test": self.test_per_task}

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
