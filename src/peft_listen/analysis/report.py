"""One HTML page on the selections of an adapter, that needs no network and no other file."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import judge
from .plots import plot_prompt_heatmap, plot_query_key_map, plot_usage, task_colors
from .query_space import Projection
from .records import SelectionRecords
from .summary import SelectionSummary, summarize


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROMPTS_SHOWN = 6
_EXAMPLES_SHOWN = 2

# What of the configuration decides the choice.
_SETTINGS = (
    "selector",
    "selector_kwargs",
    "pool_size",
    "center_queries",
    "standardize_queries",
    "query_pooling",
    "query_dropout",
    "num_shared_prompts",
    "usage_balance",
    "reseed_every",
    "key_loss_weight",
    "paper_form",
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
    Writes a report: the headline numbers and what is good and bad in them, the map of queries and keys, the overlap of
    tasks, the prompts of each task with inputs that chose them.

    Args:
        records ([`SelectionRecords`])
        path (`str` or `os.PathLike`): the HTML file to write.
        title (`str`, *optional*): heading of the page.
        top (`int`, defaults to 10): how many most chosen prompts of each task are compared.
        projection (`"pca"` or `"umap"`, defaults to `"pca"`): of the map; see [`project`].

    Returns:
        [`SelectionSummary`]: the numbers in it.

    Raises:
        OSError: if the file cannot be written; an older one then stays as it was.
        ValueError: if `top` is below 1, or for another projection.
        ImportError: if a library of the extra `analysis` is not installed.
    """
    summary = summarize(records, top)
    html = _render(records, summary, title or "Which prompts each task chooses", projection)
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return summary


def _render(records: SelectionRecords, summary: SelectionSummary, title: str, projection: Projection) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError('A report needs jinja2: pip install "peft-listen[analysis]"') from error
    source = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    verdict, findings = judge(summary)
    figures = {
        "map": plot_query_key_map(records, projection),
        "heatmap": plot_prompt_heatmap(records),
        "usage": plot_usage(records),
    }
    config = records.config
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
    """One row a task; `None` on the diagonal."""
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
    """Inputs of a task for which a prompt scored highest, no two the same."""
    if not records.inputs:
        return []
    rows, columns = (records.indices == prompt).nonzero(as_tuple=True)
    scores = records.scores[rows, columns]
    ranked = [int(rows[place]) for place in scores.argsort(descending=True, stable=True)]
    texts = [records.inputs[row] for row in ranked if records.tasks[row] == task and records.inputs[row]]
    return list(dict.fromkeys(texts))[:_EXAMPLES_SHOWN]


def _prompts_for_half(records: SelectionRecords) -> int:
    """How many of the most chosen prompts make up half of all choices."""
    usage = records.usage().sort(descending=True).values.cumsum(dim=0)
    return int((usage < usage[-1] / 2).sum()) + 1


def _svg(figure: Figure, name: str) -> Any:
    from markupsafe import Markup
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Text stays text, in the page's own font. The salt keeps the ids of two pictures on the page apart, and the same
    # from run to run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's fonts have what matplotlib's own may lack.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=200)
    # Without the XML header and the metadata, which name addresses on the network.
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    # The page sets the width; `viewBox` keeps the proportions.
    return Markup(re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)))


def format_summary(summary: SelectionSummary) -> str:
    """The verdict and the headline numbers as lines of text."""
    verdict, findings = judge(summary)
    width = max(len(finding.title) for finding in findings)
    rows: Sequence[str] = [
        f"  {finding.title:<{width}}  {finding.value:<12}"
        + ("" if finding.rating == "unknown" else f"{finding.rating} ({finding.goal})")
        for finding in findings
    ]
    return "\n".join([verdict.headline, *(row.rstrip() for row in rows)])
