"""The window-level Q-Former: from the frames of two audio encoders to embeddings of a language model."""

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, LlamaConfig, WhisperConfig
from transformers.modeling_utils import local_torch_dtype

from ..beats.configuration_beats import BeatsConfig
from .configuration_audio_listen import AudioListenConfig


FRAMES_PER_SECOND = 50


class WindowQFormerProjector(nn.Module):
    """
    Turns frames of audio into a few embeddings of the language model for each window of time, as SALMONN does
    (bytedance/SALMONN, arXiv 2310.13289, section 3).

    Both encoders' frames (50 a second) are normalised, the shorter sequence is padded with zeros, and the two are
    concatenated in features, speech first. The result is cut into windows of `config.window_length` frames, of which
    the last, incomplete one is dropped; queries attend to each window through a Q-Former without any mask; a linear
    layer maps what they found to the width of the language model.

    Args:
        config ([`AudioListenConfig`]): The sizes of the encoders, the Q-Former, the windows and the language model.
    """

    def __init__(self, config: AudioListenConfig) -> None:
        super().__init__()
        qformer_size = config.qformer_config.hidden_size
        self.window_length = config.window_length
        self.window_stride = config.window_stride
        self.num_queries = config.num_queries
        # It stays in float32 whatever the model around it is built in.
        with local_torch_dtype(torch.float32):
            self.speech_layer_norm = nn.LayerNorm(config.speech_config.hidden_size)
            self.sound_layer_norm = nn.LayerNorm(config.sound_config.hidden_size) if config.sound_config else None
            queries = config.initializer_range * torch.randn(1, config.num_queries, qformer_size)
            self.query_tokens = nn.Parameter(queries)
            self.qformer = Blip2QFormerModel(config.qformer_config)
            self.linear = nn.Linear(qformer_size, config.text_config.hidden_size)

    @torch.no_grad()
    def scale_to(self, scale: float) -> None:
        """
        Scales the last layer so that the embeddings of a new projector begin at a root mean square of `scale` (ours).

        SALMONN leaves it at its initial weights, which put audio embeddings far off the scale of those of text; a
        prompt's mean is then the projector's constant part and little else.
        """
        # The Q-Former ends in a LayerNorm: its output has a root mean square of 1.
        self.linear.weight.mul_(scale / (self.linear.weight.std() * self.linear.in_features**0.5))

    def forward(
        self,
        speech: torch.Tensor,
        sound: torch.Tensor | None = None,
        sound_mask: torch.Tensor | None = None,
        num_windows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            speech (`torch.Tensor` of shape `(batch_size, frames, speech_size)`):
                Frames of the speech encoder. Fewer than one window of them are padded with zeros.
            sound (`torch.Tensor` of shape `(batch_size, sound_frames, sound_size)`, *optional*):
                Frames of the sound encoder; needed if and only if the configuration has one.
            sound_mask (`torch.BoolTensor` of shape `(batch_size, sound_frames)`, *optional*):
                False where `sound` is padding, which counts as absent.
            num_windows (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Windows wanted of each row, counted from its start. All windows of all rows if `None`.

        Returns:
            `torch.Tensor` of shape `(batch_size, windows * num_queries, text_hidden_size)`, window by window. With
            `num_windows`, of shape `(num_windows.sum() * num_queries, text_hidden_size)`, row after row.

        Raises:
            `ValueError`: if `sound` is missing or was not expected, or there are fewer windows than `num_windows` asks
                for.
        """
        frames = self._fuse(speech, sound, sound_mask)
        windows = frames.unfold(1, self.window_length, self.window_stride).transpose(-1, -2)
        if num_windows is None:
            batch_size, windows_per_row = windows.shape[:2]
            tokens = self._query(windows.flatten(0, 1))  # [batch * windows, num_queries, text_hidden]
            return tokens.reshape(batch_size, windows_per_row * self.num_queries, -1)
        if int(num_windows.max()) > windows.shape[1]:
            raise ValueError(
                f"{int(num_windows.max())} windows of {self.window_length} frames, one every {self.window_stride}, were "
                f"asked for, but the {frames.shape[1]} frames given hold only {windows.shape[1]}."
            )
        wanted = torch.arange(windows.shape[1], device=frames.device) < num_windows.to(frames.device)[:, None]
        return self._query(windows[wanted]).flatten(0, 1)

    def _fuse(self, speech: torch.Tensor, sound: torch.Tensor | None, sound_mask: torch.Tensor | None) -> torch.Tensor:
        """The normalised frames of both encoders side by side, at least one window long."""
        dtype = self.speech_layer_norm.weight.dtype
        num_frames = max(speech.shape[1], self.window_length)
        normalised = [self.speech_layer_norm(speech.to(dtype))]
        if (sound is None) != (self.sound_layer_norm is None):
            raise ValueError(
                "The projector was built for a sound encoder, but no sound features were given."
                if sound is None
                else "Sound features were given, but the projector was built without a sound encoder."
            )
        if sound is not None and self.sound_layer_norm is not None:
            num_frames = max(num_frames, sound.shape[1])
            sound = self.sound_layer_norm(sound.to(dtype))
            if sound_mask is not None:
                sound = sound * sound_mask[..., None].to(sound)
            normalised.append(sound)
        padded = [nn.functional.pad(part, (0, 0, 0, num_frames - part.shape[1])) for part in normalised]
        return torch.cat(padded, dim=-1)  # [batch, frames, speech_size + sound_size]

    def _query(self, windows: torch.Tensor) -> torch.Tensor:
        queries = self.query_tokens.expand(len(windows), -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=windows, return_dict=True)
        return self.linear(output.last_hidden_state)  # [windows, num_queries, text_hidden]

    @classmethod
    def from_salmonn_state_dict(
        cls,
        state_dict: dict[str, torch.Tensor],
        *,
        speech_dim: int,
        audio_dim: int | None,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        second_per_window: float = 0.333333,
        second_stride: float = 0.333333,
    ) -> "WindowQFormerProjector":
        """
        Builds the projector from a checkpoint of SALMONN.

        Args:
            state_dict (`dict[str, torch.Tensor]`):
                What a SALMONN checkpoint holds under `"model"`: `speech_Qformer.*`, `speech_query_tokens`,
                `speech_llama_proj.*`, `ln_speech.*` and `ln_audio.*`. Other entries, such as LoRA's, are ignored.
            speech_dim (`int`): Width of Whisper's encoder.
            audio_dim (`int` or `None`): Width of BEATs, or `None` where the checkpoint was trained without it.
            num_hidden_layers (`int`): Layers of the Q-Former.
            num_attention_heads (`int`): Attention heads of the Q-Former.
            intermediate_size (`int`): Width of the Q-Former's feed-forward layers.
            second_per_window (`float`, *optional*, defaults to 0.333333): Length of a window in seconds.
            second_stride (`float`, *optional*, defaults to 0.333333): Seconds between the starts of two windows.

        Raises:
            `ValueError`: if weights are missing, or do not fit the sizes given.
        """
        if "speech_query_tokens" not in state_dict or "speech_llama_proj.weight" not in state_dict:
            raise ValueError(
                "This is no state dict of SALMONN: `speech_query_tokens` and `speech_llama_proj.weight` are expected. "
                'Pass what the checkpoint holds under "model".'
            )
        num_queries, qformer_size = state_dict["speech_query_tokens"].shape[1:]
        text_dim = len(state_dict["speech_llama_proj.weight"])
        # Of the encoders and the language model the projector reads the width only.
        config = AudioListenConfig(
            speech_config=WhisperConfig(d_model=speech_dim, encoder_attention_heads=1, decoder_attention_heads=1),
            sound_config=None if audio_dim is None else _beats_config(audio_dim),
            qformer_config=Blip2QFormerConfig(
                hidden_size=qformer_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                intermediate_size=intermediate_size,
                cross_attention_frequency=1,
            ),
            text_config=LlamaConfig(hidden_size=text_dim, num_attention_heads=1, num_key_value_heads=1),
            num_queries=num_queries,
            window_length=round(FRAMES_PER_SECOND * second_per_window),
            window_stride=round(FRAMES_PER_SECOND * second_stride),
        )
        projector = cls(config)
        try:
            projector.load_state_dict(_convert_salmonn_state_dict(state_dict))
        except RuntimeError as error:
            raise ValueError(f"The SALMONN checkpoint does not fit the sizes given. {error}") from error
        return projector


def _beats_config(hidden_size: int) -> BeatsConfig:
    return BeatsConfig(hidden_size=hidden_size, num_attention_heads=1, num_conv_pos_embedding_groups=1)


def _convert_salmonn_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames SALMONN's weights to those of [`WindowQFormerProjector`], and drops all others."""
    plain = {
        "speech_query_tokens": "query_tokens",
        "ln_speech.weight": "speech_layer_norm.weight",
        "ln_speech.bias": "speech_layer_norm.bias",
        "ln_audio.weight": "sound_layer_norm.weight",
        "ln_audio.bias": "sound_layer_norm.bias",
        "speech_llama_proj.weight": "linear.weight",
        "speech_llama_proj.bias": "linear.bias",
    }
    prefix = "speech_Qformer.bert."
    renamed = {}
    for name, tensor in state_dict.items():
        if name in plain:
            renamed[plain[name]] = tensor
        elif name.startswith(prefix) and not name.endswith("position_ids"):
            name = name.removeprefix(prefix).replace("embeddings.LayerNorm.", "layernorm.")
            renamed["qformer." + name.replace("attention.self.", "attention.attention.")] = tensor
    return renamed


__all__ = ["WindowQFormerProjector"]
