"""What the figures show, read off their parts."""

import colorsys
import importlib
import sys

import numpy as np
import pytest

import peft_listen.analysis
from peft_listen.analysis import plot_prompt_heatmap, plot_query_key_map, plot_usage
from peft_listen.analysis.plots import task_colors


PLOTS = [plot_query_key_map, plot_prompt_heatmap, plot_usage]


def test_the_map_has_every_query_and_every_key(make_records) -> None:
    records = make_records()
    (axes,) = plot_query_key_map(records).axes
    drawn = {collection.get_label(): len(collection.get_offsets()) for collection in axes.collections}
    live = int((records.usage() > 0).sum())
    assert drawn == {
        f"unused prompts ({48 - live})": 48 - live,
        "asr": 12,
        "captions": 12,
        "emotion": 12,
        f"prompts in use ({live})": live,
    }


def test_the_heat_map_has_each_live_prompt_once_under_the_task_that_chooses_it_most(make_records) -> None:
    records = make_records()
    axes, strip, _ = plot_prompt_heatmap(records).axes
    shares = axes.images[0].get_array()
    usage = np.stack([records.usage(task).numpy() for task in records.task_names])
    assert shares.shape == (3, int((usage.sum(axis=0) > 0).sum()))
    np.testing.assert_allclose(np.sort(shares, axis=1)[:, ::-1][:, 0], usage.max(axis=1))
    owner = shares.argmax(axis=0)
    assert (np.diff(owner) >= 0).all()
    assert [label.get_text() for label in axes.get_yticklabels()] == records.task_names
    assert strip.images[0].get_array().shape == (1, shares.shape[1], 3)


def test_the_curve_of_usage_falls_and_holds_the_prompts_of_a_row(make_records) -> None:
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
def test_every_size_can_be_drawn(plot, sizes, make_records, tmp_path) -> None:
    plot(make_records(**sizes)).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 10, 11, 30])
def test_every_task_has_a_color_of_its_own(count) -> None:
    colors = task_colors([str(number) for number in range(count)])
    assert len(set(colors.values())) == count
    for color in colors.values():
        _, lightness, _ = colorsys.rgb_to_hls(*(int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)))
        assert 0.25 < lightness < 0.75


@pytest.mark.parametrize("plot", PLOTS)
def test_without_matplotlib_a_plot_says_what_to_install(plot, make_records, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'Plots need matplotlib: pip install "peft-listen\[analysis\]"'):
        plot(make_records())


def test_the_package_is_imported_without_its_libraries(monkeypatch) -> None:
    monkeypatch.setattr(peft_listen, "analysis", peft_listen.analysis)  # put back after the import below
    for name in [name for name in sys.modules if name.startswith("peft_listen.analysis")]:
        monkeypatch.delitem(sys.modules, name)
    for absent in ("matplotlib", "sklearn", "umap", "jinja2"):
        monkeypatch.setitem(sys.modules, absent, None)
    importlib.import_module("peft_listen.analysis")
