"""LiSTEN (arXiv 2505.18517) as a plug-in for the Hugging Face ecosystem. See the README for where to begin."""

from .audio import load_audio
from .models.audio_listen import (
    AudioListenConfig,
    AudioListenForCausalLM,
    AudioListenModel,
    AudioListenProcessor,
    WindowQFormerProjector,
)
from .models.beats import (
    BeatsConfig,
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
    BeatsModel,
    relative_position_bucket,
)
from .pipelines import AudioTextToTextPipeline
from .registration import register
from .tuners.listen import (
    ListenConfig,
    ListenModel,
    Selection,
    SelectionRecord,
    Selector,
    available_selectors,
    get_selector,
    register_selector,
)


__version__ = "0.1.0.dev0"

__all__ = [
    "AudioListenConfig",
    "AudioListenForCausalLM",
    "AudioListenModel",
    "AudioListenProcessor",
    "AudioTextToTextPipeline",
    "BeatsConfig",
    "BeatsFeatureExtractor",
    "BeatsForAudioClassification",
    "BeatsModel",
    "ListenConfig",
    "ListenModel",
    "Selection",
    "SelectionRecord",
    "Selector",
    "WindowQFormerProjector",
    "available_selectors",
    "get_selector",
    "load_audio",
    "register_selector",
    "relative_position_bucket",
]

register()
