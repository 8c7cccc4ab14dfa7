"""Names of arguments of [`AudioListenForCausalLM.forward`] that generation handles too."""

from dataclasses import fields
from typing import NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast


# transformers 5.24 renamed `past_key_values` to `cache`, in arguments and outputs of all models and in `generate`.
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


class AudioFeatures(NamedTuple):
    """
    Encoder outputs per chunk, trimmed to the frames that the Q-Former's windows cover. The fields have the names of the
    arguments with which [`AudioListenForCausalLM.forward`] accepts them in place of the audio.

    Args:
        speech_features (`torch.Tensor` of shape `(chunks, frames, speech_size)`):
            Frames of 20 ms of the speech encoder.
        sound_features (`torch.Tensor` of shape `(chunks, sound_frames, sound_size)`, *optional*):
            Frames of the sound encoder, padded with zeros; `None` if there is no sound encoder.
        audio_features_mask (`torch.LongTensor` of shape `(chunks, frames)`):
            1 for frames that contain audio, 0 for padding. The last window of a chunk may extend into the padding.
    """

    speech_features: torch.Tensor
    sound_features: torch.Tensor | None
    audio_features_mask: torch.Tensor


# Audio as features of chunks of the waveforms, or as encoder outputs.
AUDIO_ARGUMENTS = (
    "input_features",
    "input_features_mask",
    "sound_input_values",
    "sound_attention_mask",
    *AudioFeatures._fields,
)
