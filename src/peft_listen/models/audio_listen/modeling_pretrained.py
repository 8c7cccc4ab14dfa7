"""What all AudioListen models share."""

import os
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .configuration_audio_listen import AudioListenConfig
from .modeling_window_qformer import WindowQFormerProjector


class AudioListenPreTrainedModel(PreTrainedModel):
    """Base of the AudioListen models: how weights start, which of them are frozen, and how they are loaded."""

    config: AudioListenConfig
    base_model_prefix = "model"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["WindowQFormerProjector"]
    _skip_keys_device_placement = ["past_key_values"]
    # The projector is small and is trained; SALMONN keeps it in float32 beside a language model in half precision too.
    _keep_in_fp32_modules_strict = ["multi_modal_projector"]
    # Quantisers leave out what matches these, from the beginning of the name.
    _keep_in_fp32_modules = [r".*multi_modal_projector"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WindowQFormerProjector):
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)

    @classmethod
    def is_custom_code(cls) -> bool:
        # transformers passes over modules without parameters of their own in the initialisation of custom code, and so
        # over the encoder of Whisper, which gives its positions their sinusoids. All initialisation here and in the
        # parts is by `transformers.initialization`, which needs no such care.
        return cls.is_remote_code()

    def freeze(self) -> None:
        """Takes the gradients from the encoders, and with `config.freeze_language_model` from the language model."""
        for name, parameter in self.named_parameters():
            is_encoder = "speech_tower." in name or "sound_tower." in name
            if is_encoder or (self.config.freeze_language_model and "multi_modal_projector." not in name):
                parameter.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading replaces the parameters by new ones, which require gradients.
        model.freeze()
        return loaded
