"""Generation with audio: it is encoded once, before the first step, and consumed in that step."""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .audio_tokens import check_token_count
from .modeling_audio_encoders import AudioFeatures
from .modeling_pretrained import AudioListenPreTrainedModel


# The arguments of `forward` that hold audio: features of chunks of waveforms, or what the encoders made of them.
AUDIO_INPUT_NAMES = (
    "input_features",
    "input_features_mask",
    "sound_input_values",
    "sound_attention_mask",
    *AudioFeatures._fields,
)


class AudioListenGenerationMixin(AudioListenPreTrainedModel, GenerationMixin):
    """
    Encodes audio before the first step and before the rows are repeated, so that every clip passes the encoders once
    for each call of `generate`, whatever the number of beams, return sequences and steps.
    """

    model: Any

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], model_input_name: str | None, *args: Any
    ) -> dict[str, Any]:
        audio = {name: model_kwargs.pop(name, None) for name in AUDIO_INPUT_NAMES}
        audio = {name: tensor for name, tensor in audio.items() if tensor is not None}
        if self.device.type != "meta":  # as it is where accelerate offloaded the weights, and moves the inputs itself
            audio = {name: tensor.to(self.device) for name, tensor in audio.items()}
        if audio:
            model_kwargs["mm_encoder_outputs"] = {"audio": self.model.get_audio_features(**audio, return_dict=True)}
        elif model_input_name == "input_ids" and not model_kwargs.get("mm_encoder_outputs"):
            cache = model_kwargs.get("past_key_values")
            if cache is None or cache.get_seq_length() == 0:
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
        **kwargs: Any,
    ) -> dict[str, Any]:
        is_empty = past_key_values is None or past_key_values.get_seq_length() == 0
        if mm_encoder_outputs and inputs_embeds is None and is_empty:
            # For transformers the first step of an assistant model is none, and only the first gets audio.
            is_first_iteration = True
        if mm_encoder_outputs and next_sequence_length is not None and is_first_iteration:
            # Continuing from a filled cache: the audio tokens that it holds already are cut from `input_ids`.
            is_audio = self._is_audio(input_ids)
            is_new = is_audio.clone()
            is_new[:, :-next_sequence_length] = False
            features = mm_encoder_outputs["audio"]["pooler_output"]
            if len(features) == int(is_audio.sum()):
                mm_encoder_outputs = _audio_output(features[is_new[is_audio].to(features.device)])
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def _is_audio(self, input_ids: torch.Tensor) -> torch.Tensor:
        audio_token_id = self.config.audio_token_id
        return torch.zeros_like(input_ids, dtype=torch.bool) if audio_token_id is None else input_ids == audio_token_id


def _audio_output(features: torch.Tensor) -> dict[str, Any]:
    return {"audio": BaseModelOutputWithPooling(pooler_output=features)}
