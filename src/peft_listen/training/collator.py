"""Data collator: turns rows of questions and answers about audio into training batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..answer_end import stop_at_answer_end
from ..chat_encoding import (
    ChatEncoder,
    ClipInputs,
    EncodedRow,
    TextChatEncoder,
    make_chat_encoder,
    naming_row,
    pad_left,
    padding_token_id,
)
from ..rows import Messages, has_messages, row_messages, split_clips, text_of
from ..unicode import half_surrogate_problem


if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from ..audio import AudioLimits
    from ..models.audio_listen import AudioListenProcessor
    from .feature_cache import FeatureCache


class _OwnChatEncoder(TextChatEncoder):
    """For [`AudioListenProcessor`], which loads the clips itself, or whose features are in a cache."""

    cache: FeatureCache | None = None

    def encode_clips(self, clips: list[Any]) -> ClipInputs:
        if not clips:
            return ClipInputs([], {})
        processor = self.processor
        if self.cache is not None:
            features = [self.cache[clip] for clip in clips]
            counts = [processor.num_audio_tokens(feature["audio_features_mask"].sum(-1)) for feature in features]
            return ClipInputs([[processor.audio_token_id] * count for count in counts], self.cache.batch(features))
        text = [processor.audio_token] * len(clips)
        return self._clip_inputs(processor(text=text, audio=clips, limits=self.limits, add_special_tokens=False))


class AudioListenCollator:
    """
    Data collator for [`AudioListenForCausalLM`] and other audio language models of transformers, with or without a PEFT adapter,
    under `Trainer` or `SFTTrainer`.

    The processor creates the prompt (audio, instruction, chat template) exactly as in generation. The answer is the text
    that the chat template renders after the prompt, up to its end token; only its tokens are supervised. If the template
    writes no end token, the tokenizer's end-of-sequence token is added, with a warning: without it nothing would teach the
    model to stop. An empty reasoning block that the template writes before the answer (`<think></think>`) is left out, as
    it is in the prompt. Rows are padded on the left, so all last answers end at the right edge.

    In a conversation of several turns, every answer of the assistant is supervised, and nothing else. The prompts of a
    LiSTEN adapter are then selected by what precedes the first answer, because a selection by an answer would reveal it; in
    generation they are selected by the whole chat. With `trained_answers="last"`, both are the same.

    Args:
        processor ([`AudioListenProcessor`], or another `ProcessorMixin`):
            processor of the model. Others need a chat template that renders audio parts as `processor.audio_token`, as those of
            Qwen2-Audio and Audio Flamingo 3; that of Voxtral is supported too. Clips are loaded for them at the sampling rate
            of their feature extractor.
        feature_cache ([`FeatureCache`], *optional*):
            cache to read the frozen encoders' outputs from, instead of running the encoders. It must contain every clip. For
            an [`AudioListenProcessor`] only.
        supervised_logits_only (`bool`, *optional*, defaults to `True` for an [`AudioListenProcessor`]):
            whether to add `logits_to_keep` and `shift_labels` to the batch, so that the language head runs only on the
            positions of the answers. The loss is the same. In an evaluation the model returns all logits nevertheless,
            so that those that `Trainer` passes to `compute_metrics` fit the labels. Set it to `False` for `SFTTrainer`,
            whose own head already does this, and for models whose `forward` does not accept these arguments.
        chat_template_kwargs (`dict`, *optional*):
            variables for the chat template, such as `{"enable_thinking": False}`. Pass the same ones in generation.
        trained_answers (`"all"` or `"last"`, defaults to `"all"`):
            which answers of a conversation of several turns are supervised. An end token that the chat template does not
            write is added to the last one only.
        limits ([`~peft_listen.audio.AudioLimits`], *optional*):
            limits within which clips are loaded, by default those of [`~peft_listen.audio.set_default_limits`]. With a
            `feature_cache`, pass them to the cache instead, which loads the clips.

    Raises:
        ValueError: if neither the chat template nor the tokenizer has a token that ends an answer, the processor is not
            supported, `feature_cache` is given together with `limits` or with the processor of another model, or
            `trained_answers` is another value.
    """

    def __init__(
        self,
        processor: AudioListenProcessor | ProcessorMixin,
        feature_cache: FeatureCache | None = None,
        supervised_logits_only: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        limits: AudioLimits | None = None,
        trained_answers: Literal["all", "last"] = "all",
    ) -> None:
        if trained_answers not in ("all", "last"):
            raise ValueError(f'`trained_answers` must be "all" or "last", got {trained_answers!r}.')
        if feature_cache is not None and limits is not None:
            raise ValueError(
                "The collator got `limits` and a `feature_cache`, which loads the clips itself. Pass the limits to the "
                "cache: `FeatureCache(folder, model, limits=...)`."
            )
        is_own = _is_own(processor)
        if feature_cache is not None and not is_own:
            raise ValueError(
                "A feature cache has the outputs of the encoders of an AudioListenForCausalLM, and "
                f"{type(processor).__name__} is the processor of another model. Leave out `feature_cache`."
            )
        self.limits = limits
        self.processor: Any = processor
        self.feature_cache = feature_cache
        self.supervised_logits_only = is_own if supervised_logits_only is None else supervised_logits_only
        self.trained_answers = trained_answers
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._encoder: ChatEncoder
        if is_own:
            own = _OwnChatEncoder(processor, self.chat_template_kwargs, limits)
            own.cache = feature_cache
            self._encoder = own
        else:
            self._encoder = make_chat_encoder(processor, self.chat_template_kwargs, limits)
        self.answer_end = self._encoder.answer_end
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
                f"{end.token!r} is added after the last answer of each row, so that the model learns to stop.",
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
                rows of either form. Other fields are ignored.

                - `instruction`, `answer`, `audio` (anything that [`load_audio`] accepts, a list of several clips, or `None`
                  for a row without audio) and, optionally, `system`, the system prompt;
                - `messages`: a list of `{"role": "system" | "user" | "assistant", "content": ...}` that ends with an answer of
                  the assistant. A content is a string, or a list of `{"type": "audio", "audio": clip}` and
                  `{"type": "text", "text": ...}`. Clips may also be in `audio`: they fill the parts `{"type": "audio"}` in
                  order, or stand before the first question if there are no such parts.

        Returns:
            `dict` with `input_ids`, `attention_mask` and `labels` of shape `(batch_size, sequence_length)`, the audio
            inputs of the model, and, with `supervised_logits_only`, `logits_to_keep` (`int`)
            and `shift_labels` of shape `(batch_size, logits_to_keep)`.

        Raises:
            KeyError: if an example has no `messages`, and no `instruction` or `answer`, no example of the batch has `audio`
                or `messages`, or a clip is not in `feature_cache`.
            OSError: if audio cannot be read (the message names the file), or exceeds a limit.
            ValueError: if there are no examples, audio is empty or not finite (the message names the file); and, with a
                message that names the row, if `messages` are not valid or have no answer at their end, the chat template does
                not render an answer after its prompt, or a text contains the audio token of the processor or half a
                surrogate pair.
        """
        self._check_columns(examples)
        rows = []
        for number, example in enumerate(examples):
            with naming_row(number):
                rows.append(self._split(example))
        tokens, audio_inputs = self._encoder.encode_rows(rows, every_answer=self.trained_answers == "all")
        batch: dict[str, Any] = self._pad(tokens)
        if self.supervised_logits_only:
            # Position i predicts token i + 1: the position before the first answer is needed, and that of the last token is
            # not. It is kept because `logits_to_keep` counts from the end.
            keep = max(len(row.labels) - _first_supervised(row) for row in tokens) + 1
            shifted = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
            batch["shift_labels"] = shifted[:, -keep:].contiguous()
            batch["logits_to_keep"] = keep
        batch.update(audio_inputs)
        return batch

    @staticmethod
    def _check_columns(examples: Sequence[Mapping[str, Any]]) -> None:
        if not examples:
            raise ValueError("The batch is empty: the collator got no examples. Pass at least one row.")
        for example in examples:
            missing = [name for name in ("instruction", "answer") if example.get(name) is None]
            if missing and not has_messages(example):
                raise KeyError(
                    f"An example has no {' and no '.join(missing)}; it has {sorted(example)}. If the trainer removes "
                    "unused columns, set `remove_unused_columns=False`."
                )
        if not any("audio" in example or has_messages(example) for example in examples):
            raise KeyError(
                f"No example of the batch has an `audio` column; the columns are {sorted(examples[0])}. If the trainer "
                "removes unused columns or prepares the data set itself, set `remove_unused_columns=False` and, for "
                'SFTTrainer, `dataset_kwargs={"skip_prepare_dataset": True}`. For rows without audio, set `audio` to '
                "`None`."
            )

    def _split(self, example: Mapping[str, Any]) -> tuple[Messages, list[Any]]:
        """The messages of a row, with places of its clips, and the clips."""
        if not has_messages(example):
            for name in ("system", "instruction", "answer"):
                self._check_text(example.get(name), f"its `{name}`")
        messages = row_messages(example)
        for number, message in enumerate(messages):
            self._check_text(text_of(message), f"message {number}")
        if messages[-1]["role"] != "assistant":
            raise ValueError(
                f"The last message is of the {messages[-1]['role']}, so there is no answer to train. End `messages` with the "
                "assistant's answer."
            )
        return split_clips(messages)

    def _check_text(self, text: Any, name: str) -> None:
        if text is None:
            return
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a string, got a {type(text).__name__}: {text!r:.100}.")
        if problem := half_surrogate_problem(text):
            raise ValueError(f"{name} {problem}")
        audio_token = self.processor.audio_token
        if audio_token in text:
            raise ValueError(
                f"{name} {text!r:.100} contains the audio token {audio_token}, which is a placeholder for the clip. Remove "
                "it from the text."
            )

    def _pad(self, rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": pad_left([row.input_ids for row in rows], padding_token_id(self.processor.tokenizer)),
            "attention_mask": pad_left([[1] * len(row.input_ids) for row in rows], 0),
            "labels": pad_left([row.labels for row in rows], -100),
        }


def _first_supervised(row: EncodedRow) -> int:
    return next((position for position, label in enumerate(row.labels) if label != -100), len(row.labels))


def _is_own(processor: Any) -> bool:
    from ..models.audio_listen import AudioListenProcessor

    return isinstance(processor, AudioListenProcessor)
