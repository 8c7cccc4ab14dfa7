"""Generation with audio: encoded once, before the first step, and used in that step."""

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .audio_tokens import check_token_count
from .configuration_audio_listen import AudioListenConfig
from .forward_arguments import AUDIO_ARGUMENTS, CACHE


class AudioListenGenerationMixin(GenerationMixin):
    """
    Encodes audio before the first step and before the rows are repeated, so that the encoders run once per call of
    `generate`, independent of the number of beams, return sequences and steps.
    """

    config: AudioListenConfig
    model: Any

    def _maybe_prepare_encoder_kwargs_for_generation(
        self: Any, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], model_input_name: str | None, *args: Any
    ) -> dict[str, Any]:
        audio = {name: model_kwargs.pop(name, None) for name in AUDIO_ARGUMENTS}
        audio = {name: tensor for name, tensor in audio.items() if tensor is not None}
        # With weights offloaded by accelerate the device is "meta", and accelerate moves the inputs.
        if self.device.type != "meta":
            audio = {name: tensor.to(self.device) for name, tensor in audio.items()}
        if audio:
            model_kwargs["mm_encoder_outputs"] = {"audio": self.model.get_audio_features(**audio, return_dict=True)}
        elif model_input_name == "input_ids" and not model_kwargs.get("mm_encoder_outputs"):
            if _is_empty(model_kwargs.get(CACHE)):
                check_token_count(int(self._is_audio(inputs_tensor).sum()), 0)
        return model_kwargs

    def _expand_multimodal_outputs(
        self,
        input_ids: torch.LongTensor,
        mm_encoder_output: dict[str, Any],
        expand_size: int = 1,
        inputs_embeds: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        if "audio" not in mm_encoder_output:
            return mm_encoder_output
        features = mm_encoder_output["audio"]["pooler_output"]
        if inputs_embeds is None:
            is_audio = self._is_audio(input_ids)
            check_token_count(int(is_audio.sum()), len(features))
        else:
            is_audio = self.model.get_placeholder_mask(None, inputs_embeds, features)[..., 0]
        rows = features.split(is_audio.sum(-1).tolist())
        return _audio_output(torch.cat([row for row in rows for _ in range(expand_size)]))

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        mm_encoder_outputs: dict[str, Any] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        cache = past_key_values if cache is None else cache
        if mm_encoder_outputs and inputs_embeds is None and _is_empty(cache):
            # An assistant model's first step is not marked as the first, and only the first step gets audio.
            is_first_iteration = True
        if mm_encoder_outputs and next_sequence_length is not None and is_first_iteration:
            # With a filled cache, audio tokens that the cache covers are cut from `input_ids`.
            is_audio = self._is_audio(input_ids)
            is_new = is_audio.clone()
            is_new[:, :-next_sequence_length] = False
            features = mm_encoder_outputs["audio"]["pooler_output"]
            if len(features) == int(is_audio.sum()):
                mm_encoder_outputs = _audio_output(features[is_new[is_audio].to(features.device)])
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            mm_encoder_outputs=mm_encoder_outputs,
            **{CACHE: cache},
            **kwargs,
        )

    def _is_audio(self, input_ids: torch.Tensor) -> torch.Tensor:
        audio_token_id = self.config.audio_token_id
        return torch.zeros_like(input_ids, dtype=torch.bool) if audio_token_id is None else input_ids == audio_token_id


def audio_generation_config(generation_config: GenerationConfig | None, audio_token_id: int) -> GenerationConfig:
    """
    The generation configuration of an audio model: that of its language model, which additionally never generates the
    audio token, a placeholder.

    Args:
        generation_config ([`~transformers.GenerationConfig`], *optional*): That of the language model; not changed.
        audio_token_id (`int`): Id of the audio token.
    """
    config = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
    own = list(config.suppress_tokens or [])
    config.suppress_tokens = own if audio_token_id in own else [*own, audio_token_id]
    return config


def accept_published_values(config: GenerationConfig, published: GenerationConfig | None) -> None:
    """
    Lets a generation configuration be saved although it contains values without effect, such as a temperature without
    sampling, if these are the values that the language model was published with. transformers saves such a configuration
    only as long as nothing in it is changed, and the audio token is always added. Values that the user set are checked as
    in every model.

    Args:
        config ([`~transformers.GenerationConfig`]): The configuration to save, marked as acceptable in place.
        published ([`~transformers.GenerationConfig`], *optional*): The configuration as it was loaded.
    """
    if published is None or _is_strictly_valid(config):
        return
    others = copy.deepcopy(config)
    for name, value in published.to_diff_dict().items():
        if getattr(config, name, None) == value:
            setattr(others, name, getattr(GenerationConfig(), name, None))
    if _is_strictly_valid(others):
        config._original_object_hash = hash(config)


def _is_strictly_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def _is_empty(cache: Cache | None) -> bool:
    return cache is None or cache.get_seq_length() == 0


def _audio_output(features: torch.Tensor) -> dict[str, Any]:
    return {"audio": BaseModelOutputWithPooling(pooler_output=features)}
