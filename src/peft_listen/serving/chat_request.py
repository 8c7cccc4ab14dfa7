"""
Requests of OpenAI's chat completions: what a body may contain.

Everything that is not named here is refused, so that nobody takes a field without effect for one that has an effect. Audio
is only taken from the body: no field can make the server open a file or an address.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import RequestError


# Names of formats, which clients must state. The decoder looks at the content itself.
AudioFormat = Literal["wav", "mp3", "flac", "ogg", "opus", "aac", "m4a", "mp4", "webm", "aiff"]

# Fields of OpenAI's API that ask for something that this server cannot do, and the values that do not ask for it.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
# Fields without effect on an answer, or about services that a server of one's own does not have.
_IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}
_MAX_MESSAGE_LENGTH = 500
_MAX_PATH_LENGTH = 200  # names of unknown fields are repeated


class _Strict(BaseModel):
    # Values of another type are refused instead of converted. Error messages do not repeat the input, which may be long.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class InputAudio(_Strict):
    """A clip in base64, or a `data:` URI of one."""

    data: str = Field(min_length=1)
    format: AudioFormat | None = None


class AudioPart(_Strict):
    """A clip of a message, as in OpenAI's API."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def as_parts(content: Any) -> Any:
    """The content of a message as a list of parts, if it is a string."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Strict):
    """A message. Its other fields are those of answers, which clients send back as they got them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | AudioPart, Field(discriminator="type")]],
        Field(min_length=1),
        BeforeValidator(as_parts),
    ]
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(_Strict):
    """
    The body of `POST /v1/chat/completions`.

    Args:
        model (`str`): Name of a served model.
        messages (`list[Message]`): The chat.
        max_completion_tokens, max_tokens (`int`, *optional*): Longest answer in tokens; the first takes precedence.
        temperature (`float`, *optional*): 0 takes the most probable token. A larger value, or `top_p`, samples from the whole
            vocabulary, whatever `top_k` and the like the model's own settings have; without either, these apply.
        top_p (`float`, *optional*): Share of the probability that is sampled from, by default all.
        seed (`int`, *optional*): Seed of the sampling.
        stop (`str` or `list[str]`, *optional*): Up to four texts that end an answer.
        stream (`bool`, *optional*): Whether to send the answer in pieces.
        stream_options (`StreamOptions`, *optional*): Whether the last piece counts the tokens.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]],
        Field(max_length=4),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(default=[])
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def length(self) -> int | None:
        """Longest answer in tokens, if the request names one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class _Body(BaseModel):
    """A body of which only the JSON was checked."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)


def parse_chat_request(body: bytes) -> ChatRequest:
    """
    Reads the body of a request.

    Args:
        body (`bytes`): JSON in UTF-8.

    Returns:
        [`ChatRequest`]

    Raises:
        RequestError: The body is not JSON, lacks a field, or has one that is unknown, of another type or not supported.
    """
    try:
        fields = dict(_Body.model_validate_json(body).model_extra or {})
        for name in _IGNORED & fields.keys():
            del fields[name]
        for name in _UNSUPPORTED.keys() & fields.keys():
            value = fields.pop(name)
            # 0 == False, and True == 1, so the types are compared too.
            if value is not None and not any(_equal(value, neutral) for neutral in _UNSUPPORTED[name]):
                raise RequestError(
                    f"`{name}` is not supported. Leave it out.", param=name, code="unsupported_parameter"
                )
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = _path(first["loc"])
        raise RequestError(_message(param, first), param=param or None, code=_code(first["type"])) from error


def _equal(value: Any, neutral: Any) -> bool:
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].input_audio`, without the names of types that pydantic inserts for a union."""
    path, follows_index = "", False
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not (follows_index and step in ("text", "input_audio")):
            path += f".{step}" if path else step
        follows_index = isinstance(step, int)
    return path[:_MAX_PATH_LENGTH]


def _message(param: str, error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"The body is not valid JSON: {error['ctx']['error']}"[:_MAX_MESSAGE_LENGTH]
    if error["type"] == "extra_forbidden":
        return f"`{param}` is not a field of a chat request to this server. Leave it out."[:_MAX_MESSAGE_LENGTH]
    if error["type"] == "union_tag_invalid":
        return f"`{param}` has a type that is not supported. A part of a message is `text` or `input_audio`."
    return f"`{param or 'body'}`: {error['msg']}."[:_MAX_MESSAGE_LENGTH]


def _code(error_type: str) -> str:
    return {"json_invalid": "invalid_json", "missing": "missing_required_parameter"}.get(error_type, "invalid_value")
