"""Data collator: turns examples `{audio, instruction, answer, task}` into training batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..answer_end import find_answer_end, stop_at_answer_end, without_empty_reasoning
from ..chat import as_prompts
from ..unicode import half_surrogate_problem


if TYPE_CHECKING:
    from ..audio import AudioLimits
    from ..models.audio_listen import AudioListenProcessor
    from .feature_cache import FeatureCache


class AudioListenCollator:
    """
    Data collator for [`AudioListenForCausalLM`], with or without a PEFT adapter, under `Trainer` or `SFTTrainer`.

    The processor creates the prompt (audio, instruction, chat template) exactly as in generation. The answer is the text
    that the chat template renders after the prompt, up to its end token; only its tokens are supervised. If the template
    writes no end token, the tokenizer's end-of-sequence token is added, with a warning: without it nothing would teach the
    model to stop. An empty reasoning block that the template writes before the answer (`<think></think>`) is left out, as
    it is in the prompt. Rows are padded on the left, so all answers end at the right edge.

    Args:
        processor ([`AudioListenProcessor`]):
            processor that loads the audio and creates the prompt.
        feature_cache ([`FeatureCache`], *optional*):
            cache to read the frozen encoders' outputs from, instead of running the encoders. It must contain every clip.
        supervised_logits_only (`bool`, defaults to `True`):
            whether to add `logits_to_keep` and `shift_labels` to the batch, so that the language head runs only on the
            positions of the answers. The loss is the same. In an evaluation the model returns all logits nevertheless,
            so that those that `Trainer` passes to `compute_metrics` fit the labels. Set it to `False` for `SFTTrainer`,
            whose own head already does this, and for models whose `forward` does not accept these arguments.
        chat_template_kwargs (`dict`, *optional*):
            variables for the chat template, such as `{"enable_thinking": False}`. Pass the same ones in generation.
        limits ([`~peft_listen.audio.AudioLimits`], *optional*):
            limits within which clips are loaded, by default those of [`~peft_listen.audio.set_default_limits`]. With a
            `feature_cache`, pass them to the cache instead, which loads the clips.

    Raises:
        ValueError: if neither the chat template nor the tokenizer has a token that ends an answer, or both `feature_cache`
            and `limits` are given.
    """

    def __init__(
        self,
        processor: AudioListenProcessor,
        feature_cache: FeatureCache | None = None,
        supervised_logits_only: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        limits: AudioLimits | None = None,
    ) -> None:
        if feature_cache is not None and limits is not None:
            raise ValueError(
                "The collator got `limits` and a `feature_cache`, which loads the clips itself. Pass the limits to the "
                "cache: `FeatureCache(folder, model, limits=...)`."
            )
        self.limits = limits
        self.processor = processor
        self.feature_cache = feature_cache
        self.supervised_logits_only = supervised_logits_only
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.answer_end = find_answer_end(processor, **self.chat_template_kwargs)
        self._check_answer_end()

    def _check_answer_end(self) -> None:
        end = self.answer_end
        if end is None and self.processor.tokenizer.eos_token is None:
            raise ValueError(
                "The chat template writes no end token after an answer, and the tokenizer has no `eos_token`, so nothing "
                "would teach the model to stop. Set the tokenizer's `eos_token`, or a chat template that ends answers with "
                "a special token."
            )
        if end is not None and not end.is_rendered:
            warnings.warn(
                f"The chat template ends answers with {end.tail!r}, which contains no end token. The tokenizer's "
                f"{end.token!r} is added after every answer, so that the model learns to stop.",
                UserWarning,
                stacklevel=3,
            )

    def check_generation(self, model: Any) -> None:
        """
        Adds the token that ends the answers to `model.generation_config.eos_token_id` if it is missing there, with a warning
        that names both. [`ListenCallback`] calls it when training begins.

        Args:
            model (`nn.Module`): the model that is trained, with or without an adapter.
        """
        generation_config = getattr(model, "generation_config", None)
        if generation_config is not None:
            stop_at_answer_end(self.answer_end, generation_config, self.processor.tokenizer)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Creates a batch.

        Args:
            examples (`Sequence[Mapping]`):
                rows with `instruction`, `answer` and `audio` (anything that [`load_audio`] accepts, or `None` for a row
                without audio). Other fields are ignored.

        Returns:
            `dict` with `input_ids`, `attention_mask` and `labels` of shape `(batch_size, sequence_length)`, the audio
            inputs of [`AudioListenForCausalLM.forward`], and, with `supervised_logits_only`, `logits_to_keep` (`int`)
            and `shift_labels` of shape `(batch_size, logits_to_keep)`.

        Raises:
            KeyError: if an example has no `instruction` or `answer`, no example of the batch has `audio`, or a clip is
                not in `feature_cache`.
            OSError: if audio cannot be read (the message names the file), or exceeds a limit.
            ValueError: if there are no examples, audio is empty or not finite (the message names the file), the chat
                template does not render the answer after the prompt, or a text contains the audio token of the processor
                or half a surrogate pair (the message names the row and the field).
        """
        self._check_columns(examples)
        rendered = [self._render(example) for example in examples]
        clips = [example["audio"] for example in examples if example.get("audio") is not None]
        prompts, audio_inputs = self._prompts([prompt for prompt, _ in rendered], clips)
        tokenizer = self.processor.tokenizer
        answers = [tokenizer(answer, add_special_tokens=False)["input_ids"] for _, answer in rendered]
        if self.answer_end is not None and not self.answer_end.is_rendered:
            answers = [[*answer, self.answer_end.token_id] for answer in answers]
        batch: dict[str, Any] = self._pad(prompts, answers)
        if self.supervised_logits_only:
            # Position i predicts token i + 1: the last prompt position is needed, and the last answer position is not.
            # It is kept because `logits_to_keep` counts from the end.
            keep = max(len(answer) for answer in answers) + 1
            shifted = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
            batch["shift_labels"] = shifted[:, -keep:].contiguous()
            batch["logits_to_keep"] = keep
        batch.update(audio_inputs)
        return batch

    @staticmethod
    def _check_columns(examples: Sequence[Mapping[str, Any]]) -> None:
        if not examples:
            raise ValueError("The batch is empty: the collator got no examples. Pass at least one row.")
        for index, example in enumerate(examples):
            missing = [name for name in ("instruction", "answer") if example.get(name) is None]
            if missing:
                raise KeyError(
                    f"An example has no {' and no '.join(missing)}; it has {sorted(example)}. If the trainer removes "
                    "unused columns, set `remove_unused_columns=False`."
                )
            for name in ("instruction", "answer"):
                text = example[name]
                if isinstance(text, str) and (problem := half_surrogate_problem(text)):
                    raise ValueError(f"Row {index} of the batch: its `{name}` {problem}")
        if not any("audio" in example for example in examples):
            raise KeyError(
                f"No example of the batch has an `audio` column; the columns are {sorted(examples[0])}. If the trainer "
                "removes unused columns or prepares the data set itself, set `remove_unused_columns=False` and, for "
                'SFTTrainer, `dataset_kwargs={"skip_prepare_dataset": True}`. For rows without audio, set `audio` to '
                "`None`."
            )

    def _render(self, example: Mapping[str, Any]) -> tuple[str, str]:
        content: list[dict[str, Any]] = [{"type": "text", "text": example["instruction"]}]
        if example.get("audio") is not None:
            content.insert(0, {"type": "audio"})
        question: list[Any] = [{"role": "user", "content": content}]
        variables = self.chat_template_kwargs
        prompt = self.processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False, **variables)
        conversation = [*question, {"role": "assistant", "content": example["answer"]}]
        full = self.processor.apply_chat_template(conversation, tokenize=False, **variables)
        if not full.startswith(prompt) or len(full) == len(prompt):
            raise ValueError(
                "The chat template does not render the assistant's answer directly after the generation prompt, so the "
                "answer cannot be separated from the prompt. Set a `chat_template` of the processor that does.\n"
                f"Prompt: {prompt!r}\nWith the answer: {full!r}"
            )
        audio_token = self.processor.audio_token
        num_clips = len(content) - 1
        if full.count(audio_token) != num_clips:
            raise ValueError(
                f"The instruction {example['instruction']!r} or the answer {example['answer']!r} contains the audio "
                f"token {audio_token}, which is a placeholder for the clip. Remove it from the text."
            )
        answer = without_empty_reasoning(full[len(prompt) :], example["answer"])
        if self.answer_end is not None and self.answer_end.is_rendered:
            answer = answer.removesuffix(self.answer_end.tail)
        return prompt, answer.rstrip("\n")

    def _prompts(self, texts: list[str], clips: list[Any]) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        texts, add_special_tokens = as_prompts(texts, self.processor.tokenizer)
        if self.feature_cache is not None and clips:
            features = [self.feature_cache[clip] for clip in clips]
            texts = self._expand_audio_tokens(texts, [self._num_tokens(feature) for feature in features])
            inputs = self.processor.tokenizer(texts, add_special_tokens=add_special_tokens)
            return inputs["input_ids"], self.feature_cache.batch(features)
        audio: dict[str, Any] = {"audio": clips, "limits": self.limits} if clips else {}
        inputs = self.processor(text=texts, add_special_tokens=add_special_tokens, **audio)
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
            "input_ids": torch.tensor(input_ids, device="cpu"),
            "attention_mask": torch.tensor(attention_mask, device="cpu"),
            "labels": torch.tensor(labels, device="cpu"),
        }
