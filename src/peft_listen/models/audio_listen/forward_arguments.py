"""Arguments of [`AudioListenForCausalLM.forward`]: names shared with generation, and types."""

from dataclasses import fields
from typing import NamedTuple, TypedDict

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


class LanguageModelKwargs(TypedDict, total=False):
    """
    Further arguments of `forward`, passed on to the language model and the loss. These are transformers'
    `TransformersKwargs` without `position_ids`, which `forward` names.

    Args:
        num_items_in_batch (`torch.Tensor`, *optional*): Number of supervised tokens that the loss is divided by.
        output_hidden_states (`bool`, *optional*): Whether to return the hidden states of all layers.
        output_attentions (`bool`, *optional*): Whether to return the attention probabilities of all layers.
        output_router_logits (`bool`, *optional*): Whether to return the router logits of all layers.
        cu_seq_lens_q, cu_seq_lens_k (`torch.LongTensor`, *optional*): Cumulative sequence lengths of packed rows.
        max_length_q, max_length_k (`int`, *optional*): Largest sequence lengths of packed rows.
        is_causal (`bool`, *optional*): Whether attention is causal.
        seq_idx (`torch.IntTensor`, *optional*): Index of the sequence of each token in packed rows.
    """

    num_items_in_batch: torch.Tensor | None
    output_hidden_states: bool | None
    output_attentions: bool | None
    output_router_logits: bool | None
    cu_seq_lens_q: torch.LongTensor | None
    cu_seq_lens_k: torch.LongTensor | None
    max_length_q: int | None
    max_length_k: int | None
    is_causal: bool | None
    seq_idx: torch.IntTensor | None
