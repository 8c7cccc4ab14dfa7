"""
Encodes chats with audio for the processors of transformers: the token ids, in which every clip has its audio tokens, and the
audio inputs of the model. Training and the pipeline use the same encoder, so that their prompts are the same.

A kind of processor is one class with the decorator [`register_chat_encoder`]. This module imports no model.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from .answer_end import AnswerEnd, find_answer_end
from .audio import DEFAULT_SAMPLING_RATE, load_audio
from .chat import as_prompts
from .rendering import render_row
from .rows import Messages, text_of


if TYPE_CHECKING:
    from .audio import AudioLimits


# Outputs of a processor for the text, which are made anew here.
_TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids"})


class EncodedRow(NamedTuple):
    """
    Token ids of a row.

    Attributes:
        input_ids (`list[int]`): with the audio tokens of its clips.
        labels (`list[int]`): of the same length, -100 at positions that are not trained.
    """

    input_ids: list[int]
    labels: list[int]


class ClipInputs(NamedTuple):
    """
    Inputs of a model for some clips.

    Attributes:
        token_ids (`list[list[int]]`): the token ids that stand for each clip.
        tensors (`dict[str, torch.Tensor]`): the audio inputs of the model, by their names.
    """

    token_ids: list[list[int]]
    tensors: dict[str, torch.Tensor]


Row = tuple[Messages, list[Any]]
"""Messages with `{"type": "audio"}` as places of the clips, and the clips."""


class ChatEncoder(Protocol):
    """
    Encodes the chats of one kind of processor.

    Args:
        processor (`ProcessorMixin`): a processor for which `supports` is true.
        variables (`Mapping`): variables for the chat template.
        limits ([`~peft_listen.audio.AudioLimits`], *optional*): limits within which clips are loaded.
    """

    answer_end: AnswerEnd | None

    def __init__(self, processor: Any, variables: Mapping[str, Any], limits: AudioLimits | None = None) -> None: ...

    @staticmethod
    def supports(processor: Any) -> bool:
        """Whether this class encodes the chats of a processor."""

    def encode_rows(self, rows: Sequence[Row], every_answer: bool) -> tuple[list[EncodedRow], dict[str, torch.Tensor]]:
        """
        Encodes rows for training. The messages of each end with an answer.

        Args:
            rows (`Sequence[Row]`): messages and clips.
            every_answer (`bool`): whether the earlier answers are trained too.

        Raises:
            ValueError: if a row cannot be encoded; the message begins with "Row" and its number in the batch.
            OSError: if a clip cannot be read, or exceeds a limit.
        """

    def encode_prompts(
        self, rows: Sequence[Row], continued: Sequence[bool] = ()
    ) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        """
        Encodes rows for generation.

        Args:
            rows (`Sequence[Row]`): messages and clips.
            continued (`Sequence[bool]`): for each row, whether generation continues its last message; by default none.

        Returns:
            The token ids of each row, and the audio inputs of the model.

        Raises:
            ValueError, OSError: as `encode_rows`.
        """


_ENCODERS: list[type[ChatEncoder]] = []


def register_chat_encoder(encoder: type[ChatEncoder]) -> type[ChatEncoder]:
    """Class decorator: makes an encoder known. One that is registered later is asked first."""
    _ENCODERS.insert(0, encoder)
    return encoder


def find_chat_encoder(processor: Any) -> type[ChatEncoder] | None:
    """The encoder for a processor, or `None` if there is none."""
    return next((encoder for encoder in _ENCODERS if encoder.supports(processor)), None)


def make_chat_encoder(
    processor: Any, variables: Mapping[str, Any] | None = None, limits: AudioLimits | None = None
) -> ChatEncoder:
    """
    Makes the encoder for a processor; see [`ChatEncoder`] for the arguments.

    Raises:
        ValueError: if there is none.
    """
    encoder = find_chat_encoder(processor)
    if encoder is None:
        raise ValueError(
            f"{type(processor).__name__} is not supported: it needs a `chat_template` that renders audio parts, and the "
            "attribute `audio_token` with the token that they are rendered as. Set them, or register an encoder with "
            "`peft_listen.chat_encoding.register_chat_encoder`."
        )
    return encoder(processor, variables or {}, limits)


def pad_left(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """
    Pads rows on the left.

    Args:
        rows (`Sequence[Sequence[int]]`): rows of any lengths.
        value (`int`): of the padding.

    Returns:
        `torch.LongTensor` of shape `(len(rows), longest)`, on the CPU.
    """
    length = max(map(len, rows))
    return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows], device="cpu")


def padding_token_id(tokenizer: Any) -> int:
    """The token for padding, which is masked, so that any token will do: the end-of-sequence token if there is none."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


@contextmanager
def naming_row(number: int) -> Iterator[None]:
    """Names the row of a batch in the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Row {number} of the batch: {error}") from error


def sampling_rate_of(processor: Any) -> int:
    """The sampling rate in Hz that a processor expects."""
    extractor = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
    return int(getattr(extractor, "sampling_rate", DEFAULT_SAMPLING_RATE))


@register_chat_encoder
class TextChatEncoder:
    """
    For processors whose chat template renders text with one audio token for each clip: [`AudioListenProcessor`], and those of
    Qwen2-Audio, Audio Flamingo 3 and others.

    The processor gets the clips with one audio token each as text, and makes the audio inputs and the tokens of each clip.
    These replace the audio token in the tokens of the chat. Therefore a row may have any number of clips, and rows with and
    without clips may be in one batch, even if the processor itself wants one clip for each text.
    """

    def __init__(self, processor: Any, variables: Mapping[str, Any], limits: AudioLimits | None = None) -> None:
        self.processor = processor
        self.variables = dict(variables)
        self.limits = limits
        self.answer_end = find_answer_end(processor, **self.variables)

    @staticmethod
    def supports(processor: Any) -> bool:
        has_template = getattr(processor, "chat_template", None) is not None
        return has_template and isinstance(getattr(processor, "audio_token", None), str)

    def encode_rows(self, rows: Sequence[Row], every_answer: bool) -> tuple[list[EncodedRow], dict[str, torch.Tensor]]:
        rendered = []
        for number, (messages, _) in enumerate(rows):
            with naming_row(number):
                pieces = render_row(self.processor, messages, self.answer_end, every_answer, self.variables)
                rendered.append(pieces)
        clips = self.encode_clips([clip for _, clips in rows for clip in clips])
        remaining = iter(clips.token_ids)
        encoded = []
        for number, (pieces, (_, own)) in enumerate(zip(rendered, rows, strict=True)):
            with naming_row(number):
                row = self._with_clips(self._tokenize(pieces), [next(remaining) for _ in own])
            if self.answer_end is not None and not self.answer_end.is_rendered:
                end = self.answer_end.token_id
                row = EncodedRow([*row.input_ids, end], [*row.labels, end])
            encoded.append(row)
        return encoded, clips.tensors

    def encode_prompts(
        self, rows: Sequence[Row], continued: Sequence[bool] = ()
    ) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        texts = [
            self.processor.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not is_continued,
                continue_final_message=is_continued,
                **self.variables,
            )
            for (messages, _), is_continued in zip(rows, continued or [False] * len(rows), strict=True)
        ]
        clips = self.encode_clips([clip for _, clips in rows for clip in clips])
        remaining = iter(clips.token_ids)
        prompts = []
        for text, (_, own) in zip(texts, rows, strict=True):
            row = self._with_clips(self._tokenize([(text, False)]), [next(remaining) for _ in own])
            prompts.append(row.input_ids)
        return prompts, clips.tensors

    def encode_clips(self, clips: list[Any]) -> ClipInputs:
        """
        Makes the inputs for some clips.

        Args:
            clips (`list`): clips that [`load_audio`] accepts; samples without a rate have that of the processor.
        """
        if not clips:
            return ClipInputs([], {})
        rate = sampling_rate_of(self.processor)
        waveforms = [load_audio(clip, rate, target_sampling_rate=rate, limits=self.limits) for clip in clips]
        inputs = self.processor(
            text=[self.processor.audio_token] * len(waveforms),
            audio=waveforms,
            return_tensors="pt",
            # The padding of the audio is left to the processor: many encoders take 30 s only.
            text_kwargs={"padding": True, "add_special_tokens": False},
            audio_kwargs={"sampling_rate": rate},
        )
        self._warn_of_lost_audio(max(len(waveform) for waveform in waveforms) / rate, inputs, len(waveforms))
        return self._clip_inputs(inputs)

    def _warn_of_lost_audio(self, longest: float, inputs: Mapping[str, Any], num_clips: int) -> None:
        window = getattr(getattr(self.processor, "feature_extractor", None), "chunk_length", None)
        features = inputs.get("input_features")
        # A processor that splits long clips has more rows of features than clips.
        if window is not None and longest > window and features is not None and len(features) == num_clips:
            warnings.warn(
                f"A clip lasts {longest:.2f} s, and {type(self.processor).__name__} takes the first {window:g} s of a "
                f"clip only: the other {longest - window:.2f} s are lost. Pass shorter clips, or several for one row.",
                UserWarning,
                stacklevel=4,
            )

    @staticmethod
    def _clip_inputs(inputs: Mapping[str, Any]) -> ClipInputs:
        real = inputs["attention_mask"].bool()
        token_ids = [row[mask].tolist() for row, mask in zip(inputs["input_ids"], real, strict=True)]
        tensors = {
            name: value for name, value in inputs.items() if name not in _TEXT_INPUTS and torch.is_tensor(value)
        }
        return ClipInputs(token_ids, tensors)

    def _tokenize(self, pieces: Sequence[tuple[str, bool]]) -> EncodedRow:
        tokenizer = self.processor.tokenizer
        row = EncodedRow([], [])
        # Every answer is tokenized by itself, as the model writes it: after the tokens of its prompt.
        for number, (text, is_answer) in enumerate(pieces):
            add_special_tokens = False
            if number == 0:
                (text,), add_special_tokens = as_prompts([text], tokenizer)
            ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            row.input_ids.extend(ids)
            row.labels.extend(ids if is_answer else [-100] * len(ids))
        return row

    def _with_clips(self, row: EncodedRow, clips: list[list[int]]) -> EncodedRow:
        """Replaces each audio token by those of its clip."""
        audio_token = self.processor.audio_token
        token = self.processor.tokenizer.convert_tokens_to_ids(audio_token)
        places = row.input_ids.count(token)
        if places != len(clips):
            raise ValueError(
                f"The chat template writes {places} audio tokens {audio_token} for {len(clips)} clips. Set a `chat_template` of "
                'the processor that renders each {"type": "audio"} part as one audio token.'
            )
        remaining = iter(clips)
        with_clips = EncodedRow([], [])
        for token_id, label in zip(*row, strict=True):
            ids = next(remaining) if token_id == token else [token_id]
            with_clips.input_ids.extend(ids)
            with_clips.labels.extend([label] if token_id != token else [-100] * len(ids))
        return with_clips


@register_chat_encoder
class MistralChatEncoder:
    """
    For Voxtral, whose processor has no chat template: mistral-common encodes whole chats. The end of answers is its
    end-of-sequence token.
    """

    def __init__(self, processor: Any, variables: Mapping[str, Any], limits: AudioLimits | None = None) -> None:
        if variables:
            raise ValueError(
                f"{type(processor).__name__} has no chat template, so that the variables {sorted(variables)} have no "
                "effect. Leave out `chat_template_kwargs`."
            )
        self.processor = processor
        self.limits = limits
        tokenizer = processor.tokenizer
        self.answer_end: AnswerEnd | None = AnswerEnd(tokenizer.eos_token, tokenizer.eos_token_id, is_rendered=True)

    @staticmethod
    def supports(processor: Any) -> bool:
        return type(processor).__name__ == "VoxtralProcessor"

    def encode_rows(self, rows: Sequence[Row], every_answer: bool) -> tuple[list[EncodedRow], dict[str, torch.Tensor]]:
        encoded, tensors = [], []
        for number, (messages, clips) in enumerate(rows):
            with naming_row(number):
                row, features = self._encode_row(_with_files(messages, self._load(clips)), every_answer)
            encoded.append(row)
            tensors.append(features)
        return encoded, _concatenated(tensors)

    def encode_prompts(
        self, rows: Sequence[Row], continued: Sequence[bool] = ()
    ) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        if any(continued):
            raise ValueError(
                f"{type(self.processor).__name__} cannot continue a message of the assistant. End the chat with a message of the "
                "user."
            )
        prompts = [self._prompt(_with_files(messages, self._load(clips))) for messages, clips in rows]
        return [ids for ids, _ in prompts], _concatenated([tensors for _, tensors in prompts])

    def _encode_row(self, messages: Messages, every_answer: bool) -> tuple[EncodedRow, dict[str, torch.Tensor]]:
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        row = EncodedRow([], [])
        tensors: dict[str, torch.Tensor] = {}
        for turn in turns if every_answer else turns[-1:]:
            prompt, tensors = self._prompt(messages[:turn])
            known = len(row.input_ids)
            if prompt[:known] != row.input_ids:
                raise ValueError(
                    f"The answers before message {turn} are encoded in another way when other messages follow them. Train the "
                    'last answer of each row only, with `trained_answers="last"`.'
                )
            row.input_ids.extend(prompt[known:])
            row.labels.extend([-100] * (len(prompt) - known))
            answer = self.processor.tokenizer.encode(text_of(messages[turn]), add_special_tokens=False)
            answer = [*answer, self.processor.tokenizer.eos_token_id]
            row.input_ids.extend(answer)
            row.labels.extend(answer)
        return row, tensors

    def _prompt(self, messages: Messages) -> tuple[list[int], dict[str, torch.Tensor]]:
        try:
            inputs = self.processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        except Exception as error:  # mistral-common raises errors of many types
            raise ValueError(
                f"mistral-common does not encode these messages ({type(error).__name__}: {error}). Their roles are "
                f"{', '.join(message['role'] for message in messages)}."
            ) from error
        tensors = {name: value for name, value in inputs.items() if name not in _TEXT_INPUTS}
        return inputs["input_ids"][0].tolist(), tensors

    def _load(self, clips: list[Any]) -> list[str]:
        """The clips as WAV files in base64, which mistral-common reads."""
        import soundfile

        rate = sampling_rate_of(self.processor)
        files = []
        for clip in clips:
            waveform = load_audio(clip, rate, target_sampling_rate=rate, limits=self.limits)
            file = io.BytesIO()
            soundfile.write(file, waveform, rate, format="WAV", subtype="FLOAT")
            files.append(base64.b64encode(file.getvalue()).decode())
        return files


def _with_files(messages: Messages, files: list[str]) -> Messages:
    remaining = iter(files)
    changed = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "audio", "base64": next(remaining)} if part["type"] == "audio" else part for part in content
            ]
        changed.append({**message, "content": content})
    return changed


def _concatenated(tensors: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(name for each in tensors for name in each)
    return {name: torch.cat([each[name] for each in tensors if name in each]) for name in names}
