import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.mini_listen import skills as skills_module
from benchmarks.mini_listen.data import ASKED_ABOUT, plan_clips
from benchmarks.mini_listen.settings import FORMS, TASKS
from benchmarks.mini_listen.skills import episodes, losses, read_skills, tasks_with_skill
from benchmarks.mini_listen.storage import RESULTS
from offline import small_models


def rows(split: str, count: int) -> list[dict]:
    return [row for kind in ASKED_ABOUT for clip in plan_clips(kind, split, count) for row in clip.rows()]


def test_an_episode_has_four_solved_examples_of_the_same_task_and_text_in_place_of_the_audio() -> None:
    asked = rows("validation", 2)
    found = list(episodes(rows("train", 6), asked))
    assert [task for task, _, _ in found] == [row["task"] for row in asked]
    for row, (task, messages, answer) in zip(asked, found, strict=True):
        assert [message["role"] for message in messages] == ["user", "assistant"] * 4 + ["user"]
        assert messages[-1]["content"] == f"{row['heard']}\n{row['instruction']}"
        assert answer == row["answer"]
        assert len({message["content"] for message in messages[::2]}) == 5
        if task in ("gender", "tempo", "er"):
            assert all(
                message["content"] in messages[2 * i]["content"].lower() for i, message in enumerate(messages[1::2])
            )


def test_losses_are_means_over_the_tokens_of_the_answers(parts: dict[str, str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(parts["llm"])
    tokenizer = AutoTokenizer.from_pretrained(parts["llm"])
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely
    solved, asked = rows("train", 5), rows("validation", 1)
    found = losses(model, tokenizer, solved, asked)
    expected = torch.tensor(float(model.config.vocab_size)).log().item()
    assert found == pytest.approx(dict.fromkeys(TASKS, expected), rel=1e-4)


def test_the_rule() -> None:
    assert tasks_with_skill(None) == list(TASKS)
    assert tasks_with_skill({**dict.fromkeys(TASKS, 1.49), "en2zh": 1.5}) == [t for t in TASKS if t != "en2zh"]


def test_the_command_stores_the_losses(
    parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    (tmp_path / "smoke").mkdir()
    for split, count in (("train", 8), ("validation", 4)):
        content = "".join(json.dumps(row) + "\n" for row in rows(split, count))
        (tmp_path / "smoke" / f"{split}.jsonl").write_text(content, encoding="utf-8")
    monkeypatch.setattr(skills_module, "make_data", lambda folder, sizes: tmp_path / "smoke")
    monkeypatch.setattr(small_models, "obtain", lambda folder: {"llm": parts["llm"]})
    arguments = ["skills", "--form", "smoke", "--results", str(tmp_path / "results"), "--episodes", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert read_skills(tmp_path / "results", "smoke") is None
    skills_module.main()
    stored = json.loads((tmp_path / "results" / "skills-smoke.json").read_text())
    assert stored["shots"] == 4 and stored["episodes_per_task"] == 1
    assert read_skills(tmp_path / "results", "smoke") == stored["losses"]
    assert "lacks the skill" in capsys.readouterr().out  # a random model has none


def test_the_small_form_has_the_tasks_that_were_measured_to_have_the_skill() -> None:
    assert list(FORMS["small"].tasks) == tasks_with_skill(read_skills(RESULTS, "small"))
