"""Generates the answers of a trained adapter to the examples of a data file, and scores them.

    accelerate launch -m benchmarks.paper.answer ADAPTER_DIR DATA.jsonl PREDICTIONS.jsonl [--batch-size 8]

Each process answers its share of the examples and skips those whose answers are in the predictions file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import pipeline

import peft_listen  # noqa: F401 - registers the pipeline
from peft_listen.data import read_examples
from peft_listen.files import atomic_path, check_output_file
from peft_listen.metrics import get_metric


# The metric of each of the paper's tasks. Other tasks are scored by exact match.
METRICS = {"asr": "wer", "en2zh": "bleu", "er": "accuracy", "sv": "accuracy", "acap": "rouge_l"}


def answer(
    model: str, data_file: Path, output_file: Path, batch_size: int = 8, max_new_tokens: int = 128
) -> list[dict[str, Any]]:
    """
    Answers this process's part of the examples of a data file.

    Args:
        model (`str`): folder of an adapter or of a model.
        data_file (`Path`): JSON lines of examples.
        output_file (`Path`): JSON lines of examples with their field `generated`; appended to after an interruption.
            With several processes, the process index is inserted into its name.
        batch_size (`int`, defaults to 8): examples per batch.
        max_new_tokens (`int`, defaults to 128): maximum length of an answer.

    Returns:
        `list[dict]`: the examples with their answers, including those of an interrupted run.
    """
    state = PartialState()
    if state.num_processes > 1:
        output_file = output_file.with_suffix(f".{state.process_index}.jsonl")
    examples = [dict(row) for row in read_examples(data_file)][state.process_index :: state.num_processes]
    check_output_file(output_file)
    done = _read_finished(output_file)
    pipe = pipeline("audio-text-to-text", model=model, batch_size=batch_size, device=state.device)
    with open(output_file, "a", encoding="utf-8") as file:
        for start in range(len(done), len(examples), batch_size):
            rows = examples[start : start + batch_size]
            outputs = pipe(rows, max_new_tokens=max_new_tokens, do_sample=False)
            for row, output in zip(rows, outputs, strict=True):
                done.append({**row, "generated": output[0]["generated_text"].strip()})
                file.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
            file.flush()
            print(f"{len(done)} of {len(examples)}", flush=True)
    return done


def _read_finished(path: Path) -> list[dict[str, Any]]:
    """Reads the answers of an interrupted run and removes an incomplete last line from the file."""
    if not path.is_file():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def scores(answers: list[dict[str, Any]]) -> dict[str, float]:
    """
    Computes the metric of each task.

    Args:
        answers (`list[dict]`): examples with their field `generated`.

    Returns:
        `dict[str, float]`: values by `<task>/<metric>`.
    """
    result = {}
    for task in sorted({row["task"] for row in answers}):
        rows = [row for row in answers if row["task"] == task]
        name = METRICS.get(task, "exact_match")
        options = {"tokenize": "zh"} if name == "bleu" else {}
        values = get_metric(name, **options).compute(
            predictions=[row["generated"] for row in rows], references=[row["answer"] for row in rows]
        )
        result[f"{task}/{name}"] = values[name]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of an adapter or of a model")
    parser.add_argument("data_file", type=Path)
    parser.add_argument("output_file", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    answers = answer(**vars(parser.parse_args()))
    print(json.dumps(scores(answers), indent=1))


if __name__ == "__main__":
    main()
