"""The picture of the prompts by task in a model card."""

import logging
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from peft_listen import card_picture
from peft_listen.analysis import SelectionRecords
from peft_listen.card_picture import PICTURE
from peft_listen.model_card import add_prompts, add_training


def make_selections(tasks, pool_size=16, rows=4):
    """Selections of tasks that have two prompts each of their own, and one in common."""
    indices = torch.tensor([[0, 1 + 2 * task, 2 + 2 * task] for task in range(len(tasks)) for _ in range(rows)])
    return SelectionRecords(
        indices=indices % pool_size,
        scores=torch.ones(indices.shape),
        queries=torch.randn(len(indices), 4),
        keys=torch.randn(pool_size, 4),
        tasks=[task for task in tasks for _ in range(rows)],
    )


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "README.md"
    ModelCard("---\nlicense: mit\n---\n# Birds\n\n## Citation\n\nMe.\n").save(path)
    return path


def test_a_card_shows_the_picture_beside_it(card):
    add_prompts(card, make_selections(["birds", "dogs", "speech"]))
    picture = matplotlib.image.imread(card.parent / PICTURE)
    height, width, _ = picture.shape
    assert width == 1600 and 300 < height < 1000
    # White, so that its dark text can be read on a dark page, and neither empty nor of one color.
    assert np.allclose(picture[0, 0], 1) and picture[..., :3].std() > 0.05
    text = ModelCard.load(card).text
    assert f"]({PICTURE})" in text
    assert text.index("# Birds") < text.index("## Prompts by task") < text.index("## Citation")
    sentences = " ".join(text.split())
    assert "For 12 inputs of 3 tasks, with 3 prompts each, 7 of the 16 prompts of the pool are selected." in sentences
    assert "33% of their 10 most selected prompts are the same" in sentences


@pytest.fixture
def coarse(monkeypatch):
    """Pictures that are drawn in less time."""
    monkeypatch.setattr(card_picture, "_DPI", 40)


def test_a_newer_picture_replaces_the_older_one(card, coarse):
    add_prompts(card, make_selections(["birds", "dogs"]))
    before = (card.parent / PICTURE).read_bytes()
    add_training(card, {"steps": 2})
    add_prompts(card, make_selections(["birds", "dogs", "speech"]))
    assert (card.parent / PICTURE).read_bytes() != before
    text = ModelCard.load(card).text
    assert text.count(PICTURE) == 1 and "For 12 inputs" in text and "| steps | 2 |" in text
    assert sorted(path.name for path in card.parent.iterdir()) == ["README.md", PICTURE]


def test_without_matplotlib_the_card_stays_as_it_is(card, monkeypatch, caplog):
    before = card.read_bytes()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING, "peft_listen"):
        add_prompts(card, make_selections(["birds", "dogs"]))
    (record,) = caplog.records
    assert "no picture of the prompts by task" in record.message
    assert 'pip install "peft-listen[analysis]"' in record.message
    assert card.read_bytes() == before and list(card.parent.iterdir()) == [card]


@pytest.mark.parametrize("number", [1, 101])
def test_a_number_of_tasks_that_cannot_be_shown_leaves_the_card_as_it_is(card, number, caplog):
    before = card.read_bytes()
    with caplog.at_level(logging.INFO, "peft_listen"):
        add_prompts(card, make_selections([f"task {index}" for index in range(number)], rows=1))
    assert f"it shows 2 to 100, got {number}" in caplog.text
    assert card.read_bytes() == before and list(card.parent.iterdir()) == [card]


@pytest.mark.filterwarnings("error")
def test_any_name_of_a_task_is_drawn(card, coarse):
    add_prompts(card, make_selections(["$a_b$", "任务", "<b>](x)", "_" * 300]))
    assert (card.parent / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "<b>" not in ModelCard.load(card).text


def test_a_picture_that_cannot_be_written_leaves_the_card_as_it_is(card, coarse, tmp_path):
    before = card.read_bytes()
    (tmp_path / "elsewhere.png").write_bytes(b"mine")
    (card.parent / PICTURE).symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(OSError, match=rf"{PICTURE} cannot be written: it is a symbolic link"):
        add_prompts(card, make_selections(["birds", "dogs"]))
    assert card.read_bytes() == before and (tmp_path / "elsewhere.png").read_bytes() == b"mine"
