"""AudioListen: a causal language model with audio input through Whisper, BEATs and a window-level Q-Former."""

from ...chat import AUDIO_TOKEN
from .audio_tokens import add_audio_token
from .chat_template import audio_chat_template
from .configuration_audio_listen import AudioListenConfig
from .forward_arguments import AudioFeatures
from .modeling_audio_listen import AudioListenForCausalLM, AudioListenModel, AudioListenPreTrainedModel
from .modeling_window_qformer import WindowQFormerProjector
from .processing_audio_listen import AudioListenProcessor


__all__ = [
    "AUDIO_TOKEN",
    "AudioFeatures",
    "AudioListenConfig",
    "AudioListenForCausalLM",
    "AudioListenModel",
    "AudioListenPreTrainedModel",
    "AudioListenProcessor",
    "WindowQFormerProjector",
    "add_audio_token",
    "audio_chat_template",
]
