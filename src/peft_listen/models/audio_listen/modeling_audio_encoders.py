"""The frozen audio encoders: how chunks of audio become frames for the projector."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from ..beats.modeling_beats import BeatsModel
from .audio_tokens import num_audio_windows, num_encoder_frames, window_reach
from .modeling_pretrained import AudioListenPreTrainedModel


if TYPE_CHECKING:
    from typing import Self


class AudioFeatures(NamedTuple):
    """
    What the frozen encoders heard in each chunk of audio, as far as the windows of the Q-Former reach. The fields are
    named as the arguments of [`AudioListenForCausalLM.forward`] that take them back in place of the audio.

    Args:
        speech_features (`torch.Tensor` of shape `(chunks, frames, speech_size)`):
            Frames of 20 ms of the speech encoder.
        sound_features (`torch.Tensor` of shape `(chunks, sound_frames, sound_size)`, *optional*):
            Frames of the sound encoder, padded with zeros; `None` without one.
        audio_features_mask (`torch.LongTensor` of shape `(chunks, frames)`):
            1 for the frames in which the clip still sounds. The last window of a chunk reaches beyond them.
    """

    speech_features: torch.Tensor
    sound_features: torch.Tensor | None
    audio_features_mask: torch.Tensor


class AudioEncoderModel(AudioListenPreTrainedModel):
    """
    What [`AudioListenModel`] does with its encoders. They start without gradients, run under `torch.no_grad()` as long
    as none of their parameters requires gradients, and then stay in evaluation mode after `train()` too.
    """

    speech_tower: WhisperEncoder
    sound_tower: BeatsModel | None

    def train(self, mode: bool = True) -> "Self":
        super().train(mode)
        self._let_frozen_towers_rest()
        return self

    def _let_frozen_towers_rest(self) -> None:
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
        Runs the encoders only. Their output can be kept and passed to `forward` in place of the audio:
        `model(input_ids, **features._asdict())` gives the same result.

        Args:
            input_features (`torch.Tensor` of shape `(chunks, mel_bins, 3000)`):
                Log-mel spectrogram of chunks of at most 30 s, as [`AudioListenProcessor`] makes them.
            input_features_mask (`torch.LongTensor` of shape `(chunks, 3000)`, *optional*):
                1 for the mel frames in which the clip still sounds. All of them if `None`.
            sound_input_values (`torch.Tensor` of shape `(chunks, sound_frames, 128)`, *optional*):
                Filter bank of the same chunks for the sound encoder; needed if and only if there is one.
            sound_attention_mask (`torch.LongTensor` of shape `(chunks, sound_frames)`, *optional*):
                1 for the frames of `sound_input_values` that are no padding. All of them if `None`.

        Returns:
            [`AudioFeatures`]: trimmed to what the windows of the Q-Former need.

        Raises:
            `ValueError`: if a feature has the wrong size, or the sound encoder's input is missing or unexpected.
        """
        batches = self._encode(input_features, input_features_mask, sound_input_values, sound_attention_mask)
        speech, sound, mask = zip(*(features for features, _ in batches), strict=True)
        return AudioFeatures(
            _concatenate(speech), None if self.sound_tower is None else _concatenate(sound), _concatenate(mask)
        )

    def _encode(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None,
        sound_input_values: torch.Tensor | None,
        sound_attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Iterator[tuple[AudioFeatures, BaseModelOutput]]:
        """
        Encodes `config.encoder_batch_size` chunks at a time. `kwargs` are the speech encoder's, whose whole output comes
        beside the features.
        """
        expected = (self.config.speech_config.num_mel_bins, 2 * self.config.speech_config.max_source_positions)
        if tuple(input_features.shape[1:]) != expected:
            raise ValueError(
                f"`input_features` has the shape {tuple(input_features.shape)}, but this speech encoder takes (chunks, "
                f"mel bins, frames) = (chunks, {expected[0]}, {expected[1]}). Use the processor of this model."
            )
        if (sound_input_values is None) != (self.sound_tower is None):
            raise ValueError(
                "The model has a sound encoder, but `sound_input_values` is missing. Use the processor of this model."
                if sound_input_values is None
                else "`sound_input_values` is given, but the model has no sound encoder. Use the processor of this model."
            )
        if input_features_mask is None:
            input_features_mask = torch.ones_like(input_features[:, 0], dtype=torch.long)
        # Parameters may have been frozen or freed since `train()`.
        self._let_frozen_towers_rest()
        for rows in torch.arange(len(input_features)).split(self.config.encoder_batch_size):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
            num_frames = num_encoder_frames(input_features_mask[rows].sum(-1))
            windows = (self.config.window_length, self.config.window_stride)
            num_needed = int(window_reach(self._num_windows(num_frames), *windows).max())
            with _grad_mode(self.speech_tower):
                speech = self.speech_tower(input_features[rows].to(self.speech_tower.dtype), **kwargs)
            sound = None
            if self.sound_tower is not None and sound_input_values is not None:
                mask = None if sound_attention_mask is None else sound_attention_mask[rows]
                sound = self._encode_sound(self.sound_tower, sound_input_values[rows], mask)[:, :num_needed]
            sounds = torch.arange(num_needed, device=num_frames.device) < num_frames[:, None]
            yield AudioFeatures(speech.last_hidden_state[:, :num_needed], sound, sounds.long()), speech

    def _encode_sound(
        self, tower: BeatsModel, input_values: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        input_values = input_values.to(tower.dtype)
        with _grad_mode(tower):
            if attention_mask is None or not self.config.group_sound_by_length:
                return tower(input_values, attention_mask=attention_mask).last_hidden_state
            lengths = attention_mask.sum(-1).tolist()
            features: list[torch.Tensor] = [input_values] * len(lengths)
            for length in set(lengths):
                rows = [row for row, row_length in enumerate(lengths) if row_length == length]
                for row, output in zip(rows, tower(input_values[rows, :length]).last_hidden_state, strict=True):
                    features[row] = output
            return nn.utils.rnn.pad_sequence(features, batch_first=True)

    def _num_windows(self, num_frames: torch.Tensor) -> torch.Tensor:
        max_frames = self.config.speech_config.max_source_positions
        return num_audio_windows(num_frames, self.config.window_length, self.config.window_stride, max_frames)


def join_chunks(layers: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...] | None:
    """What each layer gave for some chunks at a time, put together for all chunks. `None` if there is nothing."""
    return tuple(torch.cat(chunks) for chunks in zip(*layers, strict=True)) if layers else None


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def _grad_mode(tower: nn.Module) -> AbstractContextManager[None]:
    return torch.set_grad_enabled(torch.is_grad_enabled() and not _is_frozen(tower))


def _concatenate(batches: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Joins batches of chunks, padded on the right of their second axis to the same length."""
    return nn.utils.rnn.pad_sequence([chunk for batch in batches for chunk in batch], batch_first=True)
