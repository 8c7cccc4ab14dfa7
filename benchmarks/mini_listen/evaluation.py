"""Evaluates a trained model: losses, generated answers and their scores, per task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device

from peft_listen import AudioListenProcessor
from peft_listen.metrics import get_metric
from peft_listen.training import AudioListenCollator
from peft_listen.tuners.listen import SelectionRecord, find_listen_layer


MAX_NEW_TOKENS = 40

Scorer = Callable[[list[str], list[str]], dict[str, float]]


def _error_rates(predictions: list[str], references: list[str]) -> dict[str, float]:
    rates = {
        name: get_metric(name).compute(predictions=predictions, references=references)[name] for name in ("wer", "cer")
    }
    return {"score": max(0.0, 1.0 - rates["wer"]), **rates}


def _translation(predictions: list[str], references: list[str]) -> dict[str, float]:
    chrf = get_metric("chrf").compute(predictions=predictions, references=references)["chrf"]
    bleu = get_metric("bleu", tokenize="zh").compute(predictions=predictions, references=references)["bleu"]
    return {"score": chrf / 100, "chrf": chrf, "bleu": bleu}


def _exact_match(predictions: list[str], references: list[str]) -> dict[str, float]:
    return {"score": get_metric("exact_match").compute(predictions=predictions, references=references)["exact_match"]}


def _caption(predictions: list[str], references: list[str]) -> dict[str, float]:
    return {"score": get_metric("rouge_l").compute(predictions=predictions, references=references)["rouge_l"]}


# Each scorer returns `score` from 0 to 1 (word accuracy, chrF / 100, exact match or ROUGE-L) and the metrics behind it.
SCORERS: dict[str, Scorer] = {
    "asr": _error_rates,
    "en2zh": _translation,
    "er": _exact_match,
    "sv": _exact_match,
    "sqa": _exact_match,
    "acap": _caption,
}


class Evaluator:
    """
    Computes losses, answers and verification scores of one model.

    Args:
        model (`torch.nn.Module`): the base model, with or without an adapter, on any device.
        processor ([`AudioListenProcessor`]): processor of the base model.
        collator ([`AudioListenCollator`]): collator with the cache of encoder outputs.
        batch_size (`int`, defaults to 32): examples per batch.
    """

    def __init__(
        self, model: Any, processor: AudioListenProcessor, collator: AudioListenCollator, batch_size: int = 32
    ) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.processor = processor
        self.collator = collator
        self.batch_size = batch_size

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
                tokens = int((batch["labels"] != -100).sum())
                total += float(self.model(**batch).loss) * tokens
                count += tokens
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
            without a LISTEN adapter).
        """
        answers: list[str] = []
        with _recording(self.model) as records:
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


def score(examples: list[dict[str, Any]], answers: list[str]) -> dict[str, dict[str, float]]:
    """
    Scores generated answers.

    Args:
        examples (`list[dict]`): the examples, with their reference answers.
        answers (`list[str]`): the generated answer to each.

    Returns:
        `dict[str, dict[str, float]]`: for each task, `score` from 0 to 1 and the metrics behind it.
    """
    indices = _by_task([{**example, "index": index} for index, example in enumerate(examples)])
    return {
        task: SCORERS[task]([answers[row["index"]] for row in rows], [row["answer"] for row in rows])
        for task, rows in indices.items()
    }


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
