"""LiSTEN (arXiv 2505.18517) as a plug-in for PEFT and transformers.

Importing the package registers the tuner with PEFT. The audio models, the pipeline and audio loading are imported when
they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .compatibility import check_audio_is_supported
from .registration import register
from .tuners.listen import (
    ListenConfig,
    ListenModel,
    Selection,
    SelectionRecord,
    Selector,
    available_selectors,
    get_selector,
    prompt_embeds,
    record_selections,
    register_selector,
    set_prompt_length,
    use_prompt_length,
)
from .with_lora import add_lora, load_with_lora


if TYPE_CHECKING:
    from .audio import load_audio
    from .models.audio_listen import (
        AudioListenConfig,
        AudioListenForCausalLM,
        AudioListenModel,
        AudioListenProcessor,
        WindowQFormerProjector,
    )
    from .models.beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel
    from .pipelines import AudioTextToTextPipeline
    from .publishing import publish, save_complete_model


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
    "add_lora",
    "available_selectors",
    "get_selector",
    "load_audio",
    "load_with_lora",
    "prompt_embeds",
    "publish",
    "record_selections",
    "register_selector",
    "save_complete_model",
    "set_prompt_length",
    "use_prompt_length",
]

# Names that are imported when they are first used, and their modules.
_LAZY_NAMES = {
    "AudioListenConfig": ".models.audio_listen",
    "AudioListenForCausalLM": ".models.audio_listen",
    "AudioListenModel": ".models.audio_listen",
    "AudioListenProcessor": ".models.audio_listen",
    "AudioTextToTextPipeline": ".pipelines",
    "BeatsConfig": ".models.beats",
    "BeatsFeatureExtractor": ".models.beats",
    "BeatsForAudioClassification": ".models.beats",
    "BeatsModel": ".models.beats",
    "WindowQFormerProjector": ".models.audio_listen",
    "load_audio": ".audio",
    "publish": ".publishing",
    "save_complete_model": ".publishing",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "load_audio":
        check_audio_is_supported()
    value = getattr(importlib.import_module(_LAZY_NAMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
