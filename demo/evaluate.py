"""Evaluates a model on a data file with the pipeline: answers, accuracy per task, and selected prompts.

    python -m demo.evaluate MODEL_DIR DATA.jsonl OUTPUT.json

`MODEL_DIR` is the folder of the base model or of an adapter. The prompts that each task selects are added for an adapter.
"""

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

from transformers import pipeline

import peft_listen  # noqa: F401 - registers the pipeline
from peft_listen.analysis import PromptUsage
from peft_listen.data import read_examples
from peft_listen.files import atomic_path
from peft_listen.metrics import get_metric
from peft_listen.tuners.listen import ListenLayer


def evaluate(model_dir: Path, data_file: Path, output_file: Path, batch_size: int = 8) -> None:
    """
    Writes answers, accuracy and selections to a JSON file.

    Args:
        model_dir (`Path`): folder of an AudioListen model or of an adapter for one.
        data_file (`Path`): JSON lines of examples.
        output_file (`Path`): JSON file to write.
        batch_size (`int`, defaults to 8): clips per batch.
    """
    examples = read_examples(data_file)
    pipe = pipeline("audio-text-to-text", model=str(model_dir), batch_size=batch_size)
    questions = [{"audio": example["audio"], "text": example["instruction"]} for example in examples]
    layers = [module for module in pipe.model.modules() if isinstance(module, ListenLayer)]
    selections = []
    if layers:
        with layers[0].record_selections() as records:
            outputs = pipe(questions, max_new_tokens=8, do_sample=False)
        selections = [row for record in records for row in record.indices]
    else:
        outputs = pipe(questions, max_new_tokens=8, do_sample=False)
    answers = [output[0]["generated_text"].strip() for output in outputs]

    by_task = defaultdict(lambda: ([], []))
    for example, answer in zip(examples, answers, strict=True):
        by_task[example["task"]][0].append(answer)
        by_task[example["task"]][1].append(example["answer"])
    metric = get_metric("exact_match")
    accuracy = {
        task: metric.compute(predictions=predictions, references=references)["exact_match"]
        for task, (predictions, references) in by_task.items()
    }
    result = {
        "accuracy": accuracy,
        "answers": [
            {
                "audio": os.path.basename(example["audio"]),
                **{name: example[name] for name in ("task", "instruction", "answer")},
                "generated": answer,
            }
            for example, answer in zip(examples, answers, strict=True)
        ],
    }
    if layers:
        config = layers[0].pool_of().config
        usage = PromptUsage(pool_size=config.pool_size)
        for row, example in zip(selections, examples, strict=True):
            usage.add(row[None], [example["task"]])
        overlap = usage.task_overlap(top=config.prompt_length)
        result["selections"] = {
            "pool_size": config.pool_size,
            "prompt_length": config.prompt_length,
            "live_prompts": usage.live_prompts(),
            "mean_overlap": usage.mean_task_overlap(top=config.prompt_length),
            "overlap": [[*pair, value] for pair, value in overlap.items()],
        }
    with atomic_path(output_file) as temporary:
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("data_file", type=Path)
    parser.add_argument("output_file", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    evaluate(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
