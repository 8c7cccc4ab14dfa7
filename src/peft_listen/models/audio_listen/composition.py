"""Putting an AudioListen model together from published encoders and a published language model."""

import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..beats.configuration_beats import BeatsConfig
from ..beats.modeling_beats import BeatsModel
from .audio_tokens import add_audio_token
from .configuration_audio_listen import AudioListenConfig
from .language_head import check_language_model, input_device
from .modeling_window_qformer import WindowQFormerProjector


if TYPE_CHECKING:
    from .modeling_composed import ComposedModel

Source = str | os.PathLike[str]

# What marks a quantised language model, for transformers and PEFT to treat the whole model so.
_QUANTISATION_ATTRIBUTES = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
)
# Arguments of every `from_pretrained` that say how to reach the Hub, and which files of a repository are meant.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
FILE_ARGUMENTS = ("revision", "subfolder", "gguf_file")
# The argument of `from_sub_models_pretrained` that names each part.
PART_ARGUMENTS = {"speech_tower": "speech", "sound_tower": "sound", "language_model": "llm"}


def select(kwargs: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of `kwargs` that are in `names`."""
    return {name: value for name, value in kwargs.items() if name in names}


def load_speech_encoder(speech: Any, **kwargs: Any) -> WhisperEncoder:
    """The encoder of a Whisper checkpoint, or of a Whisper model; the decoder is dropped."""
    if isinstance(speech, WhisperEncoder):
        return speech
    if not isinstance(speech, nn.Module):
        config = AutoConfig.from_pretrained(speech, **select(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS))
        if not isinstance(config, WhisperConfig):
            raise ValueError(f"`speech` must be a Whisper checkpoint, but {speech} holds a {config.model_type} model.")
        speech = _load_whole(WhisperModel, "speech", speech, kwargs)
    if not isinstance(speech, (WhisperModel, WhisperForConditionalGeneration)):
        raise ValueError(f"`speech` must be a Whisper model, got a {type(speech).__name__}.")
    return speech.get_encoder()


def load_sound_encoder(sound: Any, **kwargs: Any) -> Any:
    """A BEATs encoder from a folder or hub id, from an original checkpoint (a single file), or as it is."""
    if sound is None or isinstance(sound, BeatsModel):
        return sound
    if isinstance(sound, nn.Module):
        raise ValueError(f"`sound` must be a BEATs model, got a {type(sound).__name__}.")
    if os.path.isfile(sound):
        model: nn.Module = BeatsModel.from_original_checkpoint(sound)
        return model.to(kwargs["dtype"]) if isinstance(kwargs.get("dtype"), torch.dtype) else model
    config = AutoConfig.from_pretrained(sound, **select(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS))
    if not isinstance(config, BeatsConfig):
        raise ValueError(f"`sound` must be a BEATs checkpoint, but {sound} holds a {config.model_type} model.")
    return _load_whole(BeatsModel, "sound", sound, kwargs)


def _load_whole(model_class: type[PreTrainedModel], argument: str, source: Source, kwargs: dict[str, Any]) -> Any:
    """Loads an encoder without gaps: its weights are never trained, so that those missing would stay random."""
    loaded: Any = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    model, info = loaded
    # A checkpoint of the encoder alone lacks the decoder, which is dropped.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("decoder."))
    if missing:
        raise ValueError(
            f"`{argument}`: {os.fspath(source)} lacks {len(missing)} of the encoder's weights: {', '.join(missing)}. Get "
            "the checkpoint from its publisher again."
        )
    return model


def load_language_model(llm: Any, **kwargs: Any) -> PreTrainedModel:
    """A causal language model from a folder or hub id, or as it is."""
    if not isinstance(llm, nn.Module):
        return AutoModelForCausalLM.from_pretrained(llm, **kwargs)
    if not isinstance(llm, PreTrainedModel):
        raise ValueError(
            f"`llm` must be a model of transformers, got a {type(llm).__name__}. Adapters are added to the whole model, "
            "after it was put together."
        )
    return llm


_LOADERS: dict[str, Callable[..., Any]] = {
    "speech_tower": load_speech_encoder,
    "sound_tower": load_sound_encoder,
    "language_model": load_language_model,
}


def load_part(part: str, source: Any, **kwargs: Any) -> Any:
    """
    Loads one part, a key of `PART_ARGUMENTS`.

    Raises:
        `OSError`: naming the part and `source`, if it is not found.
        `ValueError`: if it is of the wrong kind.
    """
    try:
        return _LOADERS[part](source, **kwargs)
    except OSError as error:
        raise OSError(f"`{PART_ARGUMENTS[part]}` cannot be loaded from {os.fspath(source)!r}. {error}") from error


@torch.no_grad()
def fit_vocabulary(language_model: Any, vocab_size: int) -> None:
    """
    Gives the embeddings and the head of a language model at least `vocab_size` rows. New rows are the mean of the old
    ones, so that the logits of new tokens never stand out.

    Raises:
        `ValueError`: if they are offloaded.
    """
    old_size = language_model.get_input_embeddings().weight.shape[0]
    if vocab_size <= old_size:
        return
    if language_model.get_input_embeddings().weight.is_meta:
        raise ValueError(
            "The embeddings of the language model are offloaded, so that they cannot be enlarged by the audio token. Give "
            "them a device in `device_map`, or enlarge the vocabulary of the saved language model first."
        )
    language_model.resize_token_embeddings(vocab_size, mean_resizing=False)
    head = language_model.get_output_embeddings()
    for rows in (language_model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)):
        if rows is not None:
            rows[old_size:] = rows[:old_size].float().mean(0).to(rows.dtype)


@torch.no_grad()
def embedding_scale(language_model: PreTrainedModel) -> float:
    """Root mean square of the language model's input embeddings, over a thousand tokens spread over its vocabulary."""
    embedding: Any = language_model.get_input_embeddings()
    token_ids = torch.linspace(0, embedding.num_embeddings - 1, 1000, device=input_device(embedding)).long()
    return float(embedding(token_ids).float().square().mean().sqrt())


def assemble(
    model_class: "type[ComposedModel]",
    config: AudioListenConfig,
    speech_tower: WhisperEncoder | None,
    sound_tower: BeatsModel | None,
    language_model: PreTrainedModel | None,
) -> "ComposedModel":
    """
    Puts a model together without copying its parts. The projector is new; a part that is `None` although `config` has
    it is new too.
    """
    with torch.device("meta"), no_init_weights():
        model = model_class(config)
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
    for name in _QUANTISATION_ATTRIBUTES:
        if hasattr(language_model, name):
            setattr(model, name, getattr(language_model, name))
    device = next((w.device for w in language_model.parameters() if not w.is_meta), torch.device("cpu"))
    for part in (model.model.multi_modal_projector, model.model.speech_tower, model.model.sound_tower):
        if part is not None:
            part.to(device)
    model.freeze()
    return model.eval()


def build(
    model_class: "type[ComposedModel]",
    sources: dict[str, Any],
    part_kwargs: dict[str, dict[str, Any]],
    *,
    tokenizer: Source | PreTrainedTokenizerBase | None,
    audio_token: str,
    dtype: torch.dtype | str | None,
    **config_kwargs: Any,
) -> "ComposedModel":
    """Loads the parts from `sources`, fits them to each other and puts them together."""
    llm = sources["language_model"]
    llm_kwargs = part_kwargs["language_model"]
    language_model = load_part("language_model", llm, **{"dtype": dtype, **llm_kwargs})
    check_language_model(language_model)
    if tokenizer is None:
        if isinstance(llm, nn.Module):
            raise ValueError(
                "`tokenizer` is needed where `llm` is a model: the id of the audio token is looked up in it."
            )
        tokenizer = llm
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, **select(llm_kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS))
    audio_token_id = add_audio_token(tokenizer, audio_token)
    fit_vocabulary(language_model, audio_token_id + 1)

    speech_tower, sound_tower = (
        load_part(part, sources[part], **{"dtype": language_model.dtype, **part_kwargs[part]})
        for part in ("speech_tower", "sound_tower")
    )
    parts = {"speech_config": speech_tower, "sound_config": sound_tower, "text_config": language_model}
    sub_configs: dict[str, Any] = {name: part.config for name, part in parts.items() if part is not None}
    # A new configuration resets the attention of its sub-configurations unless told otherwise.
    attention = {name: sub_config._attn_implementation for name, sub_config in sub_configs.items()}
    config_kwargs.update(sub_configs, audio_token_id=audio_token_id, attn_implementation=attention)
    config = AudioListenConfig(**config_kwargs)
    config.dtype = language_model.dtype
    model = assemble(model_class, config, speech_tower, sound_tower, language_model)
    model.generation_config = copy.deepcopy(language_model.generation_config)
    # The audio token stands for what is heard, and is never said.
    model.generation_config.suppress_tokens = [audio_token_id]
    return model
