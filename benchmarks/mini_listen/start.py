"""The stage before the runs of a form: the projector alone is trained on all tasks of the form, once.

All runs of the form start from its weights, so a short run is about what the adapter adds, and not about learning to hear.
The full form has no such stage: its projectors start untrained, as in the paper's single stage.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from peft_listen.files import atomic_path

from .material import Material, adapt, projector_path
from .settings import Form, RunSettings
from .training import read_split, train


# Not a seed of the runs, so their clips come in another order.
START_SEED = 8
START_RATE = 1e-3


def train_projector(form: Form, material: Material, work_dir: Path, device: str = "cpu") -> Path | None:
    """
    Trains the projector from which all runs of a form start, or reuses it.

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
    if not path.is_file():
        settings = start_settings(form)
        adapted, collator = adapt(settings, material, device)
        examples = read_split(material.data_dir, "train", settings.tasks, settings.train_per_task)
        print(f"training the projector alone for {settings.steps} steps", flush=True)
        train(adapted, collator, examples, settings, work_dir / settings.name, device)
        weights = adapted.model.model.multi_modal_projector.state_dict()
        with atomic_path(path) as temporary:
            save_file({name: weight.contiguous().cpu() for name, weight in weights.items()}, temporary)
    return path


def start_settings(form: Form) -> RunSettings:
    """Settings of the stage before the runs of a form."""
    others = {"steps": form.projector_steps, "learning_rate": START_RATE, "projector_steps": 0}
    return RunSettings.of_form(form, method="projector", seed=START_SEED, **others)
