"""Converts the window-level Q-Former of SALMONN checkpoints (bytedance/SALMONN, arXiv 2310.13289)."""

import torch
from transformers import Blip2QFormerConfig, LlamaConfig, WhisperConfig

from ..beats.configuration_beats import BeatsConfig
from .configuration_audio_listen import AudioListenConfig
from .modeling_window_qformer import WindowQFormerProjector


FRAMES_PER_SECOND = 50

_NAMES = {
    "speech_query_tokens": "query_tokens",
    "ln_speech.weight": "speech_layer_norm.weight",
    "ln_speech.bias": "speech_layer_norm.bias",
    "ln_audio.weight": "sound_layer_norm.weight",
    "ln_audio.bias": "sound_layer_norm.bias",
    "speech_llama_proj.weight": "linear.weight",
    "speech_llama_proj.bias": "linear.bias",
}
_QFORMER_PREFIX = "speech_Qformer.bert."


def convert_salmonn_projector(
    state_dict: dict[str, torch.Tensor],
    *,
    speech_dim: int,
    audio_dim: int | None,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    second_per_window: float = 0.333333,
    second_stride: float = 0.333333,
) -> WindowQFormerProjector:
    """
    Builds a [`WindowQFormerProjector`] from a checkpoint of SALMONN.

    Args:
        state_dict (`dict[str, torch.Tensor]`):
            The entry `"model"` of a SALMONN checkpoint: `speech_Qformer.*`, `speech_query_tokens`,
            `speech_llama_proj.*`, `ln_speech.*` and `ln_audio.*`. Other weights, such as LoRA's, are ignored.
        speech_dim (`int`): Width of Whisper's encoder.
        audio_dim (`int` or `None`): Width of BEATs, or `None` if the checkpoint was trained without it.
        num_hidden_layers (`int`): Layers of the Q-Former.
        num_attention_heads (`int`): Attention heads of the Q-Former.
        intermediate_size (`int`): Width of the Q-Former's feed-forward layers.
        second_per_window (`float`, *optional*, defaults to 0.333333): Length of a window in seconds.
        second_stride (`float`, *optional*, defaults to 0.333333): Seconds between the starts of two windows.

    Raises:
        `ValueError`: if weights are missing, or do not fit the given sizes.
    """
    if "speech_query_tokens" not in state_dict or "speech_llama_proj.weight" not in state_dict:
        raise ValueError(
            "This is not a state dict of SALMONN: `speech_query_tokens` and `speech_llama_proj.weight` are expected. "
            'Pass the entry "model" of the checkpoint.'
        )
    num_queries, qformer_size = state_dict["speech_query_tokens"].shape[1:]
    text_dim = len(state_dict["speech_llama_proj.weight"])
    # The projector reads only the width of the encoders and the language model.
    sound_config = None
    if audio_dim is not None:
        sound_config = BeatsConfig(hidden_size=audio_dim, num_attention_heads=1, num_conv_pos_embedding_groups=1)
    config = AudioListenConfig(
        speech_config=WhisperConfig(d_model=speech_dim, encoder_attention_heads=1, decoder_attention_heads=1),
        sound_config=sound_config,
        qformer_config=Blip2QFormerConfig(
            hidden_size=qformer_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            cross_attention_frequency=1,
        ),
        text_config=LlamaConfig(hidden_size=text_dim, num_attention_heads=1, num_key_value_heads=1),
        num_queries=num_queries,
        window_length=round(FRAMES_PER_SECOND * second_per_window),
        window_stride=round(FRAMES_PER_SECOND * second_stride),
    )
    projector = WindowQFormerProjector(config)
    try:
        projector.load_state_dict(rename_salmonn_weights(state_dict))
    except RuntimeError as error:
        raise ValueError(f"The SALMONN checkpoint does not fit the sizes given. {error}") from error
    return projector


def rename_salmonn_weights(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames SALMONN's weights to those of [`WindowQFormerProjector`], and drops all others."""
    renamed = {}
    for name, tensor in state_dict.items():
        if name in _NAMES:
            renamed[_NAMES[name]] = tensor
        elif name.startswith(_QFORMER_PREFIX) and not name.endswith("position_ids"):
            name = name.removeprefix(_QFORMER_PREFIX).replace("embeddings.LayerNorm.", "layernorm.")
            renamed["qformer." + name.replace("attention.self.", "attention.attention.")] = tensor
    return renamed
