"""Registers the tuner with PEFT, and the models and the pipeline with transformers.

Neither library has entry points for plug-ins (https://github.com/huggingface/peft/issues/229 requests them), so
registration runs when `peft_listen` is imported. It can safely run more than once. No other file changes the
registries of other libraries.

The tuner is registered at once. The audio models are registered when transformers first looks one of them up: importing
`peft_listen` does not import them, and works with a transformers that is too old for them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.utils import PeftType, register_peft_method
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

from .compatibility import audio_is_supported, check_audio_is_supported, warn_about_untested_versions


MODEL_TYPES = ("audio_listen", "beats")
PIPELINE_TASK = "audio-text-to-text"

_loading = threading.RLock()
_models_are_registered = False
_has_warned = False


class _LazyEntries(dict):
    """
    Replaces the dictionary of added entries of one of transformers' auto mappings. The audio models are registered before
    one of them is looked up, and before the entries are listed.
    """

    def __contains__(self, key: object) -> bool:
        if _is_ours(key):
            _complete()
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        if _is_ours(key):
            _complete()
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        _complete_if_supported()
        return super().__iter__()

    def keys(self) -> Any:
        _complete_if_supported()
        return super().keys()

    def values(self) -> Any:
        _complete_if_supported()
        return super().values()

    def items(self) -> Any:
        _complete_if_supported()
        return super().items()


class _LazyTask(dict):
    """Entry of the pipeline in transformers' registry. The pipeline's class is imported when the entry is read."""

    def __missing__(self, key: str) -> Any:
        register_pipelines()
        return PIPELINE_REGISTRY.supported_tasks[PIPELINE_TASK][key]


def _is_ours(key: object) -> bool:
    """Whether a key of an auto mapping (a model type or a configuration class) belongs to this package."""
    if isinstance(key, str):
        return key in MODEL_TYPES
    return getattr(key, "__module__", "").startswith(f"{__package__}.models.")


def _complete() -> None:
    """Registers the models once. Other threads wait until all are registered."""
    global _models_are_registered
    with _loading:
        if _models_are_registered:
            return
        _models_are_registered = True  # set first, because importing the models looks up entries
        try:
            register_models()
        except BaseException:
            _models_are_registered = False
            raise


def _complete_if_supported() -> None:
    if not _models_are_registered and audio_is_supported():
        _complete()


def _add_peft_type(name: str) -> None:
    """Adds a member to PEFT's closed enumeration of methods, which `register_peft_method` looks up."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    type.__setattr__(PeftType, name, member)
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member


def register_tuner() -> None:
    """Registers the `"LISTEN"` method with PEFT."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    _add_peft_type("LISTEN")
    from .tuners.listen.config import ListenConfig
    from .tuners.listen.model import ListenModel

    if PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType["LISTEN"]) is not ListenModel:
        register_peft_method(name="listen", config_cls=ListenConfig, model_cls=ListenModel, prefix=ListenModel.prefix)


def register_models() -> None:
    """Imports the configurations, models and processors and registers them with transformers' Auto classes."""
    from .models.audio_listen import AudioListenConfig, AudioListenForCausalLM, AudioListenModel, AudioListenProcessor
    from .models.beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel

    AutoConfig.register(BeatsConfig.model_type, BeatsConfig, exist_ok=True)
    AutoFeatureExtractor.register(BeatsConfig, BeatsFeatureExtractor, exist_ok=True)
    AutoModel.register(BeatsConfig, BeatsModel, exist_ok=True)
    AutoModelForAudioClassification.register(BeatsConfig, BeatsForAudioClassification, exist_ok=True)

    AutoConfig.register(AudioListenConfig.model_type, AudioListenConfig, exist_ok=True)
    AutoProcessor.register(AudioListenConfig, AudioListenProcessor, exist_ok=True)
    AutoModel.register(AudioListenConfig, AudioListenModel, exist_ok=True)
    AutoModelForCausalLM.register(AudioListenConfig, AudioListenForCausalLM, exist_ok=True)
    AutoModelForMultimodalLM.register(AudioListenConfig, AudioListenForCausalLM, exist_ok=True)


def register_models_lazily() -> None:
    """Makes the models available to transformers' Auto classes without importing them."""
    mappings: list[Any] = [
        CONFIG_MAPPING,
        FEATURE_EXTRACTOR_MAPPING,
        PROCESSOR_MAPPING,
        AutoModel._model_mapping,
        AutoModelForAudioClassification._model_mapping,
        AutoModelForCausalLM._model_mapping,
        AutoModelForMultimodalLM._model_mapping,
    ]
    for mapping in mappings:
        # There is no public way to add an entry whose class is imported later.
        if not isinstance(mapping._extra_content, _LazyEntries):
            mapping._extra_content = _LazyEntries(mapping._extra_content)


def register_pipelines() -> None:
    """Imports the pipeline and registers it with transformers as `pipeline("audio-text-to-text")`."""
    check_audio_is_supported()
    from .pipelines import AudioTextToTextPipeline

    if isinstance(PIPELINE_REGISTRY.supported_tasks.get(PIPELINE_TASK, _LazyTask()), _LazyTask):
        PIPELINE_REGISTRY.supported_tasks.pop(PIPELINE_TASK, None)
        PIPELINE_REGISTRY.register_pipeline(
            PIPELINE_TASK,
            pipeline_class=AudioTextToTextPipeline,
            # Audio Flamingo 3 is registered as the second only.
            pt_model=(AutoModelForMultimodalLM, AutoModelForSeq2SeqLM),  # type: ignore[arg-type]
            type="multimodal",
        )


def register_pipelines_lazily() -> None:
    """Makes the pipeline available to `transformers.pipeline` without importing it."""
    PIPELINE_REGISTRY.supported_tasks.setdefault(PIPELINE_TASK, _LazyTask())


def register_model_cards() -> None:
    """Adds instructions for loading to the model cards of this package's adapters."""
    from . import model_card

    model_card.install(PeftModel)


def register_adapter_saving() -> None:
    """Lets adapters be saved over older ones in one step."""
    from . import adapter_saving

    adapter_saving.install(PeftModel)


def register() -> None:
    """Registers everything; called by `import peft_listen`."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        warn_about_untested_versions()
    register_tuner()
    register_models_lazily()
    register_pipelines_lazily()
    register_model_cards()
    register_adapter_saving()
