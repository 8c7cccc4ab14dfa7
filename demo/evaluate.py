"""Evaluates a model on a data file with the pipeline: answers, accuracy per task, and selected prompts.

    python -m demo.evaluate MODEL_DIR DATA.jsonl OUTPUT.json

`MODEL_DIR` is the folder of the base model or of an adapter. The prompts that each task selects are added for an adapter, and the
selections of all examples are saved beside the output, as `selections.safetensors`.
"""

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import pipeline

from demo.defaults import SELECTIONS
from demo.scoring import is_right, options_of
from peft_listen import record_selections
from peft_listen.analysis import SelectionRecords
from peft_listen.data import read_examples
from peft_listen.files import atomic_path
from peft_listen.metrics import get_metric


# Enough for an untrained model, which answers in sentences, to name its choice.
MAX_NEW_TOKENS = 24


def evaluate(model_dir: Path, data_file: Path, output_file: Path, batch_size: int = 32) -> None:
    """
    Writes answers, accuracy, the level of guessing, and the use of the prompts to a JSON file.

    The accuracy follows [`is_right`], with all answers of a task in the data file as its options. Exact match is the stricter
    measure: the answer is the right option alone.

    Args:
        model_dir (`Path`): folder of an AudioListen model or of an adapter for one.
        data_file (`Path`): JSON lines of examples.
        output_file (`Path`): JSON file to write.
        batch_size (`int`, defaults to 32): clips per batch.
    """
    examples = [dict(example) for example in read_examples(data_file)]
    pipe = pipeline("audio-text-to-text", model=str(model_dir), batch_size=batch_size)
    questions = [{"audio": example["audio"], "text": example["instruction"]} for example in examples]
    has_adapter = (model_dir / "adapter_config.json").is_file()
    with record_selections(pipe.model) if has_adapter else nullcontext([]) as records:
        # A generator instead of the list, so that the outputs come batch by batch.
        answered = pipe((question for question in questions), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        outputs = list(tqdm(answered, desc="Answering", unit="clip", total=len(questions)))

    options = options_of(examples)
    answers = []
    for example, output in zip(examples, outputs, strict=True):
        generated = output[0]["generated_text"].strip()
        answers.append(
            {
                "audio": os.path.basename(example["audio"]),
                **{name: example[name] for name in ("task", "instruction", "answer")},
                "generated": generated,
                "is_right": is_right(generated, example["answer"], options[example["task"]]),
            }
        )
    by_task = {task: [row for row in answers if row["task"] == task] for task in options}
    exact_match = get_metric("exact_match")
    result: dict[str, Any] = {
        "guessing": {task: 1 / len(names) for task, names in options.items()},
        "accuracy": {task: sum(row["is_right"] for row in rows) / len(rows) for task, rows in by_task.items()},
        "exact_match": {
            task: exact_match.compute(
                predictions=[row["generated"] for row in rows], references=[row["answer"] for row in rows]
            )["exact_match"]
            for task, rows in by_task.items()
        },
        "answers": answers,
    }
    if has_adapter:
        tasks = [example["task"] for example in examples]
        names = [f"{row['audio']} · {row['instruction']}" for row in answers]
        selections = SelectionRecords.from_records(records, pipe.model, tasks, names)
        result["selections"] = _summarize(selections)
        selections.save(output_file.with_name(SELECTIONS))
    with atomic_path(output_file) as temporary:
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _summarize(selections: SelectionRecords) -> dict[str, Any]:
    usage, top = selections.usage(), selections.prompt_length
    return {
        "pool_size": selections.pool_size,
        "prompt_length": top,
        "live_prompts": usage.live_prompts(),
        "mean_overlap": usage.mean_task_overlap(top=top),
        "overlap": [[*pair, value] for pair, value in usage.task_overlap(top=top).items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a model on a data file with the pipeline.")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("data_file", type=Path)
    parser.add_argument("output_file", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    evaluate(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
