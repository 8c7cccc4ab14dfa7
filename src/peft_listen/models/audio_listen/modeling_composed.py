"""The model as a composition of published parts: how it is put together, saved without them, and loaded again."""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..beats.modeling_beats import BeatsModel
from .audio_tokens import AUDIO_TOKEN
from .composition import PART_ARGUMENTS, Source, build
from .frozen_references import (
    Reference,
    is_within,
    load_config,
    load_with_references,
    make_reference,
    reference_frozen_parts,
    resolve_adapter,
)
from .modeling_pretrained import AudioListenPreTrainedModel


if TYPE_CHECKING:
    from typing import Self


class ComposedModel(AudioListenPreTrainedModel):
    """What [`AudioListenForCausalLM`] knows about the published parts it is made of."""

    model: Any
    lm_head: nn.Module
    # Where each part was loaded from, for `save_pretrained(..., save_frozen=False)`.
    frozen_references: dict[str, Reference]

    @classmethod
    def from_sub_models_pretrained(
        cls,
        *,
        speech: Source | PreTrainedModel,
        llm: Source | PreTrainedModel,
        sound: Source | BeatsModel | None = None,
        tokenizer: Source | PreTrainedTokenizerBase | None = None,
        audio_token: str = AUDIO_TOKEN,
        dtype: torch.dtype | str | None = None,
        speech_kwargs: dict[str, Any] | None = None,
        sound_kwargs: dict[str, Any] | None = None,
        llm_kwargs: dict[str, Any] | None = None,
        **config_kwargs: Any,
    ) -> "Self":
        """
        Builds the model from published parts and a new projector.

        Args:
            speech (`str`, `os.PathLike` or `PreTrainedModel`):
                Hub id or folder of a Whisper checkpoint, or a Whisper model. Its encoder is used.
            llm (`str`, `os.PathLike` or `PreTrainedModel`):
                Hub id or folder of a causal language model, or the model. Its vocabulary is enlarged by the audio token
                if it has no row left for it.
            sound (`str`, `os.PathLike` or [`BeatsModel`], *optional*):
                Folder of a BEATs checkpoint in transformers' format, an original BEATs file, or a BEATs model.
            tokenizer (`str`, `os.PathLike` or `PreTrainedTokenizerBase`, *optional*):
                The language model's tokenizer; given the audio token if it lacks it. Defaults to that of `llm`.
            audio_token (`str`, *optional*, defaults to `"<|audio|>"`):
                Stands for audio in the text.
            dtype (`torch.dtype`, *optional*):
                Data type of the language model, and of the encoders with it. The projector stays in float32.
            speech_kwargs, sound_kwargs, llm_kwargs (`dict`, *optional*):
                More arguments for the `from_pretrained` of each part: `revision`, `device_map`, `quantization_config`...
            config_kwargs:
                Other fields of [`AudioListenConfig`], such as `qformer_config`.

        Raises:
            `OSError`: if a part is not found.
            `ValueError`: if a part is of the wrong kind, or the language model cannot be given embeddings.

        Example:

        ```python
        >>> model = AudioListenForCausalLM.from_sub_models_pretrained(
        ...     speech="openai/whisper-large-v2", sound="BEATs_iter3_plus_AS2M.pt", llm="Qwen/Qwen2.5-7B-Instruct"
        ... )
        ```"""
        part_kwargs = {"speech_tower": speech_kwargs, "sound_tower": sound_kwargs, "language_model": llm_kwargs}
        sources = {"speech_tower": speech, "sound_tower": sound, "language_model": llm}
        model: Any = build(
            cls,
            sources,
            {part: kwargs or {} for part, kwargs in part_kwargs.items()},
            tokenizer=tokenizer,
            audio_token=audio_token,
            dtype=dtype,
            **config_kwargs,
        )
        model.frozen_references = {
            part: make_reference(source, part_kwargs[part] or {})
            for part, source in sources.items()
            if source is not None
        }
        return model

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """
        Loads a checkpoint as every model of transformers does.

        Parts that `save_pretrained(..., save_frozen=False)` left out are loaded from where they were; if they have
        moved, `speech`, `sound` and `llm` (a hub id, a folder or a model each) say where they are now.

        Raises:
            `OSError`: if the checkpoint, or a part that it refers to, is not found.
            `ValueError`: if a part is not the one that the checkpoint was saved with.
        """
        sources = {part: kwargs.pop(argument, None) for part, argument in PART_ARGUMENTS.items()}
        if pretrained_model_name_or_path is not None:
            base, adapter = resolve_adapter(pretrained_model_name_or_path, kwargs)
            config = load_config(base, kwargs)
            if config.frozen_references:
                return load_with_references(cls, base, config, sources, kwargs, adapter)
        if any(source is not None for source in sources.values()):
            raise ValueError(
                f"{pretrained_model_name_or_path} was saved whole: `speech`, `sound` and `llm` cannot replace its parts."
            )
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, save_frozen: bool = True, **kwargs: Any
    ) -> None:
        """
        Saves the model as every model of transformers does.

        Args:
            save_directory (`str` or `os.PathLike`):
                Folder to save to.
            save_frozen (`bool`, *optional*, defaults to `True`):
                `False` leaves out the encoders and the language model, as far as none of their parameters requires
                gradients, and saves where they came from instead; `from_pretrained` loads them again from there.
            args, kwargs: Other arguments of [`~transformers.PreTrainedModel.save_pretrained`].

        Raises:
            `ValueError`: with `save_frozen=False`, if a part was not loaded from anywhere; without it, if the language
                model alone is quantised.
        """
        quantizer = getattr(self, "hf_quantizer", None)
        if save_frozen and quantizer is not None and not hasattr(self.config, "quantization_config"):
            raise ValueError(
                "The language model was quantised before the model was put together, so that the whole cannot be loaded "
                "again as it is. Save it with `save_frozen=False`, which keeps a reference to the language model."
            )
        if not save_frozen:
            references = reference_frozen_parts(self)
            weights = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = {name: w for name, w in weights.items() if not is_within(name, references)}
            self.config.frozen_references = references
            # A quantiser would save the weights of its own modules too.
            self.hf_quantizer = None
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.frozen_references = None
            if quantizer is not None:
                self.hf_quantizer = quantizer
