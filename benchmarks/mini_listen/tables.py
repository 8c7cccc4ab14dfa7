"""Tables in Markdown from the stored runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from peft_listen.markdown import markdown_table

from .comparison import Study
from .evaluation import CLIP_SCORERS
from .experiments import (
    CONNECTOR,
    DPS,
    EQUAL_SOFT_PROMPT,
    LORA,
    SOFT_PROMPT,
    TRIED_RATES,
    TUNED_RATES,
    Experiment,
    single_task_label,
)
from .settings import TASKS
from .skills import LARGEST_LOSS, tasks_with_skill
from .storage import Run


METRICS = {"asr": "word accuracy", "en2zh": "chrF", "acap": "ROUGE-L"}
# Names of the poolings of `routing.py`.
_POOLINGS = {"mean": "mean", "last": "last token"}
# Methods that the table of comparisons sets against DPS.
METHOD_LABELS = {"lora": LORA, "listen": DPS, "soft_prompt": EQUAL_SOFT_PROMPT}


def spread(values: Sequence[float], factor: float = 1.0, digits: int = 2) -> str:
    """Mean of some values, with the standard deviation if there are several; empty for none."""
    if not values:
        return ""
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"


def methods_table(study: Study) -> str:
    """All methods: parameters, normalized scores and their balance, mean scores and losses."""
    header = (
        *("method", "parameters", "learning rate", "steps", "seeds", "mean z", "worst task's z", "spread of z"),
        *("score", "validation loss", "the same, trained wordings", "loss, trained clips", "s per step"),
    )
    rows = []
    for experiment in study.groups["methods"]:
        runs, settings = study.runs(experiment.label), experiment.settings
        start = [experiment.label, _parameters(runs.values()), f"{settings.learning_rate:g}", str(settings.steps)]
        if not runs:
            rows.append([*start, _not_run(experiment), *[""] * (len(header) - 5)])
            continue
        balances = study.balances(experiment.label).values()
        means = [statistics.fmean(run["test"][task]["score"] for task in study.tasks) for run in runs.values()]
        rows.append(
            [
                *start,
                f"{len(runs)} of {len(experiment.seeds)}",
                *(spread([getattr(one, name) for one in balances]) for name in ("mean", "worst", "spread")),
                spread(means, 100, 1),
                *(
                    spread(study.losses(experiment.label, name))
                    for name in ("validation_loss", "validation_loss_training_wordings", "train_loss")
                ),
                _seconds_per_step(runs.values()),
            ]
        )
    return markdown_table(header, rows)


def scores_table(study: Study) -> str:
    """Scores of all methods on all tasks; those whose skill the frozen model lacks come last, and are marked."""
    lacking = [task for task in study.base.tasks if task not in study.tasks]
    tasks = [*study.tasks, *lacking]
    header = ["score, times 100", *study.tasks, *(f"{task} \\*" for task in lacking)]
    rows = [
        [
            experiment.label,
            *(spread([run["test"][task]["score"] for run in runs.values()], 100, 1) for task in tasks),
        ]
        for experiment in study.groups["methods"]
        if (runs := study.runs(experiment.label))
    ]
    note = "\n\n\\* The frozen language model lacks the skill; not part of any mean." if lacking else ""
    return f"{markdown_table(header, rows)}{note}" if rows else ""


def comparisons_table(study: Study) -> str:
    """DPS minus each other method on common seeds, with both tests."""
    rows = []
    for experiment in study.groups["methods"]:
        label = experiment.label
        if label != DPS and (result := study.compare(DPS, label)) is not None:
            interval = result.interval
            rows.append(
                [
                    label,
                    str(len(result.seeds)),
                    f"{interval.mean:+.3f}",
                    f"{interval.low:+.3f} to {interval.high:+.3f}",
                    f"{result.p_value:.3f}",
                    f"{len(result.won)} of {len(result.tasks)}",
                    f"{study.score_difference(DPS, label):+.1f}",
                    f"{study.loss_difference(DPS, label):+.3f}",
                ]
            )
    measure = "mean score" if study.scale is None else "mean z"
    header = (
        *("DPS minus", "seeds", measure, "95 % interval", "p, sign-flip", "tasks at or above"),
        *("score, points", "validation loss"),
    )
    return markdown_table(header, rows) if rows else ""


def single_tasks_table(study: Study) -> str:
    """The room of each task: the projector alone, LoRA on the task alone, and LoRA and DPS on all tasks."""
    columns = [CONNECTOR, LORA, DPS]
    means = {label: study.task_means(label) for label in columns}
    rows = []
    for task in study.base.tasks:
        alone = [
            spread(
                [run["test"][task]["score"] for run in study.runs(single_task_label(task, factor)).values()], 100, 1
            )
            for factor in (1, 4)
        ]
        together = ["" if (mean := means[label]) is None else f"{100 * mean[task]:.1f}" for label in columns]
        rows.append([task, METRICS.get(task, "accuracy"), together[0], *alone, *together[1:]])
    assert set(CLIP_SCORERS) == set(TASKS)
    header = ("score, times 100", "metric", CONNECTOR, "LoRA on it alone", "with 4 x its rows", LORA, DPS)
    return markdown_table(header, rows) if any(any(row[2:]) for row in rows) else ""


def learning_rates_table(study: Study) -> str:
    """Validation losses by learning rate, and a sentence for each method whose chosen rate is not the best stored one."""
    columns = sorted({rate for rates in TRIED_RATES.values() for rate in rates})
    rows, remarks = [], []
    for method, rates in TRIED_RATES.items():
        label, chosen = METHOD_LABELS[method], TUNED_RATES[study.base.form][method]
        losses = {rate: values[0] for rate in rates if (values := study.losses(f"{label}, at {rate:g}"))}
        if not losses:
            continue
        cells = [f"{losses[rate]:.3f}" if rate in losses else "not run" if rate in rates else "" for rate in columns]
        rows.append([label, *cells, f"{chosen:g}"])
        best = min(losses, key=lambda rate: losses[rate])
        if best != chosen:
            remarks.append(f"{label}: {best:g} has the lowest stored loss, and {chosen:g} was used.")
    if not rows:
        return ""
    table = markdown_table(("validation loss", *(f"{rate:g}" for rate in columns), "used"), rows)
    return "\n\n".join([table, *remarks])


def stage0_table(study: Study) -> str:
    """The forms of stage 0, by validation loss."""
    reference = {label: study.losses(label) for label in (f"short: {SOFT_PROMPT}", f"short: {LORA}")}
    soft, lora = (values[0] if values else None for values in reference.values())
    lines = []
    for experiment in study.groups["stage0"]:
        runs = list(study.runs(experiment.label).values())
        label = experiment.label.removeprefix("short: ")
        if not runs:
            lines.append((float("inf"), [label, "", _not_run(experiment), *[""] * 4]))
            continue
        loss = study.mean_loss(runs[0]["validation_loss"])
        known = study.mean_loss(runs[0]["validation_loss_training_wordings"])
        lines.append(
            (
                loss,
                [
                    label,
                    _parameters(runs),
                    f"{loss:.3f}",
                    "" if soft is None else f"{loss - soft:+.3f}",
                    "" if lora is None else f"{loss - lora:+.3f}",
                    f"{known:.3f}",
                    _seconds_per_step(runs),
                ],
            )
        )
    header = (
        "form",
        "parameters",
        "validation loss",
        "minus soft prompt",
        "minus LoRA",
        "trained wordings",
        "s per step",
    )
    return markdown_table(header, [cells for _, cells in sorted(lines, key=lambda line: line[0])])


def skills_table(study: Study) -> str:
    """Losses of the frozen language model with four examples in text, by task."""
    if study.skills is None:
        return ""
    cells = [f"{study.skills[task]:.2f}" for task in TASKS]
    skilled = tasks_with_skill(study.skills)
    state = ["yes" if task in skilled else "**no**" for task in TASKS]
    return markdown_table(
        ["", *TASKS], [["loss per token", *cells], [f"below {LARGEST_LOSS:g}: has the skill", *state]]
    )


def routing_table(study: Study) -> str:
    """What a key tells about the task, by query and keys of a group: trained and new wordings."""
    if study.routing is None:
        return ""
    rows = []
    for one in study.routing:
        text = "mean of the embeddings" if one["layer"] == 0 else f"{_POOLINGS[one['pooling']]}, layer {one['layer']}"
        rows.append([text, *(f"{trained:.2f} / {new:.2f}" for trained, new in one["shares"].values())])
    best = (f"{min(1.0, int(count) / len(study.base.tasks)):.2f}" for count in study.routing[0]["shares"])
    header = ["own task's share, trained / new wordings", *(f"{count} keys" for count in study.routing[0]["shares"])]
    return markdown_table(header, [*rows, ["the most that is possible", *best]])


def prompt_lengths_table(study: Study) -> str:
    """Mean validation loss at each prompt length."""
    header: list[str] = []
    rows = []
    for experiment in study.groups["prompt_lengths"]:
        for run in study.runs(experiment.label).values():
            losses = run["losses_by_prompt_length"]
            header = header or ["validation loss at k =", *losses]
            rows.append([experiment.label, *(f"{study.mean_loss(by_task):.3f}" for by_task in losses.values())])
    return markdown_table(header, rows) if rows else ""


def trained_tasks_table(study: Study, group: str) -> str:
    """Runs on some of the tasks: the mean over those, and what the others get."""
    rows = []
    for experiment in study.groups[group]:
        for run in study.runs(experiment.label).values():
            trained = [task for task in study.tasks if task in experiment.settings.tasks]
            others = [task for task in study.tasks if task not in experiment.settings.tasks]
            losses, scores = run["validation_loss"], {task: run["test"][task]["score"] for task in study.base.tasks}
            rows.append(
                [
                    experiment.label,
                    str(len(experiment.settings.tasks)),
                    *(
                        f"{factor * statistics.fmean(values[task] for task in tasks):.{digits}f}" if tasks else ""
                        for tasks in (trained, others)
                        for values, factor, digits in ((losses, 1, 3), (scores, 100, 1))
                    ),
                ]
            )
    header = (
        *("run", "trained tasks", "validation loss, trained tasks", "score, trained tasks"),
        *("validation loss, other tasks", "score, other tasks"),
    )
    return markdown_table(header, rows) if rows else ""


def missing_table(study: Study) -> str:
    """The seeds without a stored run, by group and experiment; a sentence if there are none."""
    labels: dict[tuple[str, str], list[str]] = {}
    for group, experiments in study.groups.items():
        for experiment in experiments:
            if experiment.missing_options:
                labels.setdefault((group, _not_run(experiment)), []).append(experiment.label)
            elif seeds := study.missing(experiment.label):
                labels.setdefault((group, f"seeds {', '.join(map(str, seeds))}"), []).append(experiment.label)
    if not labels:
        return "All runs are stored."
    rows = [[group, state, "; ".join(names)] for (group, state), names in labels.items()]
    return markdown_table(("group", "missing", "experiments"), rows)


def _not_run(experiment: Experiment) -> str:
    missing = experiment.missing_options
    return f"needs {', '.join(missing)}" if missing else "not run"


def _parameters(runs: Iterable[Run]) -> str:
    return next((f"{run['adapter_parameters']:,}".replace(",", " ") for run in runs), "")


def _seconds_per_step(runs: Iterable[Run]) -> str:
    seconds = [run["seconds_per_step"] for run in runs if run["seconds_per_step"] is not None]
    return f"{statistics.fmean(seconds):.2f}" if seconds else ""
