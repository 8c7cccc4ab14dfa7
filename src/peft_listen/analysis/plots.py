"""Plots of selection records, as matplotlib figures created without pyplot."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .query_space import Projection, project
from .records import SelectionRecords


if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Names of the report's CSS variables, which replace these colors there, so that the plots follow its light or dark theme.
THEME = {
    "ink": "#1d2433",
    "soft": "#6b7385",
    "rule": "#e3e6ec",
    "idle": "#c9ced8",
    "area": "#dfe4ee",
    "unused": "#f3f4f7",
    "card": "#ffffff",
}
INK, FAINT_INK, RULE, IDLE, AREA, UNUSED, PAPER = THEME.values()

# Of the heat map: from transparent, so that it suits a light and a dark background.
_NO_SHARE, _FULL_SHARE = (0.25, 0.47, 0.86, 0.0), (0.20, 0.42, 0.82, 1.0)

# Adjacent colors differ in hue and in lightness, so color-blind readers can distinguish them too.
_TASK_COLORS = (
    "#3567b0",
    "#e58a3c",
    "#3f9b78",
    "#b8425b",
    "#7f5fb5",
    "#38a9c4",
    "#a98b2d",
    "#dd7fa8",
    "#5b6678",
    "#8fb04a",
)

# Larger numbers of points are rasterized: as vector shapes they would make a file of several megabytes.
_MAX_SHAPES = 3000

_WIDTH = 11.0  # inches
_INCHES_PER_PROMPT_LABEL = 0.25
_TASK_CHARACTERS_PER_INCH = 3

_STYLE: Any = {
    "font.family": ["sans-serif"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": FAINT_INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT_INK,
    "ytick.color": FAINT_INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def task_colors(tasks: Sequence[str]) -> dict[str, str]:
    """Returns one color (`"#rrggbb"`) per task, in the given order."""
    if len(tasks) <= len(_TASK_COLORS):
        return dict(zip(tasks, _TASK_COLORS, strict=False))
    colors = {}
    for index, task in enumerate(tasks):
        lightness = (0.42, 0.58)[index % 2]
        red, green, blue = colorsys.hls_to_rgb(index / len(tasks), lightness, 0.5)
        colors[task] = f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
    return colors


def plot_query_key_map(
    records: SelectionRecords,
    projection: Projection = "pca",
    seed: int = 0,
    *,
    width: float = _WIDTH,
    legend: bool = True,
) -> Figure:
    """
    Plots queries, colored by task, and keys in two dimensions. The marker of a key grows with the fraction of rows that
    select its prompt; the keys of unused prompts are gray.

    Args:
        records ([`SelectionRecords`]): the selections.
        projection (`"pca"` or `"umap"`, defaults to `"pca"`): see
            [`~peft_listen.analysis.query_space.project`].
        seed (`int`, defaults to 0): seed of UMAP.
        width (`float`, defaults to 11.0): width of the figure in inches.
        legend (`bool`, defaults to `True`): whether to draw a legend.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib, scikit-learn or umap-learn is not installed.
    """
    with _figure(width, 5.6) as figure:
        axes = figure.subplots()
        points, key_points = project(records.queries, records.keys, projection, seed)
        usage = records.selection_rates().numpy()
        points_are_rasterized, keys_are_rasterized = len(points) > _MAX_SHAPES, len(key_points) > _MAX_SHAPES
        live = usage > 0
        axes.scatter(
            key_points[~live, 0],
            key_points[~live, 1],
            s=12,
            marker="D",
            facecolors="none",
            edgecolors=IDLE,
            linewidths=0.7,
            label=f"unused prompts ({int((~live).sum())})",
            rasterized=keys_are_rasterized,
        )
        tasks = np.asarray(records.tasks)
        for task, color in task_colors(records.task_names).items():
            axes.scatter(
                points[tasks == task, 0],
                points[tasks == task, 1],
                s=24,
                color=color,
                alpha=0.55,
                linewidths=0,
                label=task,
                rasterized=points_are_rasterized,
            )
        axes.scatter(
            key_points[live, 0],
            key_points[live, 1],
            s=5 + 45 * usage[live] / usage.max(),
            marker="D",
            facecolors="none",
            # The theme does not change the colors of a raster image.
            edgecolors=FAINT_INK if keys_are_rasterized else INK,
            linewidths=0.9,
            label=f"prompts in use ({int(live.sum())})",
            rasterized=keys_are_rasterized,
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.margins(0.04)
        unused, *shown = [(drawn, str(drawn.get_label())) for drawn in axes.collections]
        if legend:
            # The unused prompts are drawn first, below all others, but are listed last.
            entries = [*shown, unused] if not live.all() else shown
            for handle in _legend(figure, entries, handletextpad=0.3).legend_handles:
                handle.set_sizes([34])  # type: ignore[union-attr]
    return figure


def plot_prompt_heatmap(records: SelectionRecords, *, width: float = _WIDTH) -> Figure:
    """
    Plots a heat map of the fraction of each task's rows that select each prompt. Only prompts in use are shown, grouped by
    the task that selects them most; the strip at the bottom shows the color of this task.

    Args:
        records ([`SelectionRecords`]): the selections.
        width (`float`, defaults to 11.0): width of the figure in inches.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    tasks = records.task_names
    shares = np.stack([records.selection_rates(task).numpy() for task in tasks])  # [tasks, pool_size]
    live = np.flatnonzero(shares.sum(axis=0) > 0)
    owner = shares[:, live].argmax(axis=0)
    # Groups in the order of the tasks; within a group, the most selected prompt first.
    order = np.lexsort((-shares[:, live].max(axis=0), owner))
    prompts, owner = live[order], owner[order]
    with _figure(width, 1.2 + 0.45 * len(tasks)) as figure:
        from matplotlib.colors import LinearSegmentedColormap, to_rgb

        colormap = LinearSegmentedColormap.from_list("share", [_NO_SHARE, _FULL_SHARE])
        axes, strip = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [len(tasks), 0.3], "hspace": 0.02}
        )
        image = axes.imshow(shares[:, prompts], cmap=colormap, aspect="auto", interpolation="nearest", vmin=0)
        axes.set_yticks(
            range(len(tasks)), [_shortened(task, int(_TASK_CHARACTERS_PER_INCH * width)) for task in tasks]
        )
        axes.set_yticks(np.arange(1, len(tasks)) - 0.5, minor=True)
        axes.grid(which="minor", axis="y", color=PAPER, linewidth=2)
        colors = task_colors(tasks)
        strip.imshow([[to_rgb(colors[tasks[index]]) for index in owner]], aspect="auto", interpolation="nearest")
        strip.set_yticks([])
        for last in np.flatnonzero(np.diff(owner)):
            axes.axvline(last + 0.5, color=PAPER, linewidth=1.2)
            strip.axvline(last + 0.5, color=PAPER, linewidth=1.2)
        if len(prompts) * _INCHES_PER_PROMPT_LABEL <= width:
            strip.set_xticks(range(len(prompts)), [str(prompt) for prompt in prompts], fontsize=7)
            strip.set_xlabel("prompt")
        else:
            strip.set_xticks([])
            strip.set_xlabel(f"the {len(prompts)} prompts in use")
        for part in (axes, strip):
            part.tick_params(which="both", length=0)
            for spine in part.spines.values():
                spine.set_visible(False)
        bar = figure.colorbar(image, ax=[axes, strip], pad=0.015, aspect=22, format=_percent)
        bar.outline.set_visible(False)
        bar.set_label("fraction of the task's rows")
    return figure


def plot_usage(records: SelectionRecords, *, width: float = _WIDTH, legend: bool = True) -> Figure:
    """
    Plots how often each prompt is selected, in descending order: one curve for all rows and one per task, each sorted on
    its own. The dashed line marks even use of the pool.

    Args:
        records ([`SelectionRecords`]): the selections.
        width (`float`, defaults to 11.0): width of the figure in inches.
        legend (`bool`, defaults to `True`): whether to draw a legend.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    colors = task_colors(records.task_names)
    usage = _descending(records.selection_rates())
    live = int((usage > 0).sum())
    even = records.prompt_length / records.pool_size
    with _figure(width, 3.7) as figure:
        axes: Axes = figure.subplots()
        entries: list[tuple[Artist, str]] = []
        edges = np.arange(records.pool_size + 1)
        axes.fill_between(edges, np.append(usage, usage[-1]), step="post", color=AREA, linewidth=0)
        if len(colors) > 1:
            for task, color in colors.items():
                share = _descending(records.selection_rates(task))
                curve = axes.stairs(share[share > 0], color=color, linewidth=1.6, baseline=None, label=task)
                entries.append((curve, task))
        total = axes.stairs(usage[:live], color=INK, linewidth=2.2, baseline=None, label="all inputs")
        even_use = axes.axhline(
            even, color=FAINT_INK, linewidth=1, linestyle=(0, (4, 3)), label="even use of the pool"
        )
        entries += [(total, "all inputs"), (even_use, "even use of the pool")]
        if live < records.pool_size:
            axes.axvspan(live, records.pool_size, color=UNUSED, zorder=0, linewidth=0)
            if records.pool_size - live >= 0.12 * records.pool_size:
                axes.text(
                    (live + records.pool_size) / 2,
                    axes.get_ylim()[1] / 2,
                    f"{records.pool_size - live} unused",
                    ha="center",
                    va="center",
                    color=FAINT_INK,
                )
        axes.set_xlim(0, records.pool_size)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel("prompts, most selected first")
        axes.set_ylabel("fraction of rows that select it")
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        if legend:
            _legend(figure, entries, handlelength=1.6)
    return figure


def _legend(figure: Figure, entries: Sequence[tuple[Artist, str]], **style: float) -> Legend:
    """Adds a legend of all entries; matplotlib itself leaves out labels that begin with an underscore."""
    numbers = [str(number) for number in range(len(entries))]
    handles = [handle for handle, _ in entries]
    legend = figure.legend(handles, numbers, loc="outside right upper", labelspacing=0.7, **style)
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(label)
    return legend


def _descending(usage: torch.Tensor) -> np.ndarray:
    return usage.sort(descending=True).values.numpy()


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _percent(value: float, _: Any = None) -> str:
    return f"{round(100 * value, 2):g}%"


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    # pyplot is avoided because it keeps every figure in memory and selects a window system.
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "peft-listen[analysis]"') from error
    with rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")
