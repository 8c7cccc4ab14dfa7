"""The contents of the figures, read from their artists."""

import colorsys
import importlib
import sys

import numpy as np
import pytest

import peft_listen.analysis
from peft_listen.analysis import plot_prompt_heatmap, plot_query_key_map, plot_usage
from peft_listen.analysis.plots import task_colors


PLOTS = [plot_query_key_map, plot_prompt_heatmap, plot_usage]


def test_the_map_shows_every_query_and_every_key(make_records) -> None:
    records = make_records()
    (axes,) = plot_query_key_map(records).axes
    drawn = {collection.get_label(): len(collection.get_offsets()) for collection in axes.collections}
    live = int((records.selection_rates() > 0).sum())
    assert drawn == {
        f"unused prompts ({48 - live})": 48 - live,
        "asr": 12,
        "captions": 12,
        "emotion": 12,
        f"prompts in use ({live})": live,
    }


def test_the_heat_map_shows_each_live_prompt_once_grouped_by_its_main_task(make_records) -> None:
    records = make_records()
    axes, strip, _ = plot_prompt_heatmap(records).axes
    shares = axes.images[0].get_array()
    rates = np.stack([records.selection_rates(task).numpy() for task in records.task_names])
    assert shares.shape == (3, int((rates.sum(axis=0) > 0).sum()))
    np.testing.assert_allclose(np.sort(shares, axis=1)[:, ::-1][:, 0], rates.max(axis=1))
    owner = shares.argmax(axis=0)
    assert (np.diff(owner) >= 0).all()
    assert [label.get_text() for label in axes.get_yticklabels()] == records.task_names
    assert strip.images[0].get_array().shape == (1, shares.shape[1], 3)


def test_usage_curves_decrease_and_add_up_to_the_prompts_per_row(make_records) -> None:
    records = make_records()
    (axes,) = plot_usage(records).axes
    curves = {stairs.get_label(): stairs.get_data().values for stairs in axes.patches if stairs.get_label()}
    assert {"asr", "captions", "emotion", "all inputs"} <= set(curves)
    for name in ("asr", "captions", "emotion", "all inputs"):
        assert (np.diff(curves[name]) <= 0).all()
        assert curves[name].sum() == pytest.approx(4, abs=1e-5)
    even = next(line for line in axes.lines if line.get_label() == "even use of the pool")
    assert even.get_ydata()[0] == pytest.approx(4 / 48)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"tasks": ("only",)},
        {"tasks": ("only",), "rows_per_task": 1, "pool_size": 1, "prompt_length": 1},
        {"tasks": tuple(f"task {number}" for number in range(14)), "rows_per_task": 2},
        {"apart": False, "pool_size": 400},
        {"tasks": ("$a_b$", "<b>", "任务")},
    ],
)
def test_records_of_any_size_can_be_plotted(plot, sizes, make_records, tmp_path) -> None:
    plot(make_records(**sizes)).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "tasks", [("_asr", "captions"), ("_", "__", "a_b"), ("_nolegend_", "_child0"), ("$_a$", "_任务")]
)
@pytest.mark.parametrize("plot", PLOTS)
def test_every_task_is_named_whatever_its_name(plot, tasks, make_records, tmp_path) -> None:
    figure = plot(make_records(tasks=tasks))
    figure.savefig(tmp_path / "plot.svg")
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    labels += [label.get_text() for label in figure.axes[0].get_yticklabels()] if plot is plot_prompt_heatmap else []
    assert labels[: len(tasks)] == sorted(tasks)
    if plot is not plot_prompt_heatmap:
        assert len(labels) == len(figure.legends[0].legend_handles) == len(tasks) + 2


@pytest.mark.parametrize("count", [1, 10, 11, 30])
def test_every_task_has_a_distinct_color(count) -> None:
    colors = task_colors([str(number) for number in range(count)])
    assert len(set(colors.values())) == count
    for color in colors.values():
        _, lightness, _ = colorsys.rgb_to_hls(*(int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)))
        assert 0.25 < lightness < 0.75


@pytest.mark.parametrize("plot", PLOTS)
def test_without_matplotlib_a_plot_raises_with_the_install_command(plot, make_records, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'Plots need matplotlib: pip install "peft-listen\[analysis\]"'):
        plot(make_records())


def test_the_package_can_be_imported_without_its_optional_libraries(monkeypatch) -> None:
    monkeypatch.setattr(peft_listen, "analysis", peft_listen.analysis)  # restored after the import below
    for name in [name for name in sys.modules if name.startswith("peft_listen.analysis")]:
        monkeypatch.delitem(sys.modules, name)
    for absent in ("matplotlib", "sklearn", "umap", "jinja2"):
        monkeypatch.setitem(sys.modules, absent, None)
    importlib.import_module("peft_listen.analysis")
