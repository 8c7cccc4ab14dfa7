"""The stage before the runs of a form: the projector is trained on all tasks of the form, once, and all runs start from it.

A short run is then about what the adapter adds, and not about learning to hear. Between a projector that was trained alone and
any prompts, one does not fit the other: with 20 random tokens before the input, its losses are twice as high. So in the second
part of the stage, random prompts of random length come first in half of the steps. They are not trained.

The full form has no such stage: its projectors start untrained, as in the paper's single stage.
"""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from transformers import TrainerCallback

from peft_listen.files import atomic_path

from .evaluation import Evaluator
from .material import Material, adapt, projector_path
from .settings import Form, RunSettings
from .training import read_split, train


# Not a seed of the runs, so their clips come in another order.
START_SEED = 8
START_RATE = 1e-3
# Share of the steps that are made without prompts, and of the steps that begin the second part.
WITHOUT_PROMPTS = 0.5
FIRST_PART = 0.75


class DrawnPrompts(TrainerCallback):
    """Switches the prompts of a model off in some of the steps, drawn at random."""

    def __init__(self, model: PeftModel, seed: int) -> None:
        self._model = model
        self._seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # By the number of the step, so that an interrupted run draws the same.
        is_off = random.Random(f"{self._seed}:{state.global_step}").random() < WITHOUT_PROMPTS
        tuner = self._model.base_model
        tuner.disable_adapter_layers() if is_off else tuner.enable_adapter_layers()


def train_projector(form: Form, material: Material, work_dir: Path, device: str = "cpu") -> Path | None:
    """
    Trains the projector from which all runs of a form start, or reuses it. Its validation losses with and without random prompts,
    before and after the second part, are printed and written to a JSON file beside it.

    Args:
        form ([`Form`])
        material ([`Material`]): data and models that all runs share.
        work_dir (`Path`): folder for checkpoints, from which an interrupted call continues.
        device (`str`, defaults to `"cpu"`): `"cpu"` or `"cuda"`.

    Returns:
        `Path` or `None`: file of the weights; `None` for a form without this stage.
    """
    if not form.projector_steps:
        return None
    path = projector_path(material, form.projector_steps)
    if path.is_file():
        return path
    losses: dict[str, dict[str, float]] = {}
    for name, settings in start_settings(form).items():
        written = projector_path(material, settings.steps + settings.projector_steps)
        if written.is_file():
            continue
        adapted, collator = adapt(settings, material, device)
        has_prompts = isinstance(adapted.model, PeftModel)
        projector = (adapted.model.get_base_model() if has_prompts else adapted.model).model.multi_modal_projector
        projector.requires_grad_(True)
        evaluator = Evaluator(adapted.model.to(device), material.processor, collator, precision=settings.precision)
        if has_prompts:
            adapted.callbacks.append(DrawnPrompts(adapted.model, settings.seed))
            losses["the projector alone"] = _losses(evaluator, material)
        examples = read_split(material.data_dir, "train", settings.tasks, settings.train_per_task)
        print(f"{name}: {settings.steps} steps", flush=True)
        train(adapted, collator, examples, settings, work_dir / settings.name, device)
        if has_prompts:
            losses[name] = _losses(evaluator, material)
        with atomic_path(written) as temporary:
            save_file({name: weight.contiguous().cpu() for name, weight in projector.state_dict().items()}, temporary)
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
    print(f"validation losses: {losses}", flush=True)
    return path


def _losses(evaluator: Evaluator, material: Material) -> dict[str, float]:
    """Mean validation losses with and without the random prompts."""
    tuner = evaluator.model.eval().base_model
    losses = {}
    for name, switch in (
        ("with random prompts", tuner.enable_adapter_layers),
        ("without prompts", tuner.disable_adapter_layers),
    ):
        switch()
        losses[name] = round(statistics.fmean(evaluator.losses(material.validation).values()), 4)
    tuner.enable_adapter_layers()
    return losses


def start_settings(form: Form) -> dict[str, RunSettings]:
    """Settings of the two parts of the stage before the runs of a form, by a description."""
    first = max(1, round(FIRST_PART * form.projector_steps))
    shared = {"seed": START_SEED, "learning_rate": START_RATE, "value_learning_rate": START_RATE}
    alone = RunSettings.of_form(form, method="projector", steps=first, projector_steps=0, **shared)
    return {
        "the projector alone": alone,
        "the projector with random prompts": replace(
            alone,
            method="random_prompts",
            seed=START_SEED + 1,
            steps=form.projector_steps - first,
            projector_steps=first,
        ),
    }
