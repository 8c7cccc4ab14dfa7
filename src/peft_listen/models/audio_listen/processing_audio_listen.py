"""AudioListen processor: converts text and audio to inputs of [`AudioListenForCausalLM`]."""

import os
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoTokenizer, GenerationConfig, WhisperFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase, TextInput
from transformers.utils import logging

from ...answer_end import find_answer_end, warn_of_other_end
from ...audio import AudioLimits, AudioSource, LimitError, load_audio
from ...audio.waveform import is_list_of_clips
from ...chat import AUDIO_TOKEN, as_prompts, clip_of
from ...setting_types import check_integer, check_positive, check_switch
from ...unicode import half_surrogate_problem
from ..beats.feature_extraction_beats import BeatsFeatureExtractor
from .audio_tokens import (
    CHUNK_SECONDS,
    add_audio_token,
    check_chunk_multiple,
    encoded_frames,
    num_audio_windows,
    num_encoder_frames,
    window_reach,
)
from .chat_template import audio_chat_template, text_template
from .configuration_audio_listen import AudioListenConfig
from .hub_arguments import FILE_ARGUMENTS, HUB_ARGUMENTS, subset


logger = logging.get_logger(__name__)

# Fields that must be equal in the processor and in the configuration of its model.
_SHARED_WITH_CONFIG = ("audio_token_id", "num_queries", "window_length", "window_stride")


class AudioListenAudioKwargs(AudioKwargs, total=False):
    """
    Arguments for the audio of [`AudioListenProcessor`].

    Args:
        limits ([`~peft_listen.audio.AudioLimits`], *optional*):
            Limits within which clips are loaded.
    """

    limits: AudioLimits | None


class AudioListenProcessorKwargs(ProcessingKwargs, total=False):
    """Arguments of a call of [`AudioListenProcessor`]."""

    audio_kwargs: AudioListenAudioKwargs  # type: ignore[misc]


class AudioListenProcessor(ProcessorMixin):
    r"""
    Prepares text and audio for [`AudioListenForCausalLM`]: loads, mixes down and resamples audio, splits it into chunks of
    30 s, computes the input features of both encoders, and repeats each audio token in the text once per embedding of its
    clip. Batches are padded on the left, for generation, unless `padding_side` is given.

    Args:
        feature_extractor (`WhisperFeatureExtractor`):
            Feature extractor of the speech encoder.
        tokenizer (`PreTrainedTokenizerBase`):
            The language model's tokenizer, with `audio_token` in its vocabulary.
        sound_feature_extractor ([`BeatsFeatureExtractor`], *optional*):
            Feature extractor of the sound encoder, if the model has one.
        chat_template (`str`, *optional*):
            Jinja template for [`~AudioListenProcessor.apply_chat_template`]. Defaults to the tokenizer's template,
            extended to audio, or to the prompt format of SALMONN if the tokenizer has none.
        audio_token (`str`, *optional*, defaults to `"<|audio|>"`):
            Placeholder for one clip in the text.
        num_queries, window_length, window_stride (`int`, *optional*, default to 1, 17 and 17):
            Must be equal to those of the model's [`AudioListenConfig`].
        group_sound_by_length (`bool`, *optional*, defaults to `True`):
            Whether the sound features of a chunk are computed from that chunk alone. `False` pads the waveforms to the
            longest chunk of the batch first, as BEATs and SALMONN do. Set it as in the model's [`AudioListenConfig`].
        speech_chunk_multiple (`int`, *optional*, defaults to 30):
            The log-mel spectrogram of a chunk has the least multiple of this number of seconds that holds the chunk's
            windows, and 30 s at most. Must be a multiple of that of the model's [`AudioListenConfig`], or 30; an equal
            value costs least.
        max_audio_seconds (`float`, *optional*):
            Truncates longer clips, with a warning. By default clips are never truncated.

    Raises:
        `ValueError`: if `audio_token` is missing from the tokenizer's vocabulary, or a setting has the wrong type or is out
            of its range; the message names it.
    """

    valid_processor_kwargs = AudioListenProcessorKwargs  # type: ignore[assignment]
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    audio_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        sound_feature_extractor: BeatsFeatureExtractor | dict[str, Any] | None = None,
        chat_template: str | None = None,
        audio_token: str = AUDIO_TOKEN,
        num_queries: int = 1,
        window_length: int = 17,
        window_stride: int = 17,
        group_sound_by_length: bool = True,
        speech_chunk_multiple: int = CHUNK_SECONDS,
        max_audio_seconds: float | None = None,
    ) -> None:
        if not isinstance(audio_token, str) or not audio_token:
            raise ValueError(f"`audio_token` must be the text of a token, got {audio_token!r}.")
        if audio_token not in tokenizer.get_vocab():
            raise ValueError(
                f"The tokenizer does not know the audio token {audio_token!r}. Add it with `add_audio_token(tokenizer)`, "
                "or build the processor with `AudioListenProcessor.from_sub_models_pretrained`."
            )
        for name, value in (
            ("num_queries", num_queries),
            ("window_length", window_length),
            ("window_stride", window_stride),
        ):
            check_integer(name, value)
        check_switch("group_sound_by_length", group_sound_by_length)
        check_chunk_multiple(speech_chunk_multiple)
        if max_audio_seconds is not None:
            check_positive("max_audio_seconds", max_audio_seconds)
        self.sound_feature_extractor = _as_sound_feature_extractor(sound_feature_extractor)
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        self.num_queries = num_queries
        self.window_length = window_length
        self.window_stride = window_stride
        self.group_sound_by_length = group_sound_by_length
        self.speech_chunk_multiple = speech_chunk_multiple
        self.max_audio_seconds = max_audio_seconds
        chat_template = chat_template or audio_chat_template(audio_token, text_template(tokenizer))
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        # `sound_feature_extractor` may be None, which ProcessorMixin does not support as an attribute: it is saved as a
        # plain argument.
        return ["feature_extractor", "tokenizer"]

    @classmethod
    def from_sub_models_pretrained(
        cls,
        *,
        speech: str | os.PathLike | WhisperFeatureExtractor,
        llm: str | os.PathLike | PreTrainedTokenizerBase,
        sound: str | os.PathLike | BeatsFeatureExtractor | bool | None = None,
        audio_token: str = AUDIO_TOKEN,
        **kwargs: Any,
    ) -> Self:
        """
        Builds the processor of a model built by [`AudioListenForCausalLM.from_sub_models_pretrained`].

        Args:
            speech (`str`, `os.PathLike` or `WhisperFeatureExtractor`):
                Hub id or folder of the Whisper checkpoint, or its feature extractor.
            llm (`str`, `os.PathLike` or `PreTrainedTokenizerBase`):
                Hub id or folder of the language model, or its tokenizer. The audio token is added to the tokenizer, and
                the end-of-sequence token becomes its padding token if it has none.
            sound (`str`, `os.PathLike`, [`BeatsFeatureExtractor`] or `bool`, *optional*):
                Whether the model has a sound encoder: the `sound` that the model was built from, or `True`. All BEATs
                checkpoints use the same feature extractor.
            audio_token (`str`, *optional*, defaults to `"<|audio|>"`):
                Placeholder for one clip in the text.
            kwargs: Other arguments of [`AudioListenProcessor`].
        """
        is_name = isinstance(speech, (str, os.PathLike))
        feature_extractor = AutoFeatureExtractor.from_pretrained(speech) if is_name else speech
        tokenizer = llm if isinstance(llm, PreTrainedTokenizerBase) else AutoTokenizer.from_pretrained(llm)
        add_audio_token(tokenizer, audio_token)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if sound is not None and not isinstance(sound, BeatsFeatureExtractor):
            sound = BeatsFeatureExtractor() if sound is not False else None
        return cls(
            feature_extractor,
            tokenizer,
            sound_feature_extractor=sound,
            audio_token=audio_token,
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        try:
            file_kwargs = subset(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS)
            config_dict, _ = AudioListenConfig.get_config_dict(pretrained_model_name_or_path, **file_kwargs)
        except OSError:
            return processor
        if config_dict.get("model_type") == AudioListenConfig.model_type:
            # A value given here replaces the saved ones of both the processor and the model.
            processor.check_config({**config_dict, **subset(kwargs, ("speech_chunk_multiple",))})
            try:
                generation_config = GenerationConfig.from_pretrained(pretrained_model_name_or_path, **file_kwargs)
            except OSError:
                return processor
            processor.check_generation_config(generation_config)
        return processor

    def check_generation_config(self, generation_config: GenerationConfig) -> None:
        """
        Warns if generation does not stop at the token that ends an answer in the chat template; the message names both.

        Args:
            generation_config ([`~transformers.GenerationConfig`]): That of the model.
        """
        remedy = "Add it to the model's `generation_config.eos_token_id`."
        warn_of_other_end(find_answer_end(self), generation_config, self.tokenizer, remedy)

    def check_config(self, config: AudioListenConfig | dict[str, Any]) -> None:
        """
        Checks that this processor fits a model.

        Args:
            config ([`AudioListenConfig`] or `dict`): Configuration of the model.

        Raises:
            `ValueError`: if a field differs; the message names it and both values.
        """
        values = config if isinstance(config, dict) else config.to_dict()
        for name in _SHARED_WITH_CONFIG:
            if name in values and values[name] != getattr(self, name):
                raise ValueError(
                    f"The processor does not fit the model: its `{name}` is {getattr(self, name)}, the model's "
                    f"configuration says {values[name]}. Load both from the same checkpoint."
                )
        step = values.get("speech_chunk_multiple", CHUNK_SECONDS)
        check_chunk_multiple(step)
        if self.speech_chunk_multiple != CHUNK_SECONDS and self.speech_chunk_multiple % step:
            raise ValueError(
                f"The processor does not fit the model: its `speech_chunk_multiple` is {self.speech_chunk_multiple} s, which "
                f"is not a multiple of the model's {step} s. Pass the same `speech_chunk_multiple` to the `from_pretrained` "
                "of both."
            )
        if (values.get("sound_config") is None) != (self.sound_feature_extractor is None):
            has, lacks = ("processor", "model") if values.get("sound_config") is None else ("model", "processor")
            raise ValueError(
                f"The processor does not fit the model: the {has} has a sound encoder's part, the {lacks} has none. Load "
                "both from the same checkpoint."
            )

    def __call__(
        self,
        text: TextInput | list[TextInput] | None = None,
        audio: AudioSource | list | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            text (`str` or `list[str]`, *optional*):
                Prompts, with one `audio_token` per clip. The tokenizer adds no end token to them, even if it adds one
                to other texts, and no second beginning-of-sequence token.
            audio (*optional*):
                The clips of all prompts in order, in a flat list or in one list per prompt. A clip has one of the types
                that [`~peft_listen.audio.load_audio`] accepts: a path, URL, bytes, an array, a `datasets` row, ...
            kwargs:
                Arguments of the tokenizer (`padding`, `padding_side`, ...); `sampling_rate` (`int`), the rate in Hz of
                clips given as plain arrays; `limits` ([`~peft_listen.audio.AudioLimits`]), within which clips are loaded,
                by default those of [`~peft_listen.audio.set_default_limits`]; and `return_tensors`, `"pt"` (the default)
                or `"np"`.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`, and for N
            chunks of audio `input_features` (N, mel bins, mel frames), `input_features_mask` (N, mel frames) and, with a
            sound encoder, `sound_input_values` (N, frames, 128) and `sound_attention_mask` (N, frames). There are 3000 mel
            frames, or fewer with a `speech_chunk_multiple` below 30.

        Raises:
            `ValueError`: if the numbers of placeholders and clips differ (the message names both), a clip is empty, not
                finite, or its sampling rate is unknown (the message names the clip), or a prompt contains half a surrogate
                pair (the message names the prompt).
            `OSError`: if an audio file cannot be read, or a clip exceeds a limit.
            `TypeError`: if `limits` is not an [`~peft_listen.audio.AudioLimits`].
        """
        tensor_type = kwargs.pop("return_tensors", "pt")
        if tensor_type not in ("pt", "np"):
            raise ValueError(
                f"`return_tensors` must be 'pt' (torch tensors) or 'np' (NumPy arrays), got {tensor_type!r}."
            )
        text_kwargs = kwargs.get("text_kwargs", {})
        if not any("padding_side" in group for group in (kwargs, text_kwargs, kwargs.get("common_kwargs", {}))):
            kwargs["text_kwargs"] = text_kwargs | {"padding_side": "left"}
        if text is not None and _is_text(text):
            for row, sample in enumerate([text] if isinstance(text, str) else text):
                if problem := half_surrogate_problem(sample):
                    raise ValueError(f"Prompt {row} {problem}")
        if text is not None and audio is not None:
            self._check_rows([text] if isinstance(text, str) else text, audio)
        added = 0
        if _is_text(text) and kwargs.get("add_special_tokens", text_kwargs.get("add_special_tokens", True)):
            texts: list[str] = [text] if isinstance(text, str) else list(text or ())
            text, kwargs["add_special_tokens"] = as_prompts(texts, self.tokenizer)
            added = len(text[0]) - len(texts[0])
        outputs = super().__call__(text=text, audio=audio, **kwargs)
        if added:
            _shift_offsets(outputs, added)
        if tensor_type == "np":
            outputs.update({name: value.numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)})
        return outputs

    def prepare_inputs_layout(  # type: ignore[override]
        self,
        images: Any = None,
        text: TextInput | list[TextInput] | None = None,
        videos: Any = None,
        audio: AudioSource | list | None = None,
        **kwargs: Any,
    ) -> tuple[None, list[str] | None, None, list[np.ndarray] | None]:
        """Loads all clips, and wraps text in a list."""
        if images is not None or videos is not None:
            raise ValueError(f"{type(self).__name__} takes text and audio only. Leave out `images` and `videos`.")
        if isinstance(text, str):
            text = [text]
        waveforms = None
        if audio is not None:
            waveforms = self._load(_flatten(audio), _given("sampling_rate", kwargs), _given("limits", kwargs))
        return None, None if text is None else list(text), None, waveforms or None

    def _load(
        self, sources: list[AudioSource], sampling_rate: int | None, limits: AudioLimits | None
    ) -> list[np.ndarray]:
        target = self.feature_extractor.sampling_rate
        waveforms = []
        for index, source in enumerate(sources):
            try:
                waveforms.append(load_audio(source, sampling_rate, target_sampling_rate=target, limits=limits))
            except (ValueError, LimitError) as error:
                kind = LimitError if isinstance(error, LimitError) else ValueError
                raise kind(f"Clip {index} of {len(sources)}: {error}") from error
        return waveforms

    def _check_rows(self, text: list[str], audio: Any) -> None:
        """Checks, if there is one list of clips per prompt, that each prompt has one placeholder per clip."""
        if not isinstance(audio, (list, tuple)) or not audio or not all(is_list_of_clips(row) for row in audio):
            return
        if len(audio) != len(text):
            raise ValueError(f"Got {len(audio)} lists of clips for {len(text)} prompts; pass one list per prompt.")
        for row, (sample, clips) in enumerate(zip(text, audio, strict=True)):
            if sample.count(self.audio_token) != len(clips):
                raise ValueError(
                    f"Prompt {row} has {sample.count(self.audio_token)} {self.audio_token} placeholders, but "
                    f"{len(clips)} clips were given for it."
                )

    def _process_audio(  # type: ignore[override]
        self, audio: list[np.ndarray], **kwargs: Any
    ) -> tuple[BatchFeature, list[str]]:
        chunk_samples = self.feature_extractor.n_samples
        audio = [self._truncate(clip, index) for index, clip in enumerate(audio)]
        chunks_per_clip = [self.num_chunks(len(clip)) for clip in audio]
        chunks = [
            clip[start : start + chunk_samples] for clip in audio for start in range(0, len(clip), chunk_samples)
        ]

        inputs: Any = self._speech_features(chunks)
        if self.sound_feature_extractor is not None:
            sound = self._sound_features(self.sound_feature_extractor, chunks)
            inputs["sound_input_values"], inputs["sound_attention_mask"] = sound

        num_frames = num_encoder_frames(inputs["input_features_mask"].sum(-1))
        inputs["num_audio_tokens"] = [self.num_audio_tokens(clip) for clip in num_frames.split(chunks_per_clip)]
        return inputs, [self.replace_audio_token(inputs, audio_idx=index) for index in range(len(audio))]

    def num_chunks(self, num_samples: int) -> int:
        """Number of chunks of at most 30 s that a clip of `num_samples` samples is split into."""
        return -(-num_samples // self.feature_extractor.n_samples)

    def num_audio_tokens(self, num_frames: torch.Tensor) -> int:
        """Number of audio tokens of a clip whose chunks contain `num_frames` frames of 20 ms, of shape `(chunks,)`."""
        return int(self._num_windows(num_frames).sum()) * self.num_queries

    def num_frames_needed(self, num_frames: torch.Tensor) -> int:
        """
        Number of frames of 20 ms covered by a clip's windows, in the chunk with the most.

        Args:
            num_frames (`torch.LongTensor` of shape `(chunks,)`): Frames of 20 ms that each chunk of the clip contains.
        """
        return int(self._window_reach(num_frames).max())

    def _window_reach(self, num_frames: torch.Tensor) -> torch.Tensor:
        return window_reach(self._num_windows(num_frames), self.window_length, self.window_stride)

    def _num_windows(self, num_frames: torch.Tensor) -> torch.Tensor:
        return num_audio_windows(num_frames, self.window_length, self.window_stride, self._max_frames)

    @property
    def _max_frames(self) -> int:
        return self.feature_extractor.nb_max_frames // 2

    def _truncate(self, clip: np.ndarray, index: int) -> np.ndarray:
        sampling_rate = self.feature_extractor.sampling_rate
        seconds = len(clip) / sampling_rate
        if self.max_audio_seconds is None or seconds <= self.max_audio_seconds:
            return clip
        logger.warning(
            f"Clip {index} lasts {seconds:.2f} s: its last {seconds - self.max_audio_seconds:.2f} s are dropped, because "
            f"`max_audio_seconds` is {self.max_audio_seconds:g}."
        )
        return clip[: max(1, round(self.max_audio_seconds * sampling_rate))]

    def _speech_features(self, chunks: list[np.ndarray]) -> BatchFeature:
        """
        `input_features` and `input_features_mask`. Chunks are extracted one by one, each padded to the length at which it is
        encoded, so that the features of a chunk do not depend on the other chunks. The extractor needs about twenty times
        the memory of the features, for a clip of 30 minutes more than 1 GB if it got all chunks at once, which is slower too.
        """
        extractor = self.feature_extractor
        # Features are made on the CPU, even if another device is torch's default.
        num_mel_frames = torch.tensor([-(-len(chunk) // extractor.hop_length) for chunk in chunks], device="cpu")
        num_needed = self._window_reach(num_encoder_frames(num_mel_frames))
        lengths = (2 * encoded_frames(num_needed, self.speech_chunk_multiple, self._max_frames)).tolist()
        features = torch.zeros(len(chunks), extractor.feature_size, max(lengths), device="cpu")
        mask = torch.zeros(len(chunks), max(lengths), dtype=torch.int32, device="cpu")
        for row, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
            extracted = extractor(
                chunk,
                sampling_rate=extractor.sampling_rate,
                padding="max_length",
                max_length=length * extractor.hop_length,
                return_attention_mask=True,
                return_tensors="pt",
            )
            features[row, :, :length] = extracted["input_features"][0]
            mask[row, :length] = extracted["attention_mask"][0]
        return BatchFeature({"input_features": features, "input_features_mask": mask})

    def _sound_features(
        self, extractor: BeatsFeatureExtractor, chunks: list[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.group_sound_by_length:
            output = extractor(chunks, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            return output["input_values"], output["attention_mask"]
        features = [
            extractor(chunk, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"][0]
            for chunk in chunks
        ]
        lengths = torch.tensor([len(feature) for feature in features], device="cpu")
        values = torch.nn.utils.rnn.pad_sequence(features, batch_first=True, padding_value=extractor.padding_value)
        return values, (torch.arange(values.shape[1], device="cpu") < lengths[:, None]).long()

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs: Any) -> str:
        return self.audio_token * audio_inputs["num_audio_tokens"][audio_idx]

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, "input_features", "input_features_mask"]
        if self.sound_feature_extractor is not None:
            names += ["sound_input_values", "sound_attention_mask"]
        return names

    @property
    def unused_input_names(self) -> list[str]:
        """Outputs of the sub-processors that `forward` does not take."""
        return ["num_audio_tokens"]

    def _resolve_audio_loading_params(self, processor_kwargs: dict) -> dict:
        """`sampling_rate` is the rate of plain arrays; all clips are resampled to the feature extractor's rate."""
        return {
            "sampling_rate": self.feature_extractor.sampling_rate,
            "source_sampling_rate": _given("sampling_rate", processor_kwargs),
            "limits": _given("limits", processor_kwargs),
        }

    def _multimodal_inputs_from_conversations(
        self,
        conversations: list[list[dict[str, Any]]],
        audio_loading_params: dict,
        load_audio_from_video: bool = False,
    ) -> tuple[list, list, list, dict]:
        parts = [
            part
            for conversation in conversations
            for message in conversation
            if not isinstance(message.get("content") or "", str)
            for part in message["content"]
            if part["type"] == "audio"
        ]
        sources = [clip for clip in map(clip_of, parts) if clip is not None]
        audio = self._load(sources, audio_loading_params["source_sampling_rate"], audio_loading_params["limits"])
        return [], [], audio, {}

    def _adjust_assistant_masks_indices(
        self, processed_dict: dict[str, Any], generation_indices: list[list[int]]
    ) -> dict[str, Any]:
        processed = super()._adjust_assistant_masks_indices(processed_dict, generation_indices)
        processed["assistant_masks"] = torch.tensor(processed["assistant_masks"])
        return processed


def _as_sound_feature_extractor(value: Any) -> BeatsFeatureExtractor | None:
    """The feature extractor, or that of a saved processor, whose settings come from a file."""
    if value is None or isinstance(value, BeatsFeatureExtractor):
        return value
    if not isinstance(value, dict):
        raise ValueError(
            f"`sound_feature_extractor` must be a BeatsFeatureExtractor or a dictionary of its settings, got {value!r}."
        )
    # The base class would make an attribute of any other item, which could replace a method.
    known = BeatsFeatureExtractor().to_dict()
    unknown = [name for name in value if name not in known]
    if unknown:
        raise ValueError(
            f"`sound_feature_extractor` has the items {unknown}, which are not settings of a BeatsFeatureExtractor; they "
            f"are {', '.join(known)}."
        )
    return BeatsFeatureExtractor(**value)


def _given(name: str, kwargs: dict[str, Any]) -> Any:
    """An argument for audio, passed directly or in `audio_kwargs`; `None` if it was not passed."""
    return kwargs.get(name, kwargs.get("audio_kwargs", {}).get(name))


def _is_text(text: Any) -> bool:
    return isinstance(text, str) or (
        isinstance(text, (list, tuple)) and bool(text) and all(isinstance(sample, str) for sample in text)
    )


def _shift_offsets(outputs: BatchFeature, num_characters: int) -> None:
    """Makes the offsets in the text those of the text without its first characters, which were added to it."""
    if "offset_mapping" in outputs:
        outputs["offset_mapping"] = (torch.as_tensor(outputs["offset_mapping"]) - num_characters).clamp(min=0)
    for replacements in outputs.get("text_replacement_offsets", ()):
        for replacement in replacements:
            for name in ("span", "new_span"):
                replacement[name] = tuple(position - num_characters for position in replacement[name])


def _flatten(audio: Any) -> list[Any]:
    if not is_list_of_clips(audio):
        return [audio]
    return [clip for item in audio for clip in (item if is_list_of_clips(item) else [item])]


__all__ = ["AudioListenProcessor"]
