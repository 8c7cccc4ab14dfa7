"""Which tasks the frozen language model can do from text, without any training.

    python -m benchmarks.mini_listen.skills [--form small]

The model gets four solved examples of a task and a fifth to solve. In place of the audio stands what a listener hears: the
transcript, the speaker and the way of speaking, or the sounds. A task on which an answer token costs 1.5 or more lacks its
skill: an adapter that leaves the model as it is can hardly add it, so the results report these tasks apart. The rule was
set before any run.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_listen.files import atomic_path

from .data import make_data
from .instructions import wordings_of
from .language_model import load_language_model, prompt_text
from .settings import FORMS, TASKS
from .storage import RESULTS
from .training import read_split


SHOTS = 4
LARGEST_LOSS = 1.5  # nats per token of the answer


def episodes(
    solved: list[dict[str, Any]], asked: list[dict[str, Any]], seed: int = 0
) -> Iterator[tuple[str, list[dict[str, str]], str]]:
    """
    Conversations of four solved examples and one to solve.

    Args:
        solved (`list[dict]`): training examples to draw the solved ones from.
        asked (`list[dict]`): examples to solve.
        seed (`int`, defaults to 0): seed of the draws.

    Yields:
        `tuple[str, list[dict], str]`: task, messages up to the last question, and its answer.
    """
    for number, row in enumerate(asked):
        draw = random.Random(f"skill:{seed}:{row['task']}:{number}")
        shots = draw.sample([example for example in solved if example["task"] == row["task"]], SHOTS)
        messages = []
        for example in shots:
            wording = draw.choice(wordings_of(example, "train"))
            messages.append({"role": "user", "content": f"{example['heard']}\n{wording}"})
            messages.append({"role": "assistant", "content": example["answer"]})
        messages.append({"role": "user", "content": f"{row['heard']}\n{row['instruction']}"})
        yield row["task"], messages, row["answer"]


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    solved: list[dict[str, Any]],
    asked: list[dict[str, Any]],
    seed: int = 0,
) -> dict[str, float]:
    """
    Mean loss per token of the answers, by task.

    Args:
        model (`PreTrainedModel`): a causal language model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        solved, asked (`list[dict]`), seed (`int`): see [`episodes`].

    Returns:
        `dict[str, float]`: nats per token, the answer's end not counted.
    """
    totals: dict[str, list[float]] = {}
    model.eval()
    for task, messages, answer in episodes(solved, asked, seed):
        prompt = prompt_text(tokenizer, messages)
        prompt_ids, answer_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        input_ids = torch.tensor([[*prompt_ids, *answer_ids]], device=model.device)
        logits = model(input_ids, logits_to_keep=len(answer_ids) + 1).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits, torch.tensor(answer_ids, device=model.device), reduction="sum"
        )
        totals.setdefault(task, []).extend([float(loss), len(answer_ids)])
    return {task: sum(values[::2]) / sum(values[1::2]) for task, values in totals.items()}


def skills_path(results: Path, form: str) -> Path:
    """Path of the stored losses of a form."""
    return results / f"skills-{form}.json"


def read_skills(results: Path, form: str) -> dict[str, float] | None:
    """The stored losses of a form by task, or `None` if they were not measured."""
    path = skills_path(results, form)
    return json.loads(path.read_text(encoding="utf-8"))["losses"] if path.is_file() else None


def tasks_with_skill(skills: dict[str, float] | None) -> list[str]:
    """The tasks that the frozen model can do by the rule; all of them if the losses were not measured."""
    return [task for task in TASKS if skills is None or skills.get(task, 0.0) < LARGEST_LOSS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=list(FORMS), default="small", help="whose clips (default: small)")
    parser.add_argument("--folder", type=Path, default=Path(".mini_listen"), help="data and models")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--episodes", type=int, default=30, help="validation examples of each task (default: 30)")
    arguments = parser.parse_args()
    form = FORMS[arguments.form]
    data = make_data(arguments.folder / form.name / "data", form.sizes)
    solved = read_split(data, "train", TASKS, form.train_per_task)
    asked = read_split(data, "validation", TASKS, min(arguments.episodes, form.validation_per_task))
    model, tokenizer = load_language_model(arguments.folder / "models", arguments.device)
    found = losses(model, tokenizer, solved, asked)
    path = skills_path(arguments.results, form.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "model": "SmolLM2-135M-Instruct",
        "shots": SHOTS,
        "episodes_per_task": len(asked) // len(TASKS),
        "losses": {task: round(found[task], 4) for task in TASKS},
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for task in TASKS:
        print(f"{task:<14} {found[task]:.2f}{'' if found[task] < LARGEST_LOSS else '  lacks the skill'}")
    print(path)


if __name__ == "__main__":
    main()
