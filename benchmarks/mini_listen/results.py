"""Makes the page of the results from the stored runs, without models or data.

    python -m benchmarks.mini_listen.results [--form small] [--write benchmarks/RESULTS.md] [--plots FOLDER]

`--write` replaces the text between the markers of the form in a Markdown file. What cannot be said yet names the missing
runs. `peft-listen report RUN.safetensors` makes the report on the selections of one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.markdown import write_texts

from . import tables
from .comparison import Study
from .experiments import CANDIDATE, DPS, LORA, LORA_EQUAL_COMPUTE
from .planning import add_settings, results_folder, settings_of
from .plots import plot
from .routing import read_routing
from .skills import read_skills
from .storage import read_results
from .verdicts import verdicts


def page(study: Study, plots: list[str] | None = None) -> str:
    """
    The page of a form in Markdown: what was compared, the verdicts, the tables, what was not won, and what is missing.

    Args:
        study ([`Study`]): the stored runs.
        plots (`list[str]`, *optional*): paths of plots to link, relative to the page.

    Returns:
        `str`: the page.
    """
    if not study.stored:
        return (
            "No run of this form is stored yet. `python -m benchmarks.mini_listen.run --list --form "
            f"{study.base.form}` lists its runs."
        )
    parts = [compared(study)]
    for title, content in sections(study):
        if content:
            parts.append(f"### {title}\n\n{content}")
    parts += [f"![{Path(path).stem.replace('_', ' ')}]({path})" for path in plots or ()]
    return "\n\n".join(parts)


def sections(study: Study) -> Iterator[tuple[str, str]]:
    """Titles and contents of the page's sections; a section without content is left out."""
    yield (
        "Verdicts",
        "\n".join(
            f"- {one.question} **{one.outcome.capitalize()}.** {one.reason[0].upper()}{one.reason[1:]}"
            for one in verdicts(study)
        ),
    )
    yield "Methods", tables.methods_table(study)
    yield "Scores by task", tables.scores_table(study)
    yield "DPS compared with each method", tables.comparisons_table(study)
    yield "Not won", not_won(study)
    yield "Room of the tasks", tables.single_tasks_table(study)
    yield "Skills of the frozen language model", tables.skills_table(study)
    yield "Learning rates", tables.learning_rates_table(study)
    yield "Stage 0: which form to compare", tables.stage0_table(study)
    yield "Which query knows the task", tables.routing_table(study)
    yield "Prompt lengths", tables.prompt_lengths_table(study)
    for group, title in (("pool_sizes", "Pool sizes"), ("held_out_tasks", "A task without training")):
        yield title, tables.trained_tasks_table(study, group)
    yield "Missing runs", tables.missing_table(study)


def compared(study: Study) -> str:
    """The sentences at the beginning: what was compared, and on what."""
    base = study.base
    devices = sorted({run["device"] for run in study.stored.values()})
    tasks = f"{len(study.tasks)} tasks"
    if study.skills is None:
        tasks += (
            " (the skills of the frozen language model were not measured: `python -m benchmarks.mini_listen.skills"
        )
        tasks += f" --form {base.form}`)"
    start = (
        f"from a projector that was trained for {base.projector_steps} steps before"
        if base.projector_steps
        else "from an untrained projector"
    )
    options = ", ".join(f"`{name}={value!r}`" for name, value in CANDIDATE.items())
    text = (
        f"{base.steps} steps of {base.batch_size} clips in {base.precision}, {start}; {base.test_per_task} test clips for each of "
        f"{tasks}; {len(study.stored)} stored runs{f', on {chr(44).join(devices)}' if devices else ''}. DPS is {options}. "
        "Scores are means over the test clips, ± the standard deviation over the seeds. z is 0 for the projector alone and "
        "1 for the best run on the task alone. Validation and test have wordings of the instructions that are not in "
        "training."
    )
    compared_runs = [run for experiment in study.groups["methods"] for run in study.runs(experiment.label).values()]
    starts = {run["start"] for run in compared_runs}
    if len(starts) > 1:
        text += f" The runs of the methods started from {len(starts)} different projectors."
    ours, theirs = (
        [run["seconds_per_step"] for run in study.runs(label).values() if run["seconds_per_step"] is not None]
        for label in (DPS, LORA)
    )
    if ours and theirs:
        cost = statistics.fmean(ours) / statistics.fmean(theirs)
        ratio = study.experiment(LORA_EQUAL_COMPUTE).settings.steps / base.steps
        text += (
            f" A step of DPS took {cost:.2f} times as long as one of LoRA; *{LORA_EQUAL_COMPUTE}* has {ratio:.2f} times "
            "the steps."
        )
    return text


def not_won(study: Study) -> str:
    """The tasks on which DPS is below LoRA, and the questions that were answered with no."""
    lines = []
    result = study.compare(DPS, LORA)
    if result is not None:
        lost = [task for task in result.tasks if task not in result.won]
        if lost:
            lines.append(f"- DPS is below LoRA on {', '.join(lost)}.")
        if (loss := study.loss_difference(DPS, LORA)) is not None and loss > 0:
            lines.append(f"- LoRA's validation loss is lower by {loss:.3f}.")
    lines += [f"- {one.question} No." for one in verdicts(study) if one.outcome == "no"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_settings(parser)
    parser.add_argument("--write", type=Path, help="Markdown file with markers, such as benchmarks/RESULTS.md")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    arguments = parser.parse_args()
    study = Study(
        settings_of(arguments),
        read_results(results_folder(arguments)),
        read_skills(arguments.results, arguments.form),
        read_routing(arguments.results, arguments.form),
    )
    paths = plot(study, arguments.plots) if arguments.plots else []
    start = arguments.write.parent if arguments.write else Path()
    text = page(study, [Path(os.path.relpath(path, start)).as_posix() for path in paths])
    print(text)
    if arguments.write:
        write_texts(arguments.write, {arguments.form: text})


if __name__ == "__main__":
    main()
