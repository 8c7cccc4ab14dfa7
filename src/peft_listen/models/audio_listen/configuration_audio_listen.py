"""AudioListen model configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, WhisperConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from ..beats.configuration_beats import BeatsConfig
from ..model_type import check_found, check_model_type
from .audio_tokens import CHUNK_SECONDS, check_chunk_multiple
from .references import check_references


# SALMONN's Q-Former: BERT-base width, two layers, both with cross-attention. Without dropout, which SALMONN has: the query
# that selects prompts is computed from the Q-Former's outputs, and dropout changes it more than another clip does.
QFORMER_DEFAULTS = {
    "num_hidden_layers": 2,
    "cross_attention_frequency": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@strict
class AudioListenConfig(PreTrainedConfig):
    r"""
    Configuration of an [`AudioListenForCausalLM`]: a text LLM with a Whisper encoder and, optionally, a BEATs encoder,
    connected by a window-level Q-Former as in SALMONN (arXiv 2310.13289) and LiSTEN (arXiv 2505.18517).

    Args:
        speech_config (`WhisperConfig` or `dict`, *optional*):
            Whisper, whose encoder is the speech encoder. Defaults to `WhisperConfig()`.
        sound_config ([`BeatsConfig`] or `dict`, *optional*):
            BEATs, the encoder for sounds and music. `None` means no sound encoder.
        qformer_config (`Blip2QFormerConfig` or `dict`, *optional*):
            The Q-Former. In a `dict`, `num_hidden_layers` defaults to 2 and `cross_attention_frequency` to 1, as in
            SALMONN, and both dropout probabilities to 0, unlike in SALMONN (ours): with dropout, the prompts are selected by
            noise in training. `encoder_hidden_size` is always set to the sum of the encoders' widths, and
            `initializer_range` to that of this configuration.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Any causal language model of transformers. Defaults to `LlamaConfig()`.
        audio_token_id (`int`, *optional*):
            Token id of the placeholder that audio embeddings replace.
        num_queries (`int`, *optional*, defaults to 1):
            Number of audio tokens per window.
        window_length (`int`, *optional*, defaults to 17):
            Length of a window in frames of 20 ms.
        window_stride (`int`, *optional*, defaults to 17):
            Frames between the starts of two windows.
        encoder_batch_size (`int`, *optional*, defaults to 8):
            Number of chunks that are encoded at once. Limits the memory that long audio needs.
        speech_chunk_multiple (`int`, *optional*, defaults to 30):
            The speech encoder encodes a chunk as the least multiple of this number of seconds that holds the chunk's
            windows, and as 30 s at most. Whisper itself encodes 30 s, whatever the clip. With a smaller number short clips
            cost less, and their features differ from those of 30 s: the encoder attends to less silence after the clip.
            The number of audio tokens is the same. From 1 to 30; train and use a projector with the same value.
        group_sound_by_length (`bool`, *optional*, defaults to `True`):
            Whether BEATs encodes chunks of equal length together, without padding, so that a clip's features do not
            depend on the other clips of its batch. `False` pads and masks all chunks together as BEATs and SALMONN do;
            padding then changes a clip's features.
        freeze_language_model (`bool`, *optional*, defaults to `True`):
            Whether the language model and its head start frozen, as in SALMONN and LiSTEN, which train only the
            projector and an adapter. The encoders always start frozen.
        initializer_range (`float`, *optional*):
            Standard deviation of the initial weights of the projector and its queries. Defaults to one over the square
            root of the Q-Former's width (ours): with BERT's 0.02, the outputs of a new projector hardly depend on the
            audio.
        tie_word_embeddings (`bool`, *optional*):
            Whether the head shares the weights of the input embeddings. Defaults to the value in `text_config`.
        frozen_references (`dict[str, dict]`, *optional*):
            Sources of the parts that `save_pretrained(..., save_frozen=False)` left out. Keys are `"speech_tower"`,
            `"sound_tower"` and `"language_model"`; a reference has `name_or_path` and may have `revision`, `subfolder`
            and `gguf_file`. Nothing else is allowed, because references are read from files.

    Raises:
        `ValueError`: if a field has an invalid value; the message names it.

    Example:

    ```python
    >>> from peft_listen import AudioListenConfig, AudioListenForCausalLM

    >>> configuration = AudioListenConfig(text_config={"model_type": "qwen2"}, audio_token_id=151646)
    >>> model = AudioListenForCausalLM(configuration)
    ```"""

    model_type = "audio_listen"
    # Outputs that `Trainer` leaves out of its predictions.
    keys_to_ignore_at_inference = ["past_key_values", "cache", "audio_hidden_states"]
    sub_configs_defaults = {
        "speech_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "sound_config": SubConfigSpec(config_class=BeatsConfig, optional=True),
        "qformer_config": SubConfigSpec(
            config_class=AutoConfig, model_type="blip_2_qformer", init_kwargs=QFORMER_DEFAULTS
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    speech_config: Any = None
    sound_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    audio_token_id: int | None = None
    num_queries: int = 1
    window_length: int = 17
    window_stride: int = 17
    encoder_batch_size: int = 8
    speech_chunk_multiple: int = CHUNK_SECONDS
    group_sound_by_length: bool = True
    freeze_language_model: bool = True
    initializer_range: float | None = None
    tie_word_embeddings: bool | None = None
    frozen_references: Any = None

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_found(pretrained_model_name_or_path, config_dict)
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        check_model_type(cls, config_dict)
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.qformer_config, dict):
            self.qformer_config = {**QFORMER_DEFAULTS, **self.qformer_config}
        super().__post_init__(**kwargs)
        self._check_sub_configs()
        sound_size = self.sound_config.hidden_size if self.sound_config is not None else 0
        self.qformer_config.encoder_hidden_size = self.speech_config.hidden_size + sound_size
        if self.initializer_range is None:
            self.initializer_range = self.qformer_config.hidden_size**-0.5
        self.qformer_config.initializer_range = self.initializer_range
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = getattr(self.text_config, "tie_word_embeddings", False)
        self._check_windows()
        check_references(self.frozen_references)

    def _check_sub_configs(self) -> None:
        for name, expected in (("speech_config", WhisperConfig), ("sound_config", BeatsConfig)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, expected):
                raise ValueError(f"`{name}` is a {type(value).__name__}, but only a {expected.__name__} is supported.")
        if getattr(self.qformer_config, "use_qformer_text_input", False):
            raise ValueError(
                "`qformer_config.use_qformer_text_input` is True, but the window-level Q-Former has no text input. Set it "
                "to False."
            )

    def _check_windows(self) -> None:
        for name in ("num_queries", "window_length", "window_stride", "encoder_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        check_chunk_multiple(self.speech_chunk_multiple)
        max_frames = self.speech_config.max_source_positions
        if self.window_length > max_frames:
            raise ValueError(
                f"`window_length` is {self.window_length} frames, but the speech encoder gives {max_frames} frames for "
                "30 s. Use a shorter window."
            )


__all__ = ["AudioListenConfig"]
