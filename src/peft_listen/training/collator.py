"""Examples `{audio, instruction, answer, task}` to training batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..chat import starts_with_bos


if TYPE_CHECKING:
    from ..models.audio_listen import AudioListenProcessor
    from .feature_cache import FeatureCache


class AudioListenCollator:
    """
    Data collator for [`AudioListenForCausalLM`], with or without a PEFT adapter, under `Trainer` or `SFTTrainer`.

    The prompt (audio, instruction, chat template) is made by the processor exactly as in generation; the answer is what
    the chat template renders after it, and alone is supervised. Rows are padded on the left, so that all answers end
    at the right edge.

    Args:
        processor ([`AudioListenProcessor`]):
            Loads the audio and makes the prompt.
        feature_cache ([`FeatureCache`], *optional*):
            Gives the frozen encoders' output, in place of running them. Every clip must be in it.
        supervised_logits_only (`bool`, defaults to `True`):
            Adds `logits_to_keep` and `shift_labels` to the batch, so that the head runs on the answers' positions and
            not on the whole prompt. The loss is the same. Set it to `False` for `SFTTrainer`, whose own head does this
            already, for other models whose `forward` does not take them, and for metrics that need all logits.

    Returns (of a call):
        `dict` with `input_ids`, `attention_mask` and `labels` of shape `(batch_size, length)`, the audio inputs of
        [`AudioListenForCausalLM.forward`], and what `supervised_logits_only` adds.

    Raises (of a call):
        KeyError: if an example lacks `instruction` or `answer`, none of the batch has `audio`, or a clip is not in
            `feature_cache`.
        OSError: for audio that cannot be read; the message names the file.
        ValueError: for empty or non-finite audio (the message names the file), for an answer that the chat template does
            not render after the prompt, and for text with the processor's audio token in it.
    """

    def __init__(
        self,
        processor: AudioListenProcessor,
        feature_cache: FeatureCache | None = None,
        supervised_logits_only: bool = True,
    ) -> None:
        self.processor = processor
        self.feature_cache = feature_cache
        self.supervised_logits_only = supervised_logits_only

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self._check_columns(examples)
        rendered = [self._render(example) for example in examples]
        clips = [example["audio"] for example in examples if example.get("audio") is not None]
        prompts, audio_inputs = self._prompts([prompt for prompt, _ in rendered], clips)
        tokenizer = self.processor.tokenizer
        answers = [tokenizer(answer, add_special_tokens=False)["input_ids"] for _, answer in rendered]
        batch: dict[str, Any] = self._pad(prompts, answers)
        if self.supervised_logits_only:
            # Position i predicts token i + 1, so the last prompt position is kept and the last answer position is not
            # needed; keeping it makes the slice a plain number.
            keep = max(len(answer) for answer in answers) + 1
            shifted = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
            batch["shift_labels"] = shifted[:, -keep:].contiguous()
            batch["logits_to_keep"] = keep
        batch.update(audio_inputs)
        return batch

    @staticmethod
    def _check_columns(examples: Sequence[Mapping[str, Any]]) -> None:
        for example in examples:
            missing = [name for name in ("instruction", "answer") if example.get(name) is None]
            if missing:
                raise KeyError(
                    f"An example lacks {' and '.join(missing)}; it has {sorted(example)}. A trainer that removes unused "
                    "columns takes them away: set `remove_unused_columns=False`."
                )
        if not any("audio" in example for example in examples):
            raise KeyError(
                f"No example of the batch has an `audio` column; there are {sorted(examples[0])}. A trainer that "
                "removes unused columns or prepares the data set itself takes it away: set "
                "`remove_unused_columns=False` and, for SFTTrainer, "
                '`dataset_kwargs={"skip_prepare_dataset": True}`.'
            )

    def _render(self, example: Mapping[str, Any]) -> tuple[str, str]:
        content: list[dict[str, Any]] = [{"type": "text", "text": example["instruction"]}]
        if example.get("audio") is not None:
            content.insert(0, {"type": "audio"})
        question: list[Any] = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        conversation = [*question, {"role": "assistant", "content": example["answer"]}]
        full = self.processor.apply_chat_template(conversation, tokenize=False)
        if not full.startswith(prompt) or len(full) == len(prompt):
            raise ValueError(
                "The chat template does not render the assistant's answer directly after the generation prompt, so the "
                "answer cannot be told from the prompt. Give the processor a chat template that does.\n"
                f"Prompt: {prompt!r}\nWith the answer: {full!r}"
            )
        audio_token = self.processor.audio_token
        num_clips = len(content) - 1
        if full.count(audio_token) != num_clips:
            raise ValueError(
                f"The instruction {example['instruction']!r} or the answer {example['answer']!r} has the audio token "
                f"{audio_token} in it, which stands for the clip alone. Take it out of the text."
            )
        return prompt, full[len(prompt) :].rstrip("\n")

    def _prompts(self, texts: list[str], clips: list[Any]) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        add_special_tokens = not starts_with_bos(texts[0], self.processor.tokenizer.bos_token)
        if self.feature_cache is not None and clips:
            features = [self.feature_cache[clip] for clip in clips]
            texts = self._expand_audio_tokens(texts, [self._num_tokens(feature) for feature in features])
            inputs = self.processor.tokenizer(texts, add_special_tokens=add_special_tokens)
            return inputs["input_ids"], self.feature_cache.batch(features)
        inputs = self.processor(text=texts, audio=clips or None, add_special_tokens=add_special_tokens)
        real = inputs.pop("attention_mask").bool()
        input_ids = [row[mask].tolist() for row, mask in zip(inputs.pop("input_ids"), real, strict=True)]
        return input_ids, {name: value for name, value in inputs.items() if torch.is_tensor(value)}

    def _num_tokens(self, features: Mapping[str, torch.Tensor]) -> int:
        return self.processor.num_audio_tokens(features["audio_features_mask"].sum(-1))

    def _expand_audio_tokens(self, texts: list[str], counts: list[int]) -> list[str]:
        token = self.processor.audio_token
        remaining = iter(counts)
        expanded = []
        for text in texts:
            first, *rest = text.split(token)
            expanded.append(first + "".join(token * next(remaining) + part for part in rest))
        return expanded

    def _pad(self, prompts: list[list[int]], answers: list[list[int]]) -> dict[str, torch.Tensor]:
        length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        input_ids, attention_mask, labels = [], [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            padding = length - len(prompt) - len(answer)
            input_ids.append([self.processor.tokenizer.pad_token_id] * padding + prompt + answer)
            attention_mask.append([0] * padding + [1] * (length - padding))
            labels.append([-100] * (padding + len(prompt)) + answer)
        return {
            "input_ids": torch.tensor(input_ids),
            "attention_mask": torch.tensor(attention_mask),
            "labels": torch.tensor(labels),
        }
