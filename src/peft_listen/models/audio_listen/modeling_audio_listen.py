"""AudioListen: a causal language model with audio input."""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME, TransformersKwargs, cached_file
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested

from ...answer_end import find_answer_end, stop_at_answer_end, warn_of_unsupervised_end
from ...chat import AUDIO_TOKEN
from ...folder_saving import replaced_checkpoint
from ...four_bits import keep_backward_pass
from ...hub_connection import hub_connection
from ...lora_beside import load_lora_beside
from ...model_card import WITHOUT_HUB, write_model_card
from ...untouched import check_untouched
from ..beats.modeling_beats import BeatsModel
from ..complete_weights import CompleteWeightsMixin
from .audio_tokens import (
    FRAMES_PER_SECOND,
    add_audio_token,
    check_token_count,
    encoded_frames,
    num_audio_windows,
    num_encoder_frames,
    window_reach,
)
from .chat_template import audio_chat_template, text_template
from .configuration_audio_listen import AudioListenConfig
from .forward_arguments import AUDIO_ARGUMENTS, CACHE, AudioFeatures, LanguageModelKwargs
from .frozen_references import (
    is_referenced,
    load_config,
    load_referenced_parts,
    make_reference,
    reference_frozen_parts,
    resolve_adapter,
)
from .generation_audio_listen import (
    AudioListenGenerationMixin,
    accept_published_values,
    audio_generation_config,
)
from .hub_arguments import FILE_ARGUMENTS, HUB_ARGUMENTS, Source, subset
from .language_head import build_language_head, check_language_model, scale_logits
from .modeling_window_qformer import WindowQFormerProjector
from .parts import LANGUAGE_MODEL, SOUND, SPEECH, embedding_scale, fit_vocabulary, load_tokenizer
from .precision import default_dtype, is_chosen, warn_of_half_precision
from .references import Reference
from .whisper_length import with_length


# Attributes that mark a quantized language model. On the whole model they tell transformers and PEFT to treat it as
# quantized too.
_QUANTIZATION_ATTRIBUTES = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
)


@dataclass
class AudioListenModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    Args:
        audio_hidden_states (`torch.Tensor` of shape `(num_audio_tokens, hidden_size)`, *optional*):
            The embeddings that replaced the audio tokens, in the order of the tokens.
    """

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class AudioListenCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    Args:
        audio_hidden_states (`torch.Tensor` of shape `(num_audio_tokens, hidden_size)`, *optional*):
            The embeddings that replaced the audio tokens, in the order of the tokens.
    """

    audio_hidden_states: torch.Tensor | None = None


class _EncodedChunks(NamedTuple):
    """
    Chunks that were encoded together.

    Args:
        rows (`list[int]`): Their numbers among all chunks.
        num_windows (`list[int]`): Windows of each.
        features ([`AudioFeatures`]): Outputs of both encoders.
        speech (`BaseModelOutput`): The complete output of the speech encoder.
    """

    rows: list[int]
    num_windows: list[int]
    features: AudioFeatures
    speech: BaseModelOutput


class AudioListenPreTrainedModel(CompleteWeightsMixin):
    """Base class of the AudioListen models: initial weights, frozen parameters, and loading."""

    config: AudioListenConfig
    base_model_prefix = "model"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["WindowQFormerProjector"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    # The projector is small and trained. As in SALMONN it is in float32, even if the language model is not.
    _keep_in_fp32_modules_strict = ["multi_modal_projector"]
    # Quantizers skip modules whose whole name matches one of these patterns.
    _keep_in_fp32_modules = [r".*multi_modal_projector"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WindowQFormerProjector):
            init.normal_(module.query_tokens, mean=0.0, std=self.config.qformer_config.initializer_range)

    @classmethod
    def is_custom_code(cls) -> bool:
        # In custom code, transformers skips the initialization of modules without parameters of their own, such as
        # Whisper's encoder, which sets its sinusoidal positions. Skipping is only needed for code that initializes with
        # `torch.nn.init`; this model and its parts use `transformers.initialization`.
        return cls.is_remote_code()

    def freeze(self) -> None:
        """Freezes the encoders, and the language model if `config.freeze_language_model`."""
        for name, parameter in self.named_parameters():
            is_encoder = "speech_tower." in name or "sound_tower." in name
            if is_encoder or (self.config.freeze_language_model and "multi_modal_projector." not in name):
                parameter.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        speech: Source | PreTrainedModel | None = None,
        sound: Source | BeatsModel | None = None,
        llm: Source | PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Loads a checkpoint, with the arguments of [`~transformers.PreTrainedModel.from_pretrained`].

        Parts that `save_pretrained(..., save_frozen=False)` left out are loaded from their saved locations, or from
        `speech`, `sound` and `llm` if these are given. For an adapter, a LoRA adapter in its subfolder `lora`, which was
        trained together with it, is loaded too.

        The data type is that of the checkpoint unless `dtype` is given. A checkpoint in half precision gives a warning on a
        machine without an accelerator, because most CPUs are faster in `dtype=torch.float32`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Hub id or folder of the checkpoint, or of an adapter on one.
            speech, sound, llm (`str`, `os.PathLike` or `PreTrainedModel`, *optional*):
                New locations of parts that were left out, or the parts.
            model_args, kwargs: Other arguments of [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            `OSError`: if the checkpoint, or a part that it refers to, is not found.
            `ValueError`: if weights are missing (the message names them), a reference is malformed, a part differs from
                the one that the checkpoint was saved with, or the checkpoint contains all parts and one is given.
        """
        sources = {SPEECH.name: speech, SOUND.name: sound, LANGUAGE_MODEL.name: llm}
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        adapter = None
        if pretrained_model_name_or_path is not None:
            base, adapter = resolve_adapter(pretrained_model_name_or_path, kwargs)
            config = load_config(base, kwargs)
            if config.frozen_references:
                loaded = cls._from_frozen_references(base, config, sources, kwargs, adapter)
                _load_lora_beside(loaded, adapter, kwargs)
                _warn_of_default_dtype(loaded[0] if isinstance(loaded, tuple) else loaded, dtype)
                return loaded
        if any(source is not None for source in sources.values()):
            raise ValueError(
                f"{pretrained_model_name_or_path} contains all parts: `speech`, `sound` and `llm` cannot replace them. "
                "Build a model from other parts with `AudioListenForCausalLM.from_sub_models_pretrained`."
            )
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(model, AudioListenForCausalLM):
            model._published_generation_config = copy.deepcopy(model.generation_config)
        _load_lora_beside(loaded, adapter, kwargs)
        # Loading replaces the parameters by new ones, which require gradients.
        model.freeze()
        _warn_of_default_dtype(model, dtype)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """
        Saves the model, with the arguments of [`~transformers.PreTrainedModel.save_pretrained`]. An older checkpoint in the
        folder is replaced in one step, so that its configuration never stands beside new weights.
        """
        if os.path.isfile(save_directory):
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        with replaced_checkpoint(save_directory) as temporary:
            super().save_pretrained(temporary, *args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """
        Uploads the model, with the arguments and the result of [`~transformers.PreTrainedModel.push_to_hub`].

        Raises:
            ConnectionError: if the Hub cannot be reached.
        """
        with hub_connection(WITHOUT_HUB):
            return super().push_to_hub(*args, **kwargs)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        # `push_to_hub` writes a card without the `import peft_listen` that loading requires.
        write_model_card(self, Path(working_dir) / "README.md", repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @classmethod
    def _from_frozen_references(
        cls,
        path: Source,
        config: AudioListenConfig,
        sources: dict[str, Any],
        kwargs: dict[str, Any],
        adapter: dict[str, Any] | None,
    ) -> Any:
        """
        Loads a checkpoint that was saved with `save_frozen=False`.

        Args:
            path (`str` or `os.PathLike`): The checkpoint.
            config ([`AudioListenConfig`]): Its configuration.
            sources (`dict`): Sources by the name of the part that replace the saved ones, `None` for the others.
            kwargs (`dict`): Arguments of `from_pretrained`.
            adapter (`dict`, *optional*): Arguments of `load_adapter`.
        """
        raise NotImplementedError


class AudioListenModel(AudioListenPreTrainedModel):
    """
    The audio encoders, the projector and the language model without its head.

    The encoders start frozen. As long as none of its parameters requires gradients, an encoder runs under
    `torch.no_grad()` and stays in evaluation mode, also after `train()`.

    Args:
        config ([`AudioListenConfig`]): Configuration of all parts.
    """

    def __init__(self, config: AudioListenConfig) -> None:
        super().__init__(config)
        for sub_config in (config.sound_config, config.qformer_config):
            if sub_config is not None and is_flash_attention_requested(sub_config):
                # Flash attention supports neither BEATs' position bias nor the Q-Former's float32.
                sub_config._attn_implementation = "sdpa"
        self.speech_tower = WhisperEncoder(config.speech_config)
        self.sound_tower = BeatsModel(config.sound_config) if config.sound_config is not None else None
        self.multi_modal_projector = WindowQFormerProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.freeze()
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._set_frozen_towers_to_eval()
        if mode:
            keep_backward_pass(self.language_model)
        return self

    def _set_frozen_towers_to_eval(self) -> None:
        for tower in (self.speech_tower, self.sound_tower):
            if tower is not None and tower.training != (mode := self.training and not _is_frozen(tower)):
                tower.train(mode)

    def get_encoder_features(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        sound_input_values: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
    ) -> AudioFeatures:
        """
        Runs only the encoders. Their outputs can be stored and passed to `forward` in place of the audio:
        `model(input_ids, **features._asdict())` gives the same result.

        Args:
            input_features (`torch.Tensor` of shape `(chunks, mel_bins, mel_frames)`):
                Log-mel spectrograms of chunks of at most 30 s, from [`AudioListenProcessor`]: 3000 frames of 10 ms, or, with
                a `config.speech_chunk_multiple` below 30, also fewer, as many as the longest chunk is encoded as.
            input_features_mask (`torch.LongTensor` of shape `(chunks, mel_frames)`, *optional*):
                1 for mel frames that contain audio, 0 for padding. Defaults to all ones.
            sound_input_values (`torch.Tensor` of shape `(chunks, sound_frames, 128)`, *optional*):
                Filter bank features of the same chunks; required if and only if the model has a sound encoder.
            sound_attention_mask (`torch.LongTensor` of shape `(chunks, sound_frames)`, *optional*):
                1 for frames of `sound_input_values` that contain audio, 0 for padding. Defaults to all ones.

        Returns:
            [`AudioFeatures`]: the encoder outputs, trimmed to the frames that the Q-Former's windows cover.

        Raises:
            `ValueError`: if an input has the wrong size, or the sound encoder's input is missing or unexpected.
        """
        order: list[int] = []
        speech: list[torch.Tensor] = []
        sound: list[torch.Tensor] = []
        mask: list[torch.Tensor] = []
        for chunks in self._encode(input_features, input_features_mask, sound_input_values, sound_attention_mask):
            order += chunks.rows
            speech += chunks.features.speech_features
            sound += () if chunks.features.sound_features is None else chunks.features.sound_features
            mask += chunks.features.audio_features_mask
        return AudioFeatures(
            _stack(_in_order(order, speech)),
            _stack(_in_order(order, sound)) if sound else None,
            _stack(_in_order(order, mask)),
        )

    def _encode(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None,
        sound_input_values: torch.Tensor | None,
        sound_attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Iterator[_EncodedChunks]:
        """
        Encodes chunks of the same length together, `config.encoder_batch_size` at a time. The speech encoder receives
        `kwargs`.
        """
        self._check_input_features(input_features)
        if (sound_input_values is None) != (self.sound_tower is None):
            raise ValueError(
                "The model has a sound encoder, but `sound_input_values` is missing. Use the processor of this model."
                if sound_input_values is None
                else "`sound_input_values` is given, but the model has no sound encoder. Use the processor of this model."
            )
        if input_features_mask is None:
            input_features_mask = torch.ones_like(input_features[:, 0], dtype=torch.long)
        # `requires_grad` may have changed since `train()`.
        self._set_frozen_towers_to_eval()
        num_frames = num_encoder_frames(input_features_mask.sum(-1))
        # The numbers of frames decide the shapes of what follows. They are read from the device once, for all chunks.
        num_windows = self._num_windows(num_frames.cpu())
        reach = window_reach(num_windows, self.config.window_length, self.config.window_stride)
        encoded = self._encoded_frames(reach, input_features.shape[-1])
        windows, needed = num_windows.tolist(), reach.tolist()
        sound_lengths = None
        if sound_attention_mask is not None and self.config.group_sound_by_length:
            sound_lengths, sound_attention_mask = sound_attention_mask.sum(-1).tolist(), None
        for rows in _batches_of_equal(encoded, self.config.encoder_batch_size):
            num_needed, num_encoded = max(needed[row] for row in rows), encoded[rows[0]]
            # Rows are stacked, because an index of row numbers would be copied to the device.
            mel = torch.stack([input_features[row, :, : 2 * num_encoded] for row in rows])
            tower: Any = self.speech_tower
            if num_encoded != self.config.speech_config.max_source_positions:
                tower = with_length(tower, num_encoded)
            with _grad_mode(tower):
                speech = tower(mel.to(self.speech_tower.dtype), **kwargs)
            sound = None
            if self.sound_tower is not None and sound_input_values is not None:
                values = [sound_input_values[row] for row in rows]
                mask = (
                    None if sound_attention_mask is None else torch.stack([sound_attention_mask[row] for row in rows])
                )
                lengths = None if sound_lengths is None else [sound_lengths[row] for row in rows]
                sound = self._encode_sound(self.sound_tower, values, mask, lengths)[:, :num_needed]
            counts = torch.stack([num_frames[row] for row in rows])
            frame_mask = torch.arange(num_needed, device=counts.device) < counts[:, None]
            features = AudioFeatures(speech.last_hidden_state[:, :num_needed], sound, frame_mask.long())
            yield _EncodedChunks(rows, [windows[row] for row in rows], features, speech)

    def _check_input_features(self, input_features: torch.Tensor) -> None:
        mel_bins, full = self.config.speech_config.num_mel_bins, 2 * self.config.speech_config.max_source_positions
        step = 2 * FRAMES_PER_SECOND * self.config.speech_chunk_multiple
        shape = tuple(input_features.shape)
        is_shorter = len(shape) == 3 and 0 < shape[2] < full and shape[2] % step == 0
        if shape[1:] != (mel_bins, full) and not (is_shorter and shape[1] == mel_bins):
            or_fewer = f", or fewer frames in multiples of {step}" if step < full else ""
            raise ValueError(
                f"`input_features` has the shape {shape}, but this speech encoder expects (chunks, mel bins, frames) = "
                f"(chunks, {mel_bins}, {full}){or_fewer}. Use the processor of this model, with the same "
                "`speech_chunk_multiple`."
            )

    def _encoded_frames(self, num_needed: torch.Tensor, num_mel_frames: int) -> list[int]:
        """Frames as which each chunk is encoded, from those that its windows cover."""
        multiple, max_frames = self.config.speech_chunk_multiple, self.config.speech_config.max_source_positions
        encoded = encoded_frames(num_needed, multiple, max_frames).tolist()
        if encoded and 2 * max(encoded) > num_mel_frames:
            raise ValueError(
                f"`input_features` has {num_mel_frames} mel frames, but the windows of a chunk need {2 * max(encoded)} at "
                f"`speech_chunk_multiple` = {multiple}. Use the processor of this model, and pass the "
                "`input_features_mask` that it returns."
            )
        return encoded

    def _encode_sound(
        self,
        tower: BeatsModel,
        input_values: list[torch.Tensor],
        attention_mask: torch.Tensor | None,
        lengths: list[int] | None,
    ) -> torch.Tensor:
        """Encodes chunks of `(sound_frames, 128)`, those of equal length together if their `lengths` are given."""
        with _grad_mode(tower):
            if lengths is None:
                return tower(
                    torch.stack(input_values).to(tower.dtype), attention_mask=attention_mask
                ).last_hidden_state
            features = list(input_values)
            for rows in _batches_of_equal(lengths, len(lengths)):
                group = torch.stack([input_values[row][: lengths[row]] for row in rows]).to(tower.dtype)
                for row, output in zip(rows, tower(group).last_hidden_state, strict=True):
                    features[row] = output
            return nn.utils.rnn.pad_sequence(features, batch_first=True)

    def _num_windows(self, num_frames: torch.Tensor) -> torch.Tensor:
        max_frames = self.config.speech_config.max_source_positions
        return num_audio_windows(num_frames, self.config.window_length, self.config.window_stride, max_frames)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        sound_input_values: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Encodes audio and projects it into the embedding space of the language model.

        Accepts either chunks of audio (the first four arguments, see [`~AudioListenModel.get_encoder_features`]) or
        encoder outputs (the last three, see [`AudioFeatures`]).

        Args:
            kwargs: `output_hidden_states` and `output_attentions` request those of the speech encoder. They are stored
                for all chunks, so memory grows with the length of the audio.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` of shape `(num_audio_tokens, hidden_size)` has one embedding per
            audio token, chunk after chunk. On request, `hidden_states` of shape `(chunks, frames, speech_size)` and
            `attentions` of shape `(chunks, heads, frames, frames)` have one tensor per layer of the speech encoder, with
            zeros beyond the length at which a chunk is encoded; the last hidden state is the encoder's output.

        Raises:
            `ValueError`: if both kinds of input or neither are given, or an input has the wrong size.
        """
        given = {
            "input_features": input_features,
            "speech_features": speech_features,
            "sound_features": sound_features,
            "audio_features_mask": audio_features_mask,
        }
        if (features := _given_features(given)) is not None:
            return BaseModelOutputWithPooling(pooler_output=self._project(features))
        assert input_features is not None
        order: list[int] = []
        projected: list[torch.Tensor] = []
        hidden_states: list[list[torch.Tensor]] = []
        attentions: list[list[torch.Tensor]] = []
        for chunks in self._encode(
            input_features, input_features_mask, sound_input_values, sound_attention_mask, **kwargs
        ):
            order += chunks.rows
            tokens_per_chunk = [number * self.config.num_queries for number in chunks.num_windows]
            projected += self._project(chunks.features).split(tokens_per_chunk)
            _append_layers(hidden_states, chunks.speech.hidden_states)
            _append_layers(attentions, chunks.speech.attentions)
        return BaseModelOutputWithPooling(
            pooler_output=torch.cat(_in_order(order, projected)),
            hidden_states=tuple(_stack(_in_order(order, layer)) for layer in hidden_states) or None,
            attentions=tuple(_stack(_in_order(order, layer)) for layer in attentions) or None,
        )

    def _project(self, features: AudioFeatures) -> torch.Tensor:
        speech, sound, mask = features
        _check_size("speech_features", speech, self.config.speech_config.hidden_size)
        if sound is not None and self.config.sound_config is not None:
            _check_size("sound_features", sound, self.config.sound_config.hidden_size)
        return self.multi_modal_projector(
            speech,
            sound,
            sound_mask=None if sound is None else (sound != 0).any(-1),
            num_windows=self._num_windows(mask.sum(-1)),
        )

    def _projector_must_run(self) -> bool:
        """Whether other processes, whose batches have clips, wait for the projector of this one, whose batch has none: in the
        backward pass, in which they reduce its gradients together, or in the forward pass, if its parameters are sharded."""
        if torch.compiler.is_compiling() or not torch.distributed.is_available():
            return False
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return False
        parameters = list(self.multi_modal_projector.parameters())
        is_trained = self.training and torch.is_grad_enabled() and any(each.requires_grad for each in parameters)
        return is_trained or any(hasattr(each, "device_mesh") or hasattr(each, "ds_id") for each in parameters)

    def _empty_projection(self) -> torch.Tensor:
        """0, which depends on all parameters of the projector, with gradients of 0."""
        config, window = self.config, self.config.window_length
        device = next(self.multi_modal_projector.parameters()).device
        speech = torch.zeros(1, window, config.speech_config.hidden_size, device=device)
        sound = None
        if config.sound_config is not None:
            sound = torch.zeros(1, window, config.sound_config.hidden_size, device=device)
        # The sum over an empty slice is 0 even if a parameter is NaN.
        return self.multi_modal_projector(speech, sound)[:0].sum()

    def _real_frames(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The encoders' frames of a batch without padding, of shape `(num_frames, speech_size)` and `(num_sound_frames,
        sound_size)`; `None` if the batch has no audio or the model has no such encoder."""
        given = {name: batch[name] for name in AUDIO_ARGUMENTS if batch.get(name) is not None}
        if not given:
            return None, None
        if (features := _given_features(given)) is None:
            device = next(self.speech_tower.parameters()).device
            features = self.get_encoder_features(**{name: value.to(device) for name, value in given.items()})
        speech, sound, mask = features
        return speech[mask.bool()], None if sound is None else sound[(sound != 0).any(-1)]

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, audio_features: torch.Tensor
    ) -> torch.BoolTensor:
        """
        Marks the audio tokens, found in `input_ids` or, if they are `None`, in `inputs_embeds`.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Token ids.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Their embeddings.
            audio_features (`torch.Tensor` of shape `(num_audio_tokens, hidden_size)`): Embeddings of the audio.

        Returns:
            `torch.BoolTensor` of the shape of `inputs_embeds`.

        Raises:
            `ValueError`: if the number of audio tokens differs from that of `audio_features`, or the widths differ; the
                message names both numbers.
        """
        if self.config.audio_token_id is None:
            raise ValueError(
                "Audio was given, but `config.audio_token_id` is not set. Set it to the id of the tokenizer's audio token."
            )
        if input_ids is None:
            audio_token = torch.tensor(self.config.audio_token_id, device=inputs_embeds.device)
            is_audio = (inputs_embeds == self.get_input_embeddings()(audio_token)).all(-1)
        else:
            is_audio = (input_ids == self.config.audio_token_id).to(inputs_embeds.device)
        check_token_count(int(is_audio.sum()), len(audio_features))
        if audio_features.shape[-1] != inputs_embeds.shape[-1]:
            raise ValueError(
                f"The audio embeddings are {audio_features.shape[-1]} wide, but those of this language model "
                f"{inputs_embeds.shape[-1]}. They were computed by another model. An assistant model must have the same "
                "width, or be a text-only language model."
            )
        return is_audio.unsqueeze(-1).expand_as(inputs_embeds)

    def _embed(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache: Cache | None = None,
        **audio: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        The input of the language model.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: the embeddings of text and audio, `(batch_size, sequence_length,
            hidden_size)`, and those of the audio alone, `(num_audio_tokens, hidden_size)`, if there is any.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        audio_embeds = None
        if mm_encoder_outputs is not None and "audio" in mm_encoder_outputs:
            audio_embeds = mm_encoder_outputs["audio"]["pooler_output"].flatten(0, -2)
        elif audio.get("input_features") is not None or audio.get("speech_features") is not None:
            audio_embeds = self.get_audio_features(**audio, return_dict=True).pooler_output
        if audio_embeds is not None:
            is_audio = self.get_placeholder_mask(input_ids, inputs_embeds, audio_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(
                is_audio, audio_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
            )
        elif input_ids is not None and self.config.audio_token_id is not None and not torch.compiler.is_compiling():
            if cache is None or cache.get_seq_length() == 0:
                check_token_count(int((input_ids == self.config.audio_token_id).sum()), 0)
        return inputs_embeds, audio_embeds

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        sound_input_values: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[LanguageModelKwargs],
    ) -> tuple | AudioListenModelOutputWithPast:
        """See [`AudioListenForCausalLM.forward`] for the arguments."""
        cache = past_key_values if cache is None else cache
        inputs_embeds, audio_embeds = self._embed(
            input_ids,
            inputs_embeds,
            mm_encoder_outputs,
            cache,
            input_features=input_features,
            input_features_mask=input_features_mask,
            sound_input_values=sound_input_values,
            sound_attention_mask=sound_attention_mask,
            speech_features=speech_features,
            sound_features=sound_features,
            audio_features_mask=audio_features_mask,
        )
        if audio_embeds is None and (cache is None or cache.get_seq_length() == 0) and self._projector_must_run():
            inputs_embeds = inputs_embeds + self._empty_projection().to(inputs_embeds)
        if use_cache is None and self.training and getattr(self.language_model, "gradient_checkpointing", False):
            # Otherwise the language model warns that it turns its default off.
            use_cache = False
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        return AudioListenModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_embeds,
            **{CACHE: getattr(outputs, CACHE)},
        )

    @classmethod
    def _from_frozen_references(
        cls,
        path: Source,
        config: AudioListenConfig,
        sources: dict[str, Any],
        kwargs: dict[str, Any],
        adapter: dict[str, Any] | None,
    ) -> Any:
        # The names of the weights in the checkpoint are those of the model with its head.
        loaded = AudioListenForCausalLM._from_frozen_references(path, config, sources, kwargs, adapter)
        return (loaded[0].model, loaded[1]) if isinstance(loaded, tuple) else loaded.model


class AudioListenForCausalLM(AudioListenPreTrainedModel, AudioListenGenerationMixin):
    """
    A causal language model with audio input: [`AudioListenModel`] with the language model's head.

    Encoders, windows and Q-Former are those of SALMONN (arXiv 2310.13289), which LiSTEN (arXiv 2505.18517) builds on. Two
    things differ from SALMONN: the number of audio tokens depends on the length of a clip, where SALMONN always uses the
    88 tokens of 30 s; and the embeddings of a clip do not depend on the other clips of its batch
    (`config.group_sound_by_length`).

    Args:
        config ([`AudioListenConfig`]): Configuration of all parts.

    Raises:
        `ValueError`: if `config.text_config` is not the configuration of a text-only causal language model with a linear
            head.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: AudioListenConfig) -> None:
        super().__init__(config)
        self.lm_head = build_language_head(config.text_config)
        self.model = AudioListenModel(config)
        embeddings = self.model.get_input_embeddings()
        for name, module in self.model.named_modules():
            if module is embeddings:
                self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        # Where each part was loaded from, for `save_pretrained(..., save_frozen=False)`.
        self.frozen_references: dict[str, Reference] = {}
        # The generation configuration as it was loaded, whose values may be saved again.
        self._published_generation_config: GenerationConfig | None = None
        # The ends of answers are compared in the first training step only, since this reads the labels from the device.
        self._has_seen_labels = False
        self.post_init()
        self.freeze()

    def get_audio_features(self, *args: Any, **kwargs: Any) -> tuple | BaseModelOutputWithPooling:
        """See [`AudioListenModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def get_encoder_features(self, *args: Any, **kwargs: Any) -> AudioFeatures:
        """See [`AudioListenModel.get_encoder_features`]."""
        return self.model.get_encoder_features(*args, **kwargs)

    @torch.no_grad()
    def prompt_embeds(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **audio: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """
        What the language model gets in `generate`: the embeddings of text and audio and, with an active LiSTEN adapter, of
        the selected prompts before them. The untouched language model generates the same tokens from them, here or in
        another program:

        ```python
        llm = AutoModelForCausalLM.from_pretrained(llm_name)
        llm.generate(**model.prompt_embeds(**inputs), max_new_tokens=20)
        ```

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids, with one audio token per audio embedding.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embeddings in place of `input_ids`.
            audio: The audio arguments of `forward`. With a LiSTEN adapter,
                `listen_query_mask` is accepted too.

        Returns:
            `dict[str, torch.Tensor]`: `inputs_embeds`, `(batch_size, k + sequence_length, hidden_size)` for k prompts, in the
            data type of the language model, and `attention_mask`, `(batch_size, k + sequence_length)`, with the padding of
            the input.

        Raises:
            ValueError: if an active adapter changes the language model itself (LoRA, `modules_to_save`, or the
                `value_layers` of a LiSTEN adapter), or for invalid inputs.
        """
        check_untouched(self.model.language_model, self.lm_head)
        embeds, _ = self.model._embed(input_ids, inputs_embeds, **audio)
        if attention_mask is None:
            attention_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return {"inputs_embeds": embeds, "attention_mask": attention_mask}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        sound_input_values: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[LanguageModelKwargs],
    ) -> tuple | AudioListenCausalLMOutputWithPast:
        """
        Clips are split into chunks of at most 30 s. The first axis of the audio arguments runs over the chunks of all
        clips of the batch, in the order of their tokens in `input_ids`.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids, with one audio token per audio embedding.
            input_features (`torch.Tensor` of shape `(chunks, mel_bins, mel_frames)`, *optional*):
                Log-mel spectrogram of each chunk for the speech encoder: 3000 frames, or fewer with a
                `config.speech_chunk_multiple` below 30.
            input_features_mask (`torch.LongTensor` of shape `(chunks, mel_frames)`, *optional*):
                1 for mel frames that contain audio, 0 for padding.
            sound_input_values (`torch.Tensor` of shape `(chunks, sound_frames, 128)`, *optional*):
                Filter bank features of each chunk for the sound encoder.
            sound_attention_mask (`torch.LongTensor` of shape `(chunks, sound_frames)`, *optional*):
                1 for frames of `sound_input_values` that contain audio, 0 for padding.
            speech_features, sound_features, audio_features_mask (`torch.Tensor`, *optional*):
                Encoder outputs ([`AudioFeatures`]), in place of the four arguments above.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions of the tokens.
            past_key_values (`Cache`, *optional*):
                Keys and values of earlier positions.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embeddings in place of `input_ids`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids to predict, -100 at positions without a loss.
            mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`, *optional*):
                Under `"audio"` the output of `get_audio_features`, in place of the audio arguments.
            use_cache (`bool`, *optional*):
                Whether to return the cache.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions, or indices of positions, to compute logits for. 0 means all positions. It has
                no effect in an evaluation (`labels` are given, and the model is in evaluation mode without gradients):
                `Trainer` compares logits with labels position by position.
            cache (`Cache`, *optional*):
                The name of `past_key_values` in transformers 5.24 and later.
            kwargs ([`LanguageModelKwargs`]): Other arguments of the language model, such as `output_hidden_states`.

        Returns:
            [`AudioListenCausalLMOutputWithPast`]

        Raises:
            `ValueError`: if the numbers of audio tokens and audio embeddings differ (the message names both), an input has
                the wrong size, or arguments exclude one another.

        Example:

        ```python
        >>> from peft_listen import AudioListenForCausalLM, AudioListenProcessor

        >>> processor = AudioListenProcessor.from_pretrained("path/to/model")
        >>> model = AudioListenForCausalLM.from_pretrained("path/to/model")
        >>> conversation = [
        ...     {
        ...         "role": "user",
        ...         "content": [
        ...             {"type": "audio", "path": "speech.wav"},
        ...             {"type": "text", "text": "What is said?"},
        ...         ],
        ...     }
        ... ]
        >>> inputs = processor.apply_chat_template(
        ...     conversation, add_generation_prompt=True, tokenize=True, return_dict=True
        ... )
        >>> output_ids = model.generate(**inputs, max_new_tokens=32)
        >>> processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            sound_input_values=sound_input_values,
            sound_attention_mask=sound_attention_mask,
            speech_features=speech_features,
            sound_features=sound_features,
            audio_features_mask=audio_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        if labels is not None and not self.training and not torch.is_grad_enabled():
            # An evaluation: `Trainer` compares logits and labels position by position.
            logits_to_keep = 0
        # Contiguous, because a linear layer copies its weights for every row of an input that is not.
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep).contiguous()
        logits = scale_logits(self.lm_head(hidden_states), self.config.text_config)
        loss = None
        if labels is not None:
            if self.training and not self._has_seen_labels:
                self._has_seen_labels = True
                warn_of_unsupervised_end(labels, self.generation_config)
            vocab_size = self.config.text_config.vocab_size
            shift_labels: Any = kwargs.get("shift_labels")
            supervised = logits if shift_labels is None else logits[:, -shift_labels.shape[1] :].contiguous()
            loss = self.loss_function(logits=supervised, labels=labels, vocab_size=vocab_size, **kwargs)
        return AudioListenCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            **{CACHE: getattr(outputs, CACHE)},
        )

    @torch.no_grad()
    def init_projector_from(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """
        Prepares a new projector for the audio that it will be trained on: its first layers are set so that over these clips
        each channel of the encoders' frames has the mean 0 and the standard deviation 1, amplified at most tenfold (not part
        of SALMONN). Call it before an adapter is attached; a few hundred clips are enough, of all tasks.

        In the demo, it raises the accuracy on voices that were not trained on; see `docs/method.md`.

        Args:
            batches (`Iterable[Mapping[str, Any]]`):
                Outputs of the processor, of [`AudioListenCollator`] or of [`FeatureCache`], of which only the audio
                arguments of `forward` are read. Batches without audio are skipped.

        Raises:
            `ValueError`: if the projector is not new or already that of an adapter, there is no audio, or frames are not
                finite. The projector is unchanged then.

        ```python
        >>> model.init_projector_from(collator([row]) for row in rows[:: 1 + len(rows) // 256])
        ```"""
        projector = self.model.multi_modal_projector
        if not isinstance(projector, WindowQFormerProjector):
            raise ValueError(
                f"The projector is a {type(projector).__name__}: an adapter has a copy of it already. Call "
                "`init_projector_from` before `get_peft_model`."
            )
        if not projector.is_new:
            raise ValueError(
                "The projector was trained or prepared before, and what it has learned would be lost. Leave out "
                "`init_projector_from`, which is for a new projector."
            )
        projector.standardize(self.model._real_frames(batch) for batch in batches)

    @classmethod
    def from_sub_models_pretrained(
        cls,
        *,
        speech: Source | PreTrainedModel,
        llm: Source | PreTrainedModel,
        sound: Source | BeatsModel | None = None,
        tokenizer: Source | PreTrainedTokenizerBase | None = None,
        audio_token: str = AUDIO_TOKEN,
        audio_scale: float = 1.0,
        dtype: torch.dtype | str | None = None,
        speech_kwargs: dict[str, Any] | None = None,
        sound_kwargs: dict[str, Any] | None = None,
        llm_kwargs: dict[str, Any] | None = None,
        **config_kwargs: Any,
    ) -> Self:
        """
        Builds the model from published parts and a new projector.

        Args:
            speech (`str`, `os.PathLike` or `PreTrainedModel`):
                Hub id or folder of a Whisper checkpoint, or a Whisper model. Only its encoder is used.
            llm (`str`, `os.PathLike` or `PreTrainedModel`):
                Hub id or folder of a causal language model, or the model. Its vocabulary is enlarged if it has no row
                for the audio token.
            sound (`str`, `os.PathLike` or [`BeatsModel`], *optional*):
                Folder of a BEATs checkpoint in transformers' format, an original BEATs file, or a BEATs model.
            tokenizer (`str`, `os.PathLike` or `PreTrainedTokenizerBase`, *optional*):
                The language model's tokenizer. The audio token is added to it if it is missing. Defaults to the tokenizer
                of `llm`. Generation also stops at the end token of its chat template, which is added to
                `generation_config.eos_token_id` with a warning if it is missing there.
            audio_token (`str`, *optional*, defaults to `"<|audio|>"`):
                Placeholder for audio in the text.
            audio_scale (`float`, *optional*, defaults to 1.0):
                Initial root mean square of the projector's embeddings, relative to that of the language model's input
                embeddings. The layers of a language model add larger vectors to their inputs, so larger embeddings are kept
                through more of them; see `docs/method.md`.
            dtype (`torch.dtype` or `"auto"`, *optional*):
                Data type of the language model and the encoders. The projector stays in float32. Defaults to the data type
                of the language model's checkpoint (`"auto"`), but to float32 on a machine without an accelerator, where
                half precision is slow, if `llm_kwargs` set neither a data type nor a device nor a quantization.
            speech_kwargs, sound_kwargs, llm_kwargs (`dict`, *optional*):
                Further arguments for the `from_pretrained` of each part: `revision`, `device_map`,
                `quantization_config`...
            config_kwargs:
                Other fields of [`AudioListenConfig`], such as `qformer_config`.

        Raises:
            `OSError`: if a part is not found.
            `ValueError`: if a part is of the wrong kind, the language model does not support input embeddings, or
                `audio_scale` is not a positive number.

        Example:

        ```python
        >>> model = AudioListenForCausalLM.from_sub_models_pretrained(
        ...     speech="openai/whisper-large-v2", sound="BEATs_iter3_plus_AS2M.pt", llm="Qwen/Qwen2.5-7B-Instruct"
        ... )
        ```"""
        if not 0 < audio_scale < math.inf:
            raise ValueError(f"`audio_scale` must be a positive number, got {audio_scale!r}. It is 1.0 by default.")
        speech_kwargs, sound_kwargs, llm_kwargs = speech_kwargs or {}, sound_kwargs or {}, llm_kwargs or {}
        dtype = default_dtype(llm, llm_kwargs) if dtype is None else dtype
        language_model = LANGUAGE_MODEL.load(llm, **{"dtype": dtype, **llm_kwargs})
        check_language_model(language_model)
        tokenizer = load_tokenizer(tokenizer, llm, llm_kwargs)
        audio_token_id = add_audio_token(tokenizer, audio_token)
        fit_vocabulary(language_model, audio_token_id + 1)
        speech_tower = SPEECH.load(speech, **{"dtype": language_model.dtype, **speech_kwargs})
        sound_tower = SOUND.load(sound, **{"dtype": language_model.dtype, **sound_kwargs})

        modules = {SPEECH: speech_tower, SOUND: sound_tower, LANGUAGE_MODEL: language_model}
        sub_configs = {part.config_name: module.config for part, module in modules.items() if module is not None}
        # A new configuration resets the attention of its sub-configurations unless it is given here.
        attention = {name: sub_config._attn_implementation for name, sub_config in sub_configs.items()}
        config_kwargs.update(sub_configs, audio_token_id=audio_token_id, attn_implementation=attention)
        config = AudioListenConfig(**config_kwargs)
        config.dtype = language_model.dtype
        model = cls._assemble(config, speech_tower, sound_tower, language_model)
        if audio_scale != 1.0:
            model.model.multi_modal_projector.scale_to(audio_scale * embedding_scale(language_model))
        model.generation_config = audio_generation_config(language_model.generation_config, audio_token_id)
        end = find_answer_end(tokenizer, audio_chat_template(audio_token, text_template(tokenizer)))
        stop_at_answer_end(end, model.generation_config, tokenizer)
        model._published_generation_config = copy.deepcopy(language_model.generation_config)
        sources = ((SPEECH, speech, speech_kwargs), (SOUND, sound, sound_kwargs), (LANGUAGE_MODEL, llm, llm_kwargs))
        model.frozen_references = {
            part.name: make_reference(source, kwargs) for part, source, kwargs in sources if source is not None
        }
        if isinstance(llm, PreTrainedModel):
            warn_of_half_precision(model, "load the language model with `dtype=torch.float32`.")
        return model

    @classmethod
    def _assemble(
        cls,
        config: AudioListenConfig,
        speech_tower: WhisperEncoder | None = None,
        sound_tower: BeatsModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> Self:
        """
        Builds the model around its parts, without copying them. The projector is new, and so is a part that is `None` and
        has a configuration in `config`.
        """
        with torch.device("meta"), init.no_init_weights():
            model = cls(config)
        model.model.multi_modal_projector = WindowQFormerProjector(config)
        for module in model.model.multi_modal_projector.modules():
            model._init_weights(module)
        model.model.speech_tower = speech_tower if speech_tower is not None else WhisperEncoder(config.speech_config)
        if config.sound_config is not None:
            model.model.sound_tower = sound_tower if sound_tower is not None else BeatsModel(config.sound_config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        model.model.multi_modal_projector.scale_to(embedding_scale(language_model))
        model.model.language_model = language_model.base_model
        model.lm_head = language_model.get_output_embeddings()
        for name in _QUANTIZATION_ATTRIBUTES:
            if hasattr(language_model, name):
                setattr(model, name, getattr(language_model, name))
        device = next((w.device for w in language_model.parameters() if not w.is_meta), torch.device("cpu"))
        for part in (model.model.multi_modal_projector, model.model.speech_tower, model.model.sound_tower):
            if part is not None:
                part.to(device)
        model.freeze()
        return model.eval()

    @classmethod
    def _from_frozen_references(
        cls,
        path: Source,
        config: AudioListenConfig,
        sources: dict[str, Any],
        kwargs: dict[str, Any],
        adapter: dict[str, Any] | None,
    ) -> Any:
        parts, references = load_referenced_parts(config, path, sources, kwargs)
        config.name_or_path = os.fspath(path)
        model = cls._assemble(config, **parts)
        model.frozen_references = references
        model._load_unreferenced_weights(path, kwargs)
        try:
            file_kwargs = subset(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS)
            model.generation_config = GenerationConfig.from_pretrained(path, **file_kwargs)
        except OSError:
            model.generation_config = GenerationConfig.from_model_config(config)
            if config.audio_token_id is not None:
                model.generation_config = audio_generation_config(model.generation_config, config.audio_token_id)
        model._published_generation_config = copy.deepcopy(model.generation_config)
        if adapter is not None:
            model.load_adapter(**adapter)
        if kwargs.get("output_loading_info"):
            return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return model

    def _load_unreferenced_weights(self, path: Source, kwargs: dict[str, Any]) -> None:
        """Loads the weights of a checkpoint, and requires all weights of the parts that are not referenced."""
        weights_file = cached_file(path, SAFE_WEIGHTS_NAME, **subset(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS))
        missing, unexpected = self.load_state_dict(load_file(weights_file or ""), strict=False)
        tied = self.all_tied_weights_keys
        missing = [name for name in missing if name not in tied and not is_referenced(name, self.frozen_references)]
        if missing or unexpected:
            raise ValueError(
                f"{path} does not fit its configuration: missing {missing}, unexpected {list(unexpected)}. Save the "
                "checkpoint again."
            )

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, save_frozen: bool = True, **kwargs: Any
    ) -> None:
        """
        Saves the model, with the arguments of [`~transformers.PreTrainedModel.save_pretrained`].

        Args:
            save_directory (`str` or `os.PathLike`):
                Folder to save to.
            save_frozen (`bool`, *optional*, defaults to `True`):
                `False` leaves out the encoders and the language model if none of their parameters requires gradients, and
                saves references to their sources instead, from which `from_pretrained` loads them.
            args, kwargs: Other arguments of [`~transformers.PreTrainedModel.save_pretrained`].

        Raises:
            `ValueError`: with `save_frozen=False`, if a frozen part was not loaded from anywhere; with `save_frozen=True`,
                if only the language model is quantized.
        """
        quantizer = getattr(self, "hf_quantizer", None)
        if save_frozen and quantizer is not None and not hasattr(self.config, "quantization_config"):
            raise ValueError(
                "The language model was quantized before the model was built from its parts, and such a model cannot be "
                "loaded from a single checkpoint. Save it with `save_frozen=False`, which saves a reference to the "
                "language model."
            )
        references = {} if save_frozen else reference_frozen_parts(self, self.frozen_references)
        self.save_with_references(save_directory, references, *args, **kwargs)

    def save_with_references(
        self, save_directory: str | os.PathLike[str], references: dict[str, Reference], *args: Any, **kwargs: Any
    ) -> None:
        """
        Saves the model without the parts that `references` name, whose references are saved instead.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write.
            references (`dict[str, Reference]`): Sources of parts, by the parts' names; may be empty.
            args, kwargs: As `PreTrainedModel.save_pretrained` takes them.
        """
        quantizer = getattr(self, "hf_quantizer", None)
        if references:
            weights = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = {name: w for name, w in weights.items() if not is_referenced(name, references)}
            self.config.frozen_references = references
            # A quantizer would also save the weights of the modules that it quantized.
            self.hf_quantizer = None
        accept_published_values(self.generation_config, self._published_generation_config)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.frozen_references = None
            if quantizer is not None:
                self.hf_quantizer = quantizer


def _load_lora_beside(loaded: Any, adapter: dict[str, Any] | None, kwargs: dict[str, Any]) -> None:
    """Loads the LoRA adapter beside the adapter that `from_pretrained(..., **kwargs)` has loaded."""
    if adapter is not None:
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        arguments = {
            **subset(kwargs, HUB_ARGUMENTS),
            **subset(adapter["adapter_kwargs"], HUB_ARGUMENTS + FILE_ARGUMENTS),
        }
        load_lora_beside(model, adapter["peft_model_id"], adapter["adapter_name"], **arguments)


def _warn_of_default_dtype(model: AudioListenPreTrainedModel, dtype: Any) -> None:
    if not is_chosen(dtype):
        warn_of_half_precision(model, "pass `dtype=torch.float32` to `from_pretrained` or `pipeline`.")


def _batches_of_equal(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Divides rows into batches of equal length, at most `batch_size` rows in each, in the order of the rows."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length, []).append(row)
    return [rows[start : start + batch_size] for rows in groups.values() for start in range(0, len(rows), batch_size)]


def _in_order(rows: list[int], values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Sorts values by their rows."""
    return [values[index] for index in sorted(range(len(rows)), key=rows.__getitem__)]


def _stack(values: list[torch.Tensor]) -> torch.Tensor:
    """Stacks tensors, padded with zeros at the end of every axis to the same shape."""
    shape = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]

    def pad(value: torch.Tensor) -> torch.Tensor:
        missing = [size - own for size, own in zip(shape, value.shape, strict=True)]
        # `pad` takes the amounts before and after each axis, from the last axis to the first.
        return nn.functional.pad(value, [amount for number in reversed(missing) for amount in (0, number)])

    return torch.stack([pad(value) if list(value.shape) != shape else value for value in values])


def _append_layers(layers: list[list[torch.Tensor]], outputs: tuple[torch.Tensor, ...] | None) -> None:
    """Appends the chunks of each layer's output to the list of that layer."""
    for index, output in enumerate(outputs or ()):
        if index == len(layers):
            layers.append([])
        layers[index] += output


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def _grad_mode(tower: nn.Module) -> AbstractContextManager[None]:
    return torch.set_grad_enabled(torch.is_grad_enabled() and not _is_frozen(tower))


def _given_features(given: Mapping[str, torch.Tensor | None]) -> AudioFeatures | None:
    """The encoder outputs among the audio arguments, or `None` if these are audio. Raises a `ValueError` for both or neither."""
    has_audio, speech = given.get("input_features") is not None, given.get("speech_features")
    if has_audio == (speech is not None):
        raise ValueError(
            "Pass either `input_features` (audio) or `speech_features` (encoder outputs), got "
            f"{'both' if has_audio else 'neither'}."
        )
    if speech is None:
        return None
    if (mask := given.get("audio_features_mask")) is None:
        raise ValueError(
            "`speech_features` was given without `audio_features_mask`. Pass all fields of `AudioFeatures`."
        )
    return AudioFeatures(speech, given.get("sound_features"), mask)


def _check_size(name: str, features: torch.Tensor, size: int) -> None:
    if features.ndim != 3 or features.shape[-1] != size:
        raise ValueError(
            f"`{name}` has the shape {tuple(features.shape)}, but (chunks, frames, {size}) was expected. Compute the "
            "features with the encoders of this model."
        )


__all__ = ["AudioFeatures", "AudioListenForCausalLM", "AudioListenModel", "AudioListenPreTrainedModel"]
