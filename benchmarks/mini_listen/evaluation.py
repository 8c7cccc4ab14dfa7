"""Evaluates a trained model: losses, generated answers and their scores, per task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.nn.functional import cross_entropy

from peft_listen import AudioListenProcessor
from peft_listen.metrics import get_metric
from peft_listen.tuners.listen import SelectionRecord, find_listen_layer

from .controls import routing
from .settings import TASKS, Precision


MAX_NEW_TOKENS = 40


def _answer_score(prediction: str, reference: str) -> float:
    return _value("exact_match", prediction, reference)


# The score of one clip, from 0 to 1, and the metrics over all clips that are stored beside the mean score.
CLIP_SCORERS: dict[str, Callable[[str, str], float]] = {
    **dict.fromkeys(TASKS, _answer_score),
    "asr": lambda prediction, reference: max(0.0, 1.0 - _value("wer", prediction, reference)),
    "en2zh": lambda prediction, reference: _value("chrf", prediction, reference) / 100,
    "acap": lambda prediction, reference: _value("rouge_l", prediction, reference),
}
FURTHER_METRICS: dict[str, dict[str, dict[str, Any]]] = {
    "asr": {"wer": {}, "cer": {}},
    "en2zh": {"chrf": {}, "bleu": {"tokenize": "zh"}},
}


@cache
def _metric(name: str) -> Any:
    return get_metric(name)


def _value(name: str, prediction: str, reference: str) -> float:
    return float(_metric(name).compute(predictions=[prediction], references=[reference])[name])


class Evaluator:
    """
    Computes losses, answers and verification scores of one model.

    Args:
        model (`torch.nn.Module`): the base model, with or without an adapter, on any device.
        processor ([`AudioListenProcessor`]): processor of the base model.
        collator (`Callable`): collator with the cache of encoder outputs.
        batch_size (`int`, defaults to 32): examples per batch.
        precision (`str`, defaults to `"float32"`): `"float32"`, or `"bf16"` for bfloat16 autocast.
    """

    def __init__(
        self,
        model: Any,
        processor: AudioListenProcessor,
        collator: Any,
        batch_size: int = 32,
        precision: Precision = "float32",
    ) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.processor = processor
        self.collator = collator
        self.batch_size = batch_size
        self.precision = precision

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @torch.no_grad()
    def losses(self, examples: list[dict[str, Any]]) -> dict[str, float]:
        """
        Mean loss per token of the reference answers.

        Args:
            examples (`list[dict]`): examples of any tasks.

        Returns:
            `dict[str, float]`: the loss of each task.
        """
        result = {}
        for task, rows in _by_task(examples).items():
            total, count = 0.0, 0
            for batch in self._batches(rows):
                # Without labels, logits are computed for the answers only.
                labels = batch.pop("shift_labels")
                batch.pop("labels")
                with self._autocast():
                    logits = self.model(**batch).logits.float()
                total += float(cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
                count += int((labels != -100).sum())
            result[task] = total / count
        return result

    @torch.no_grad()
    def answers(self, examples: list[dict[str, Any]]) -> tuple[list[str], list[SelectionRecord]]:
        """
        Greedy answers.

        Args:
            examples (`list[dict]`): examples of any tasks.

        Returns:
            `tuple[list[str], list[SelectionRecord]]`: the answer to each example, and the selections of each batch (empty
            without a LiSTEN adapter).
        """
        answers: list[str] = []
        with self._autocast(), _recording(self.model) as records:
            for batch in self._batches(examples):
                # The prompts without the answers, padded on the left for generation.
                prompts = [
                    row[mask.bool() & (labels == -100)]
                    for row, mask, labels in zip(
                        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
                    )
                ]
                padded = self.processor.tokenizer.pad(
                    {"input_ids": [prompt.tolist() for prompt in prompts]}, padding_side="left", return_tensors="pt"
                ).to(self.device)
                audio = {name: value for name, value in batch.items() if "features" in name}
                with routing(batch.get("routes")):
                    sequences = self.model.generate(
                        input_ids=padded["input_ids"],
                        attention_mask=padded["attention_mask"],
                        **audio,
                        max_new_tokens=MAX_NEW_TOKENS,
                        do_sample=False,
                        pad_token_id=self.processor.tokenizer.pad_token_id,
                    )
                new = sequences[:, padded["input_ids"].shape[1] :]
                texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
                answers.extend(text.strip() for text in texts)
        return answers, list(records or [])

    @torch.no_grad()
    def verification_scores(self, examples: list[dict[str, Any]]) -> list[float]:
        """Log-likelihood of "Yes" minus that of "No", for each example."""
        scores: list[float] = []
        for start in range(0, len(examples), self.batch_size):
            rows = examples[start : start + self.batch_size]
            likelihoods = []
            for answer in ("Yes", "No"):
                batch = self._collate([{**row, "answer": answer} for row in rows])
                labels = batch.pop("shift_labels")
                batch.pop("labels")
                with self._autocast():
                    log_probs = self.model(**batch).logits.float().log_softmax(dim=-1)
                label_log_probs = log_probs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
                likelihoods.append(label_log_probs.masked_fill(labels == -100, 0.0).sum(dim=-1))
            scores.extend((likelihoods[0] - likelihoods[1]).tolist())
        return scores

    def _batches(self, examples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(examples), self.batch_size):
            yield self._collate(examples[start : start + self.batch_size])

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return send_to_device(self.collator(examples), self.device)


def clip_scores(examples: list[dict[str, Any]], answers: list[str]) -> dict[str, list[float]]:
    """
    Scores each generated answer.

    Args:
        examples (`list[dict]`): the examples, with their reference answers.
        answers (`list[str]`): the generated answer to each.

    Returns:
        `dict[str, list[float]]`: for each task, the scores of its clips from 0 to 1, in the order of the examples.
    """
    scores: dict[str, list[float]] = {}
    for example, answer in zip(examples, answers, strict=True):
        task = example["task"]
        scores.setdefault(task, []).append(round(CLIP_SCORERS[task](answer, example["answer"]), 4))
    return scores


def further_metrics(examples: list[dict[str, Any]], answers: list[str]) -> dict[str, dict[str, float]]:
    """Metrics over all clips of a task, for the tasks of `FURTHER_METRICS`. Arguments as for [`clip_scores`]."""
    result: dict[str, dict[str, float]] = {}
    for task, metrics in FURTHER_METRICS.items():
        rows = [(answer, row["answer"]) for row, answer in zip(examples, answers, strict=True) if row["task"] == task]
        if rows:
            predictions, references = map(list, zip(*rows, strict=True))
            result[task] = {
                name: get_metric(name, **options).compute(predictions=predictions, references=references)[name]
                for name, options in metrics.items()
            }
    return result


def _recording(model: Any) -> Any:
    try:
        return find_listen_layer(model).record_selections()
    except ValueError:
        return nullcontext([])


def _by_task(examples: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_task: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        by_task.setdefault(example["task"], []).append(example)
    return by_task
