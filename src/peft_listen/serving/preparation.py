"""From a request to an input of the pipeline: the chat is rendered, and its clips are decoded."""

import time
from typing import Any

from jinja2 import TemplateError

from ..audio import AudioLimits, LimitError, load_audio
from ..audio.addresses import is_data_uri, read_data_uri
from ..pipelines import AudioTextToTextPipeline
from ..unicode import half_surrogate_problem
from .chat_request import AudioPart, ChatRequest, InputAudio, Message
from .errors import RequestError, timeout_error
from .settings import ServerSettings


# Limits must be above 0.
_MIN_SECONDS = 1e-3
# Highest sampling rate of a clip of the longest allowed duration, which bounds the memory of decoded samples.
_MAX_SAMPLING_RATE = 96_000


class Preparation:
    """
    Prepares requests, in several threads at once. Audio is taken from the body alone: what the decoder gets are bytes.

    Args:
        pipe ([`AudioTextToTextPipeline`]): Its processor has the chat template and the sampling rate.
        settings ([`ServerSettings`]): The limits of length, size and time.
    """

    def __init__(self, pipe: AudioTextToTextPipeline, settings: ServerSettings) -> None:
        self._pipe = pipe
        self._settings = settings
        self._sampling_rate = int(pipe.feature_extractor.sampling_rate)  # type: ignore[union-attr]
        self._audio_token = getattr(pipe.processor, "audio_token", None)

    def prepare(self, request: ChatRequest, deadline: float) -> dict[str, Any]:
        """
        Renders the chat and decodes its clips.

        Args:
            request ([`ChatRequest`]): The request.
            deadline (`float`): Time of `time.monotonic` at which decoding must have ended.

        Returns:
            `dict`: An output of the pipeline's `preprocess`.

        Raises:
            RequestError: There are too many clips or too long texts, a clip cannot be decoded or exceeds a limit, a
                text is not valid, the chat template does not accept the chat, or the time is over.
        """
        if time.monotonic() > deadline:
            raise timeout_error()
        self._check_num_clips(request)
        self._check_length_of_texts(request)
        seconds = self._settings.max_audio_seconds
        messages = []
        for number, message in enumerate(request.messages):
            content: list[dict[str, Any]] = []
            for place, part in enumerate(message.content):
                name = f"messages[{number}].content[{place}]"
                if isinstance(part, AudioPart):
                    self._check_speaker(message, name)
                    clip = self._decode(part.input_audio, name, seconds, deadline)
                    seconds -= len(clip) / self._sampling_rate
                    audio = {"array": clip, "sampling_rate": self._sampling_rate}
                    content.append({"type": "audio", "audio": audio})
                else:
                    self._check_text(part.text, name)
                    content.append({"type": "text", "text": part.text})
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": _joined(content)})
        try:
            # `continue_final_message`: in this API, an answer is always a new message.
            row: dict[str, Any] = self._pipe.preprocess(
                messages, limits=self._limits(deadline), continue_final_message=False
            )
        except (TemplateError, ValueError) as error:
            raise RequestError(
                f"The model's processor does not accept these messages: {error}", param="messages"
            ) from error
        return row

    def _limits(self, deadline: float, seconds: float | None = None) -> AudioLimits:
        remaining = max(deadline - time.monotonic(), _MIN_SECONDS)
        longest = self._settings.max_audio_seconds
        max_bytes = max(self._settings.max_request_bytes, 4 * _MAX_SAMPLING_RATE * longest)
        length = longest if seconds is None else max(seconds, _MIN_SECONDS)
        return AudioLimits(max_seconds=length, max_bytes=max_bytes, decoding_seconds=remaining)

    def _decode(self, audio: InputAudio, name: str, seconds: float, deadline: float) -> Any:
        limits = self._limits(deadline, seconds)
        uri = audio.data if is_data_uri(audio.data) else f"data:audio/{audio.format or 'wav'};base64,{audio.data}"
        try:
            content = read_data_uri(uri, limits)
            return load_audio(content, target_sampling_rate=self._sampling_rate, limits=limits)
        except (OSError, ValueError) as error:
            allowed = f" All clips of a request together may last {self._settings.max_audio_seconds:g} seconds."
            message = f"`{name}`: {error}{allowed if isinstance(error, LimitError) else ''}"
            raise RequestError(message, param=name, code="invalid_audio") from error

    def _check_num_clips(self, request: ChatRequest) -> None:
        num_clips = sum(isinstance(part, AudioPart) for message in request.messages for part in message.content)
        if num_clips > self._settings.max_clips:
            raise RequestError(
                f"The messages have {num_clips} clips; a request may have {self._settings.max_clips}. Send fewer.",
                param="messages",
                code="too_many_clips",
            )

    def _check_length_of_texts(self, request: ChatRequest) -> None:
        length = sum(
            len(part.text)
            for message in request.messages
            for part in message.content
            if not isinstance(part, AudioPart)
        )
        if length > self._settings.max_text_characters:
            raise RequestError(
                f"The messages have {length} characters of text; a request may have {self._settings.max_text_characters}. "
                "Shorten them.",
                param="messages",
                code="text_too_long",
            )

    def _check_speaker(self, message: Message, name: str) -> None:
        if message.role != "user":
            raise RequestError(f"`{name}`: audio is only accepted in messages of the user.", param=name)

    def _check_text(self, text: str, name: str) -> None:
        if problem := half_surrogate_problem(text):
            raise RequestError(f"`{name}`: the text {problem}", param=name)
        if self._audio_token and self._audio_token in text:
            raise RequestError(
                f"`{name}`: the text contains {self._audio_token!r}, the placeholder of audio. Send clips as parts of the type "
                "`input_audio`.",
                param=name,
            )


def _joined(content: list[dict[str, Any]]) -> list[dict[str, Any]] | str:
    """Content without audio as a string, which every chat template accepts."""
    if any(part["type"] == "audio" for part in content):
        return content
    return "\n".join(part["text"] for part in content)
