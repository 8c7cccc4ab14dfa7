"""Stored runs with given scores, without any training."""

from collections.abc import Callable
from typing import Any

from benchmarks.mini_listen.comparison import Study
from benchmarks.mini_listen.experiments import GROUPS
from benchmarks.mini_listen.settings import FORMS, TASKS, RunSettings


BASE = RunSettings.of_form(FORMS["full"])


def make_run(settings: RunSettings, scores: dict[str, float], loss: float = 1.0, clips: int = 20) -> dict[str, Any]:
    """Content of a result file in which every clip of a task has the same score."""
    scores = {task: scores[task] for task in settings.evaluated_tasks}
    losses = dict.fromkeys(scores, loss)
    return {
        "settings_hash": settings.hash,
        "settings": settings.as_json(),
        "adapter_parameters": 1234,
        "seconds_per_step": 2.5 if settings.method == "listen" else 2.0,
        "device": "cpu",
        "start": None,
        "train_loss": losses,
        "validation_loss": losses,
        "validation_loss_training_wordings": losses,
        "test": {task: {"score": score} for task, score in scores.items()},
        "clip_scores": {task: [score] * clips for task, score in scores.items()},
        "losses_by_prompt_length": {"1": losses, "20": losses} if settings.method == "listen" else {},
        "log": [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}],
    }


def make_study(
    scores: dict[str, float | Callable[[str, int], float]],
    seeds: int = 6,
    single: float | None = 0.8,
    skills: dict[str, float] | None = None,
) -> Study:
    """
    A study in which some methods have stored runs.

    Args:
        scores: by label, the score of each task, or a function of task and seed.
        seeds: how many seeds of each experiment are stored.
        single: score of every run on one task alone; not stored if `None`.
        skills: losses of the frozen language model.
    """
    stored = {}
    experiments = [one for group in ("methods", "single_tasks") for one in GROUPS[group](BASE)]
    for experiment in experiments:
        score = scores.get(experiment.label, single if experiment.label.startswith("LoRA on ") else None)
        for settings in experiment.runs()[:seeds] if score is not None else ():
            by_task = {task: score(task, settings.seed) if callable(score) else score for task in TASKS}
            stored[settings.name] = make_run(settings, by_task, loss=2 - sum(by_task.values()) / len(TASKS))
    return Study(BASE, stored, skills)
