"""Window-level Q-Former: maps frames of two audio encoders to embeddings of a language model."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import Blip2QFormerModel
from transformers.modeling_utils import local_torch_dtype
from transformers.utils.generic import maybe_autocast

from .configuration_audio_listen import AudioListenConfig


# Least standard deviation that `standardize` divides by: a channel that hardly varies is not amplified more than tenfold.
_MIN_DEVIATION = 0.1


class WindowQFormerProjector(nn.Module):
    """
    Turns each window of audio frames into a few embeddings of the language model, as SALMONN does
    (bytedance/SALMONN, arXiv 2310.13289, section 3).

    The frames of both encoders (50 per second) are normalized, the shorter sequence is padded with zeros, and the two are
    concatenated along the feature axis, speech first. The result is split into windows of `config.window_length` frames;
    an incomplete last window is dropped. Queries attend to each window through a Q-Former without a mask, and a linear
    layer maps the Q-Former's outputs to the width of the language model.

    Args:
        config ([`AudioListenConfig`]): The sizes of the encoders, the Q-Former, the windows and the language model.
    """

    def __init__(self, config: AudioListenConfig) -> None:
        super().__init__()
        qformer_size = config.qformer_config.hidden_size
        self.window_length = config.window_length
        self.window_stride = config.window_stride
        self.num_queries = config.num_queries
        # The projector stays in float32, independent of the dtype of the model.
        with local_torch_dtype(torch.float32):
            self.speech_layer_norm = nn.LayerNorm(config.speech_config.hidden_size)
            self.sound_layer_norm = nn.LayerNorm(config.sound_config.hidden_size) if config.sound_config else None
            queries = config.qformer_config.initializer_range * torch.randn(1, config.num_queries, qformer_size)
            self.query_tokens = nn.Parameter(queries)
            self.qformer = Blip2QFormerModel(config.qformer_config)
            self.linear = nn.Linear(qformer_size, config.text_config.hidden_size)

    @torch.no_grad()
    def scale_to(self, scale: float) -> None:
        """
        Scales the last layer so that the embeddings of a new projector have a root mean square of `scale` (not part of
        SALMONN).

        SALMONN keeps the initial weights, with which the scale of audio embeddings differs widely from that of text
        embeddings, and the mean over a prompt is dominated by a component that is the same for all audio.

        Args:
            scale (`float`): Root mean square of the language model's input embeddings.
        """
        # The Q-Former ends in a LayerNorm: its output has a root mean square of 1.
        self.linear.weight.mul_(scale / (self.linear.weight.std() * self.linear.in_features**0.5))

    @property
    def is_new(self) -> bool:
        """Whether the first layer norms have their initial weights, which [`standardize`] and training change."""
        norms = [norm for norm in (self.speech_layer_norm, self.sound_layer_norm) if norm is not None]
        return all(bool((norm.weight == 1).all() and (norm.bias == 0).all()) for norm in norms)

    @torch.no_grad()
    def standardize(self, frames: Iterable[tuple[torch.Tensor | None, torch.Tensor | None]]) -> None:
        """
        Sets the weights and biases of the first layer norms so that over the given frames each channel of each encoder has
        the mean 0 and the standard deviation 1 (not part of SALMONN). A channel is amplified at most tenfold.

        Without it, the few channels of a speech encoder that vary most hide the others, in which two voices differ.

        Args:
            frames (`Iterable[tuple[torch.Tensor | None, torch.Tensor | None]]`):
                Frames of the speech encoder, of shape `(num_frames, speech_size)`, and of the sound encoder, of shape
                `(num_sound_frames, sound_size)`, without padding, or `None`.

        Raises:
            `ValueError`: if there are fewer than two frames, or values that are not finite.
        """
        norms = [norm for norm in (self.speech_layer_norm, self.sound_layer_norm) if norm is not None]
        moments = [_Moments(norm, name) for norm, name in zip(norms, ("speech", "sound"), strict=False)]
        for pair in frames:
            for moment, part in zip(moments, pair, strict=False):
                moment.add(part)
        scales = [moment.result() for moment in moments]  # all of them before one is set
        for norm, (mean, deviation) in zip(norms, scales, strict=True):
            norm.weight.copy_(1 / deviation)
            norm.bias.copy_(-mean / deviation)

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
                Frames of the speech encoder. Padded with zeros to at least one window.
            sound (`torch.Tensor` of shape `(batch_size, sound_frames, sound_size)`, *optional*):
                Frames of the sound encoder; needed if and only if the configuration has one.
            sound_mask (`torch.BoolTensor` of shape `(batch_size, sound_frames)`, *optional*):
                False where `sound` is padding; these frames are set to zero.
            num_windows (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Number of windows to return per row, from its start. All windows of all rows if `None`.

        Returns:
            `torch.Tensor` of shape `(batch_size, windows * num_queries, text_hidden_size)`, window by window, of the dtype of the
            projector's weights, also under autocast. With
            `num_windows`, of shape `(num_windows.sum() * num_queries, text_hidden_size)`, row after row.

        Raises:
            `ValueError`: if `sound` is missing or not expected, or there are fewer windows than `num_windows`.
        """
        # Autocast is left, as in transformers' rotary embeddings: what tells two voices apart is small in the features of the
        # encoders, and rounding to bfloat16 loses it.
        with maybe_autocast(speech.device.type, enabled=False):
            return self._project(speech, sound, sound_mask, num_windows)

    def _project(
        self,
        speech: torch.Tensor,
        sound: torch.Tensor | None,
        sound_mask: torch.Tensor | None,
        num_windows: torch.Tensor | None,
    ) -> torch.Tensor:
        frames = self._fuse(speech, sound, sound_mask)
        windows = frames.unfold(1, self.window_length, self.window_stride).transpose(-1, -2)
        if num_windows is None:
            batch_size, windows_per_row = windows.shape[:2]
            tokens = self._query(windows.flatten(0, 1))  # [batch * windows, num_queries, text_hidden]
            return tokens.reshape(batch_size, windows_per_row * self.num_queries, -1)
        if int(num_windows.max()) > windows.shape[1]:
            raise ValueError(
                f"{int(num_windows.max())} windows of {self.window_length} frames, one every {self.window_stride}, were "
                f"requested, but the {frames.shape[1]} frames given hold only {windows.shape[1]}. Pass more frames."
            )
        is_needed = torch.arange(windows.shape[1], device=frames.device) < num_windows.to(frames.device)[:, None]
        return self._query(windows[is_needed]).flatten(0, 1)

    def _fuse(self, speech: torch.Tensor, sound: torch.Tensor | None, sound_mask: torch.Tensor | None) -> torch.Tensor:
        """Normalizes the frames of both encoders and concatenates them; the result has at least one window."""
        dtype = self.speech_layer_norm.weight.dtype
        num_frames = max(speech.shape[1], self.window_length)
        normalized = [self.speech_layer_norm(speech.to(dtype))]
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
            normalized.append(sound)
        padded = [nn.functional.pad(part, (0, 0, 0, num_frames - part.shape[1])) for part in normalized]
        return torch.cat(padded, dim=-1)  # [batch, frames, speech_size + sound_size]

    def _query(self, windows: torch.Tensor) -> torch.Tensor:
        queries = self.query_tokens.expand(len(windows), -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=windows, return_dict=True)
        return self.linear(output.last_hidden_state)  # [windows, num_queries, text_hidden]


class _Moments:
    """Mean and standard deviation of each channel that a layer norm normalizes, before its own weights and biases."""

    def __init__(self, norm: nn.LayerNorm, encoder: str) -> None:
        self.norm = norm
        self.encoder = encoder
        self.count = 0
        self.total = torch.zeros(norm.normalized_shape, dtype=torch.float64, device="cpu")
        self.total_of_squares = torch.zeros_like(self.total)

    def add(self, frames: torch.Tensor | None) -> None:
        if frames is None:
            return
        normalized = nn.functional.layer_norm(frames.float(), self.norm.normalized_shape, eps=self.norm.eps)
        normalized = normalized.cpu().double()
        self.count += len(normalized)
        self.total += normalized.sum(0)
        self.total_of_squares += normalized.square().sum(0)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.count < 2:
            raise ValueError(
                f"{self.count} frames of the {self.encoder} encoder were given, and at least 2 are needed. Pass clips with "
                "audio."
            )
        mean = self.total / self.count
        deviation = (self.total_of_squares / self.count - mean.square()).clamp_min(0).sqrt()
        if not bool(deviation.isfinite().all()):
            raise ValueError(
                f"The frames of the {self.encoder} encoder contain NaN or infinite values. Check the clips and "
                "the data type of the encoders."
            )
        return mean, deviation.clamp_min(_MIN_DEVIATION)


__all__ = ["WindowQFormerProjector"]
