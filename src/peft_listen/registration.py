"""Makes the method known to PEFT and transformers. The only file that touches other libraries' registries.

Neither library has entry points for plug-ins (https://github.com/huggingface/peft/issues/229 asks for them), so this
runs when `peft_listen` is imported, and may run any number of times.
"""

from __future__ import annotations

from peft import PeftModel
from peft.utils import PeftType, register_peft_method
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY


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
    """Makes the configurations, models and processors known to transformers' Auto classes."""
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


def register_pipelines() -> None:
    """Makes `pipeline("audio-text-to-text")` known to transformers."""
    from .pipelines import AudioTextToTextPipeline

    if "audio-text-to-text" not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            "audio-text-to-text",
            pipeline_class=AudioTextToTextPipeline,
            pt_model=AutoModelForMultimodalLM,
            type="multimodal",
        )


def register_model_cards() -> None:
    """Lets the model cards of this package's adapters say how to load them."""
    from . import model_card

    model_card.install(PeftModel)


def register_adapter_saving() -> None:
    """Lets adapters be saved over older ones in one step."""
    from . import adapter_saving

    adapter_saving.install(PeftModel)


def register() -> None:
    """Registers everything; called by `import peft_listen`."""
    register_tuner()
    register_models()
    register_pipelines()
    register_model_cards()
    register_adapter_saving()
