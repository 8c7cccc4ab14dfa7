"""HTML report on the selections of an adapter: one page that needs no network and no other file."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..files import atomic_path, check_output_file
from .findings import rate
from .plots import plot_prompt_heatmap, plot_query_key_map, plot_usage, task_colors
from .query_space import Projection
from .records import SelectionRecords
from .summary import SelectionSummary, summarize


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROMPTS_SHOWN = 6
_EXAMPLES_SHOWN = 2

# Configuration fields that affect selection.
_SETTINGS = (
    "selector",
    "selector_kwargs",
    "pool_size",
    "center_queries",
    "query_pooling",
    "num_shared_prompts",
    "key_loss_weight",
)


@dataclass(frozen=True)
class _Prompt:
    index: int
    share: float
    also: str
    examples: list[str]


def save_report(
    records: SelectionRecords,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    top: int = 10,
    projection: Projection = "pca",
) -> SelectionSummary:
    """
    Writes an HTML report: rated summary statistics, a map of queries and keys, the overlap of the tasks, and the most
    selected prompts of each task with example inputs.

    Args:
        records ([`SelectionRecords`]): the selections.
        path (`str` or `os.PathLike`): HTML file to write.
        title (`str`, *optional*): heading of the page.
        top (`int`, defaults to 10): number of most selected prompts per task to compare.
        projection (`"pca"` or `"umap"`, defaults to `"pca"`): projection of the map; see
            [`~peft_listen.analysis.query_space.project`].

    Returns:
        [`SelectionSummary`]: the statistics shown in the report.

    Raises:
        OSError: if the file cannot be written; an existing file then remains unchanged.
        ValueError: if `top` is below 1, or `projection` is neither of these.
        ImportError: if a library of the extra `analysis` is not installed.
    """
    check_output_file(path)
    summary = summarize(records, top)
    html = _render(records, summary, title or "Prompts selected by each task", projection)
    with atomic_path(path) as temporary:
        # Half surrogate pairs, as in a title from a file name that is not UTF-8, are the only characters to replace.
        temporary.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")
    return summary


def _render(records: SelectionRecords, summary: SelectionSummary, title: str, projection: Projection) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError('A report needs jinja2: pip install "peft-listen[analysis]"') from error
    source = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    config = records.config
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    verdict, findings = rate(summary, config)
    figures = {
        "map": plot_query_key_map(records, projection),
        "heatmap": plot_prompt_heatmap(records),
        "usage": plot_usage(records),
    }
    return environment.from_string(source).render(
        title=title,
        summary=summary,
        verdict=verdict,
        findings=findings,
        figures={name: _svg(figure, name) for name, figure in figures.items()},
        projection=projection,
        colors=task_colors(records.task_names),
        overlap=_overlap_table(summary),
        prompts={task: _top_prompts(records, summary, task) for task in summary.tasks},
        half=_prompts_for_half(records),
        base=config.get("base_model_name_or_path"),
        settings={name: config[name] for name in _SETTINGS if config.get(name) is not None},
    )


def _overlap_table(summary: SelectionSummary) -> list[tuple[str, list[float | None]]]:
    """Returns one row per task, with `None` on the diagonal."""
    names = list(summary.tasks)
    return [
        (row, [None if row == column else summary.overlap[(min(row, column), max(row, column))] for column in names])
        for row in names
    ]


def _top_prompts(records: SelectionRecords, summary: SelectionSummary, task: str) -> list[_Prompt]:
    others = {name: {index for index, _ in other.top_prompts} for name, other in summary.tasks.items() if name != task}
    return [
        _Prompt(
            index=index,
            share=share,
            also=_others(index, others),
            examples=_examples(records, task, index),
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
    # The page sets the width; `viewBox` keeps the proportions.
    return Markup(re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)))


def format_summary(summary: SelectionSummary) -> str:
    """Formats the verdict and the rated statistics as lines of text."""
    verdict, findings = rate(summary)
    width = max(len(finding.title) for finding in findings)
    rows: Sequence[str] = [
        f"  {finding.title:<{width}}  {finding.value:<12}"
        + ("" if finding.rating == "unknown" else f"{finding.rating} ({finding.goal})")
        for finding in findings
    ]
    return "\n".join([verdict.headline, *(row.rstrip() for row in rows)])
