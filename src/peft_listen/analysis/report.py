"""HTML report on the selections of an adapter: one page that needs no network and no other file."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..files import atomic_path, check_output_file
from .answers import TaskAnswers
from .findings import SAME_OVERLAP, SHARED_OVERLAP, describe_task_answers, overlap_mark, rate, rate_task_answers
from .nearest_words import NearestWords, NearWord
from .plots import THEME, plot_prompt_heatmap, plot_query_key_map, plot_usage, task_colors
from .query_space import Projection
from .records import SelectionRecords
from .summary import SelectionSummary, summarize


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROMPTS_SHOWN = 6
_EXAMPLES_SHOWN = 2
_WORDS_SHOWN = 5

# Widths of the figures in inches. The legends are part of the page. A screen of a phone shows the narrow figures.
_MAP_WIDTH, _WIDE, _NARROW = 8.0, 11.0, 4.6

# Configuration fields that affect selection.
_SETTINGS = (
    "selector",
    "selector_kwargs",
    "pool_size",
    "prompt_length",
    "stochastic_prompt_length",
    "center_queries",
    "standardize_queries",
    "query_pooling",
    "num_shared_prompts",
    "shared_prompt_mode",
    "key_loss_weight",
)


@dataclass(frozen=True)
class _Overlap:
    value: float
    mark: str


@dataclass(frozen=True)
class _Answers:
    task: str
    counts: TaskAnswers
    rating: str
    note: str
    live_prompts: int
    closest: str


@dataclass(frozen=True)
class _Prompt:
    index: int
    share: float
    also: str
    examples: list[str]
    words: list[NearWord]
    is_near: bool


def save_report(
    records: SelectionRecords,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    top: int = 10,
    projection: Projection = "pca",
    predictions: Iterable[Mapping[str, Any]] = (),
    words: NearestWords | None = None,
) -> SelectionSummary:
    """
    Writes an HTML report: rated summary statistics, correct answers, a map of queries and keys, the overlap of the tasks,
    and the most selected prompts of each task with example inputs and the nearest words of the vocabulary.

    Args:
        records ([`SelectionRecords`]): the selections.
        path (`str` or `os.PathLike`): HTML file to write.
        title (`str`, *optional*): heading of the page.
        top (`int`, defaults to 10): number of most selected prompts per task to compare.
        projection (`"pca"` or `"umap"`, defaults to `"pca"`): projection of the map; see
            [`~peft_listen.analysis.query_space.project`].
        predictions (`Iterable[Mapping]`, *optional*): answers of the model, with the strings `task`, `answer` and
            `generated`; see [`~peft_listen.data.read_predictions`]. The report then compares the correct answers of each
            task with the chance level.
        words ([`NearestWords`], *optional*): the nearest words of the prompts, from [`nearest_words`].

    Returns:
        [`SelectionSummary`]: the statistics shown in the report.

    Raises:
        OSError: if the file cannot be written; an existing file then remains unchanged.
        ValueError: if `top` is below 1, `projection` is neither of these, a prediction is not valid, or its task does not
            occur in the records.
        ImportError: if a library of the extra `analysis` is not installed.
    """
    check_output_file(path)
    summary = summarize(records, top, predictions)
    html = _render(records, summary, title or "Prompts selected by each task", projection, words)
    with atomic_path(path) as temporary:
        # Half surrogate pairs, as in a title from a file name that is not UTF-8, are the only characters to replace.
        temporary.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")
    return summary


def _render(
    records: SelectionRecords,
    summary: SelectionSummary,
    title: str,
    projection: Projection,
    words: NearestWords | None,
) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError('A report needs jinja2: pip install "peft-listen[analysis]"') from error
    source = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    config = records.config
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    verdict, findings = rate(summary, config)
    figures = {
        "map": plot_query_key_map(records, projection, width=_MAP_WIDTH, legend=False),
        "usage": plot_usage(records, width=_WIDE, legend=False),
        "usage_narrow": plot_usage(records, width=_NARROW, legend=False),
    }
    if len(summary.tasks) > 1:
        figures["heatmap"] = plot_prompt_heatmap(records, width=_WIDE)
        figures["heatmap_narrow"] = plot_prompt_heatmap(records, width=_NARROW)
    return environment.from_string(source).render(
        title=title,
        summary=summary,
        verdict=verdict,
        findings=findings,
        answers=_answers(summary),
        figures={name: _svg(figure, name) for name, figure in figures.items()},
        projection=projection,
        colors=task_colors(records.task_names),
        overlap=_overlap_table(summary),
        shared_overlap=SHARED_OVERLAP,
        same_overlap=SAME_OVERLAP,
        prompts={task: _top_prompts(records, summary, task, words) for task in summary.tasks},
        words=words,
        half=_prompts_for_half(records),
        base=config.get("base_model_name_or_path"),
        settings={name: config[name] for name in _SETTINGS if config.get(name) is not None},
    )


def _answers(summary: SelectionSummary) -> list[_Answers]:
    return [
        _Answers(
            task=task,
            counts=answers,
            rating=rate_task_answers(answers),
            note=describe_task_answers(answers),
            live_prompts=summary.tasks[task].live_prompts,
            closest=_closest_task(summary, task),
        )
        for task, answers in summary.answers.items()
    ]


def _closest_task(summary: SelectionSummary, task: str) -> str:
    """Returns the other task with the largest overlap, and this overlap."""
    overlaps = [(value, pair) for pair, value in summary.overlap.items() if task in pair and value > 0]
    if not overlaps:
        return "none"
    value, (first, second) = max(overlaps, key=lambda item: item[0])
    return f"{second if first == task else first} ({value:.2f})"


def _overlap_table(summary: SelectionSummary) -> list[tuple[str, list[_Overlap | None]]]:
    """Returns one row per task, with `None` on the diagonal."""
    names = list(summary.tasks)
    cells = {pair: _Overlap(value, overlap_mark(value)) for pair, value in summary.overlap.items()}
    return [
        (row, [None if row == column else cells[(min(row, column), max(row, column))] for column in names])
        for row in names
    ]


def _top_prompts(
    records: SelectionRecords, summary: SelectionSummary, task: str, words: NearestWords | None
) -> list[_Prompt]:
    others = {name: {index for index, _ in other.top_prompts} for name, other in summary.tasks.items() if name != task}
    return [
        _Prompt(
            index=index,
            share=share,
            also=_others(index, others),
            examples=_examples(records, task, index),
            words=[] if words is None else words.prompts.get(index, [])[:_WORDS_SHOWN],
            is_near=words is not None and index in words.prompts and words.is_near(index),
        )
        for index, share in summary.tasks[task].top_prompts[:_PROMPTS_SHOWN]
    ]


def _others(prompt: int, others: dict[str, set[int]]) -> str:
    names = [name for name, prompts in others.items() if prompt in prompts]
    return "every other task" if len(names) > 1 and len(names) == len(others) else ", ".join(names)


def _examples(records: SelectionRecords, task: str, prompt: int) -> list[str]:
    """Returns the inputs of a task with the highest scores for a prompt, without duplicates."""
    if not records.inputs:
        return []
    rows, columns = (records.indices == prompt).nonzero(as_tuple=True)
    scores = records.scores[rows, columns]
    ranked = [int(rows[position]) for position in scores.argsort(descending=True, stable=True)]
    texts = [records.inputs[row] for row in ranked if records.tasks[row] == task and records.inputs[row]]
    return list(dict.fromkeys(texts))[:_EXAMPLES_SHOWN]


def _prompts_for_half(records: SelectionRecords) -> int:
    """Returns the number of most selected prompts that account for half of all selections."""
    cumulative = records.selection_rates().sort(descending=True).values.cumsum(dim=0)
    return int((cumulative < cumulative[-1] / 2).sum()) + 1


def _svg(figure: Figure, name: str) -> Any:
    from markupsafe import Markup
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Text remains text, in the font of the page. The salt makes ids unique across the figures of the page and
    # reproducible across runs.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # matplotlib's font may lack glyphs that the browser's fonts have.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=200)
    # The XML header and the metadata are removed because they contain URLs.
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    svg = re.sub("<[^>]*>", lambda tag: _themed(tag[0]), svg)
    # The page sets the width; `viewBox` keeps the proportions.
    return Markup(re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)))


def _themed(tag: str) -> str:
    """Replaces colors in the style of a tag by the CSS variables of the page."""
    for variable, color in THEME.items():
        tag = tag.replace(f": {color}", f": var(--{variable})")
    return tag


def format_summary(summary: SelectionSummary) -> str:
    """Formats the verdict, the rated statistics and the correct answers of each task as lines of text."""
    verdict, findings = rate(summary)
    rows = [
        (finding.title, finding.value, "" if finding.rating == "unknown" else f"{finding.rating} ({finding.goal})")
        for finding in findings
    ]
    rows += [
        (
            f"Correct: {task}",
            f"{answers.accuracy:.0%}",
            f"{describe_task_answers(answers)} (guessing: {answers.chance_level:.0%})",
        )
        for task, answers in summary.answers.items()
    ]
    width = max(len(title) for title, _, _ in rows)
    lines = [f"  {title:<{width}}  {value:<12}{rating}".rstrip() for title, value, rating in rows]
    return "\n".join([verdict.headline, *lines])
