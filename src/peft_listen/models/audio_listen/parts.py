"""The published parts of an AudioListen model: their names, how each is loaded, and the vocabulary they share."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from transformers.modeling_utils import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..beats.configuration_beats import BeatsConfig
from ..beats.modeling_beats import BeatsModel
from ..complete_weights import MissingWeightsError
from .hub_arguments import HUB_ARGUMENTS, PART_FILE_ARGUMENTS, Source, subset
from .language_head import input_device


@dataclass(frozen=True)
class Part:
    """
    One published part of [`AudioListenForCausalLM`].

    Args:
        name (`str`): Attribute of [`AudioListenModel`] that holds it, and its key in saved references.
        argument (`str`): Argument of `from_sub_models_pretrained` and `from_pretrained` that names its source.
        config_name (`str`): Field of [`AudioListenConfig`] that holds its configuration.
        weight_prefixes (`tuple[str, ...]`): Beginnings of the names of its weights in [`AudioListenForCausalLM`].
        loader (`Callable`): Loads it from a source with the arguments of `from_pretrained`.
    """

    name: str
    argument: str
    config_name: str
    weight_prefixes: tuple[str, ...]
    loader: Callable[..., Any]

    def load(self, source: Any, **kwargs: Any) -> Any:
        """
        Loads the part.

        Args:
            source (`str`, `os.PathLike` or `nn.Module`): Hub id, folder or file to load it from, or the part itself.
            kwargs: Arguments of its `from_pretrained`.

        Raises:
            `OSError`: if the source is not found; the message names the argument and the source.
            `ValueError`: if the source is of the wrong kind.
        """
        try:
            return self.loader(source, **kwargs)
        except OSError as error:
            raise OSError(f"`{self.argument}` cannot be loaded from {os.fspath(source)!r}. {error}") from error

    def owns(self, weight_name: str) -> bool:
        """Whether a weight of [`AudioListenForCausalLM`] belongs to this part."""
        return weight_name.startswith(self.weight_prefixes)

    def is_frozen(self, model: nn.Module) -> bool:
        """Whether the model has this part and none of its parameters requires gradients."""
        requires_grad = [weight.requires_grad for name, weight in model.named_parameters() if self.owns(name)]
        return bool(requires_grad) and not any(requires_grad)


def _load_speech_encoder(speech: Any, **kwargs: Any) -> WhisperEncoder:
    """Loads the encoder of a Whisper checkpoint, or takes it from a Whisper model; the decoder is dropped."""
    if isinstance(speech, WhisperEncoder):
        return speech
    if not isinstance(speech, nn.Module):
        config = _load_encoder_config(speech, kwargs)
        if not isinstance(config, WhisperConfig):
            raise ValueError(f"`speech` must be a Whisper checkpoint, but {speech} holds a {config.model_type} model.")
        speech = _load_complete(WhisperModel, "speech", speech, kwargs)
    if not isinstance(speech, (WhisperModel, WhisperForConditionalGeneration)):
        raise ValueError(f"`speech` must be a Whisper model, got a {type(speech).__name__}.")
    return speech.get_encoder()


def _load_sound_encoder(sound: Any, **kwargs: Any) -> Any:
    """Loads a BEATs encoder from a folder, a Hub id or an original checkpoint (a single file); a model is returned as is."""
    if sound is None or isinstance(sound, BeatsModel):
        return sound
    if isinstance(sound, nn.Module):
        raise ValueError(f"`sound` must be a BEATs model, got a {type(sound).__name__}.")
    if os.path.isfile(sound):
        model: nn.Module = BeatsModel.from_original_checkpoint(sound)
        return model.to(kwargs["dtype"]) if isinstance(kwargs.get("dtype"), torch.dtype) else model
    config = _load_encoder_config(sound, kwargs)
    if not isinstance(config, BeatsConfig):
        raise ValueError(f"`sound` must be a BEATs checkpoint, but {sound} holds a {config.model_type} model.")
    return _load_complete(BeatsModel, "sound", sound, kwargs)


def _load_encoder_config(source: Source, kwargs: dict[str, Any]) -> Any:
    """Loads the configuration of an encoder; no encoder needs code of its repository."""
    file_kwargs: Any = subset(kwargs, HUB_ARGUMENTS + PART_FILE_ARGUMENTS)
    return AutoConfig.from_pretrained(source, trust_remote_code=False, **file_kwargs)


def _load_complete(model_class: Any, argument: str, source: Source, kwargs: dict[str, Any]) -> Any:
    """Loads a part and requires all of its weights: frozen parts are never trained, so missing ones would stay random."""
    model, info = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    # Checkpoints with an encoder only lack Whisper's decoder, which is dropped anyway.
    missing = [name for name in info["missing_keys"] if not name.startswith("decoder.")]
    if missing:
        kind = "language model" if argument == "llm" else "encoder"
        raise MissingWeightsError(f"`{argument}`", source, missing, kind)
    return model


def _load_language_model(llm: Any, **kwargs: Any) -> PreTrainedModel:
    """Loads a causal language model from a folder or Hub id; a model is returned as is."""
    if not isinstance(llm, nn.Module):
        model: PreTrainedModel = _load_complete(AutoModelForCausalLM, "llm", llm, kwargs)
        return model
    if not isinstance(llm, PreTrainedModel):
        raise ValueError(
            f"`llm` must be a model of transformers, got a {type(llm).__name__}. To use an adapter, build the audio model "
            "first and add the adapter to it."
        )
    return llm


SPEECH = Part("speech_tower", "speech", "speech_config", ("model.speech_tower.",), _load_speech_encoder)
SOUND = Part("sound_tower", "sound", "sound_config", ("model.sound_tower.",), _load_sound_encoder)
# The head belongs to the language model.
LANGUAGE_MODEL = Part(
    "language_model", "llm", "text_config", ("model.language_model.", "lm_head."), _load_language_model
)
PARTS = (SPEECH, SOUND, LANGUAGE_MODEL)


def load_tokenizer(
    tokenizer: Source | PreTrainedTokenizerBase | None, llm: Source | nn.Module, llm_kwargs: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """
    Loads the language model's tokenizer.

    Args:
        tokenizer (`str`, `os.PathLike` or `PreTrainedTokenizerBase`, *optional*): Its source, or the tokenizer.
        llm (`str`, `os.PathLike` or `nn.Module`): The language model's source, for `tokenizer=None`.
        llm_kwargs (`dict`): Arguments of the language model's `from_pretrained`.

    Raises:
        `ValueError`: if both are missing: `tokenizer` is `None` and `llm` is a model.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    source = llm if tokenizer is None else tokenizer
    if isinstance(source, nn.Module):
        raise ValueError("`tokenizer` is needed if `llm` is a model: it defines the id of the audio token.")
    names = (*HUB_ARGUMENTS, *PART_FILE_ARGUMENTS, "trust_remote_code")
    return AutoTokenizer.from_pretrained(source, **subset(llm_kwargs, names))


@torch.no_grad()
def fit_vocabulary(language_model: Any, vocab_size: int) -> None:
    """
    Enlarges the embeddings and the head of a language model to at least `vocab_size` rows. New rows are the mean of the
    existing ones, so that new tokens do not get outlying logits.

    Raises:
        `ValueError`: if rows are missing and the embeddings are offloaded.
    """
    old_size = language_model.get_input_embeddings().weight.shape[0]
    if vocab_size <= old_size:
        return
    if language_model.get_input_embeddings().weight.is_meta:
        raise ValueError(
            "The embeddings of the language model are offloaded and cannot be enlarged for the audio token. Assign them a "
            "device in `device_map`, or enlarge the vocabulary of the saved language model first."
        )
    language_model.resize_token_embeddings(vocab_size, mean_resizing=False)
    head = language_model.get_output_embeddings()
    for rows in (language_model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)):
        if rows is not None:
            rows[old_size:] = rows[:old_size].float().mean(0).to(rows.dtype)


@torch.no_grad()
def embedding_scale(language_model: PreTrainedModel) -> float:
    """Root mean square of the input embeddings of a thousand tokens, evenly spaced in the vocabulary."""
    embedding: Any = language_model.get_input_embeddings()
    token_ids = torch.linspace(0, embedding.num_embeddings - 1, 1000, device=input_device(embedding)).long()
    return float(embedding(token_ids).float().square().mean().sqrt())
