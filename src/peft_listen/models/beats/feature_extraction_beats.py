"""BEATs feature extractor: converts waveforms to a normalized log-mel filter bank."""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank, window_function
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import TensorType

from ...setting_types import check_integer, check_number, check_positive, check_switch


SAMPLING_RATE = 16000
FRAME_LENGTH = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms
FFT_LENGTH = 512
MIN_FRAMES = 16  # one column of patches
MIN_SAMPLES = FRAME_LENGTH + (MIN_FRAMES - 1) * HOP_LENGTH
PREEMPHASIS = 0.97
WAVEFORM_SCALE = 2.0**15  # Kaldi uses the range of 16-bit integers
ENERGY_FLOOR = 2.0**-23
# With this number of frames the intermediate buffers fit into the processor's cache.
FRAMES_PER_CHUNK = 512


@lru_cache(maxsize=8)
def _mel_filters(num_mel_bins: int, device: torch.device) -> torch.Tensor:
    with warnings.catch_warnings():
        # The fourth of 128 filters is narrower than one Fourier bin and therefore empty, as in Kaldi.
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        filters = mel_filter_bank(
            num_frequency_bins=FFT_LENGTH // 2 + 1,
            num_mel_filters=num_mel_bins,
            min_frequency=20.0,
            max_frequency=SAMPLING_RATE / 2,
            sampling_rate=SAMPLING_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    return torch.from_numpy(filters).to(device, torch.float32)  # [fourier_bins, num_mel_bins]


@lru_cache(maxsize=8)
def _povey_window(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(window_function(FRAME_LENGTH, "povey", periodic=False)).to(device, torch.float32)


class BeatsFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns mono 16 kHz waveforms into the normalized log-mel filter bank that [`BeatsModel`] expects: Kaldi's `fbank`
    with 128 bins, 25 ms frames every 10 ms, Povey window, no dither; then `(x - mean) / (2 * std)` (microsoft/unilm,
    `beats/`). Computed in torch, in chunks of frames, with the mel filters built once.

    Args:
        feature_size (`int`, *optional*, defaults to 128):
            Number of mel bins.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the waveforms in Hz. BEATs supports only 16000.
        mean (`float`, *optional*, defaults to 15.41663):
            Mean that is subtracted from the log-mel values.
        std (`float`, *optional*, defaults to 6.55582):
            Half of the value that the centered log-mel values are divided by.
        return_attention_mask (`bool`, *optional*, defaults to `True`):
            Whether to return `attention_mask`.

    `padding_value` is the normalized value of a silent frame (-2.391693): BEATs pads the waveform with zeros, not the
    filter bank.

    Raises:
        `ValueError`: if `sampling_rate` is not 16000, padding on the left is requested, or a setting has the wrong type.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = SAMPLING_RATE,
        mean: float = 15.41663,
        std: float = 6.55582,
        return_attention_mask: bool = True,
        **kwargs: Any,
    ) -> None:
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"BEATs expects audio at {SAMPLING_RATE} Hz only, got `sampling_rate={sampling_rate}`.")
        if kwargs.get("padding_side", "right") != "right":
            raise ValueError("BEATs pads audio only on the right. Leave out `padding_side`.")
        check_integer("feature_size", feature_size)
        check_number("mean", mean)
        check_positive("std", std)
        check_switch("return_attention_mask", return_attention_mask)
        # Saved configurations contain `padding_value`, which follows from `mean` and `std`.
        kwargs.pop("padding_value", None)
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=(float(np.log(ENERGY_FLOOR)) - mean) / (2 * std),
            return_attention_mask=return_attention_mask,
            **kwargs,
        )
        self.mean = mean
        self.std = std

    @staticmethod
    def get_num_frames(num_samples: int) -> int:
        """
        Number of filter-bank frames of a batch whose longest waveform has `num_samples` samples. Batches are padded to at
        least 2800 samples (0.175 s), which fill one column of patches.
        """
        return 1 + (max(num_samples, MIN_SAMPLES) - FRAME_LENGTH) // HOP_LENGTH

    def __call__(
        self,
        raw_speech: np.ndarray
        | torch.Tensor
        | Sequence[float]
        | Sequence[np.ndarray | torch.Tensor | Sequence[float]],
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_attention_mask: bool | None = None,
        device: str | torch.device = "cpu",
    ) -> BatchFeature:
        """
        Computes the features of one waveform or of a batch.

        The waveforms are padded with zeros on the right to the longest of the batch (at least 2800 samples) before the
        filter bank is computed. The frame mask follows the original: with N padded samples and T frames, frame j of a
        waveform of n samples is real if and only if `j * (N // T) < n`.

        Args:
            raw_speech (`np.ndarray`, `torch.Tensor`, `list[float]`, or a list of those):
                Mono waveforms of floating-point samples in [-1, 1], each of shape `(num_samples,)`.
            sampling_rate (`int`):
                Sampling rate of the waveforms in Hz. Must be given, and be 16000.
            return_tensors (`str` or [`~utils.TensorType`], *optional*):
                `"pt"` for `torch.Tensor`; NumPy arrays otherwise.
            return_attention_mask (`bool`, *optional*):
                Whether to return `attention_mask`; defaults to the extractor's own setting.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
                Device that computes the features. The results are returned on the CPU.

        Returns:
            [`BatchFeature`] with `input_values`, float32 of shape `(batch, frames, feature_size)`, and `attention_mask`,
            int64 of shape `(batch, frames)`, 1 for real frames and 0 for padding.

        Raises:
            `ValueError`: if the sampling rate is missing or wrong, or a waveform is empty, not mono, not
                floating-point, or contains NaN or infinity; the message names the waveform.
        """
        if sampling_rate is None:
            raise ValueError(
                f"`sampling_rate` must be given; BEATs expects audio at {self.sampling_rate} Hz. "
                f"Pass `sampling_rate={self.sampling_rate}` if the audio has that rate, else resample it first."
            )
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"BEATs expects audio at {self.sampling_rate} Hz, but `sampling_rate={sampling_rate}` was given. "
                f"Resample the audio to {self.sampling_rate} Hz first."
            )
        waveforms = _as_waveforms(raw_speech)
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device="cpu")
        num_samples = max(int(lengths.max()), MIN_SAMPLES)
        num_frames = self.get_num_frames(num_samples)

        features = {"input_values": self._extract_fbank_features(waveforms, num_frames, torch.device(device))}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            frame_starts = torch.arange(num_frames, device="cpu") * (num_samples // num_frames)
            features["attention_mask"] = (frame_starts < lengths[:, None]).long()
        return BatchFeature({name: tensor.numpy() for name, tensor in features.items()}, tensor_type=return_tensors)

    def _extract_fbank_features(
        self, waveforms: list[torch.Tensor], num_frames: int, device: torch.device
    ) -> torch.Tensor:
        mel_filters = _mel_filters(self.feature_size, device)
        window = _povey_window(device)
        silence = self._normalize_(torch.zeros(1, device=device))
        features = silence.expand(len(waveforms), num_frames, self.feature_size).contiguous()
        padded_frames = torch.zeros(
            FRAMES_PER_CHUNK, FFT_LENGTH, device=device
        )  # the columns after `FRAME_LENGTH` stay zero

        for row, waveform in zip(features, waveforms, strict=True):
            # Frames that are entirely padding already have the value of silence.
            num_filled = min(num_frames, -(-len(waveform) // HOP_LENGTH))
            scaled = torch.zeros((num_filled - 1) * HOP_LENGTH + FRAME_LENGTH, device=device)
            num_copied = min(len(waveform), len(scaled))
            torch.mul(waveform[:num_copied].to(device), WAVEFORM_SCALE, out=scaled[:num_copied])
            for chunk, output in zip(
                scaled.unfold(0, FRAME_LENGTH, HOP_LENGTH).split(FRAMES_PER_CHUNK),
                row[:num_filled].split(FRAMES_PER_CHUNK),
                strict=True,
            ):
                centered = chunk - chunk.mean(dim=-1, keepdim=True)
                frames = padded_frames[: len(chunk), :FRAME_LENGTH]
                torch.mul(centered[:, 0], 1 - PREEMPHASIS, out=frames[:, 0])
                torch.sub(centered[:, 1:], centered[:, :-1], alpha=PREEMPHASIS, out=frames[:, 1:])
                frames *= window
                spectrum = torch.view_as_real(torch.fft.rfft(padded_frames[: len(chunk)])).square()
                power = spectrum[..., 0] + spectrum[..., 1]  # [frames, fourier_bins]
                self._normalize_(torch.mm(power, mel_filters, out=output))
        return features.cpu()

    def _normalize_(self, energies: torch.Tensor) -> torch.Tensor:
        return energies.clamp_(min=ENERGY_FLOOR).log_().sub_(self.mean).div_(2 * self.std)


def _as_waveforms(raw_speech: Any) -> list[torch.Tensor]:
    """Converts a waveform or a batch of waveforms to float32 tensors of shape `(num_samples,)`, and checks them."""
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        batch: list[Any] = [raw_speech]
    elif not isinstance(raw_speech, (list, tuple)):
        raise ValueError(f"Expected a waveform or a list of waveforms, got {type(raw_speech).__name__}.")
    elif not raw_speech:
        raise ValueError("Expected at least one waveform with at least one sample, got an empty list.")
    elif isinstance(raw_speech[0], (np.ndarray, torch.Tensor, list, tuple)):
        batch = list(raw_speech)
    else:
        batch = [raw_speech]
    return [_as_waveform(audio, f"Audio {index + 1} of {len(batch)}") for index, audio in enumerate(batch)]


def _as_waveform(audio: Any, name: str) -> torch.Tensor:
    try:
        samples = audio.detach().cpu() if isinstance(audio, torch.Tensor) else np.asarray(audio)
    except ValueError as error:
        raise ValueError(f"{name} is not a list of samples: {error}") from error
    if samples.ndim != 1:
        raise ValueError(
            f"{name} must be mono, of shape (num_samples,), but has shape {tuple(samples.shape)}. Average the channels "
            "of stereo audio first, and pass a batch as a list of waveforms."
        )
    if len(samples) == 0:
        raise ValueError(f"{name} is empty. Leave it out, or pass at least one sample.")
    is_floating = samples.is_floating_point() if isinstance(samples, torch.Tensor) else samples.dtype.kind == "f"
    if not is_floating:
        raise ValueError(
            f"{name} must hold floating-point samples in [-1, 1], but has dtype {samples.dtype}. "
            "Divide 16-bit integer samples by 32768."
        )
    if isinstance(samples, np.ndarray):
        # torch shares memory only with native, contiguous, writable arrays.
        samples = torch.from_numpy(np.require(samples, np.float32, ["C", "W"]))
    waveform = samples.float()
    lowest, highest = waveform.aminmax()  # NaN if any sample is
    if not (lowest.isfinite() and highest.isfinite()):
        raise ValueError(f"{name} holds NaN or infinite samples. Check the file it was read from.")
    return waveform


__all__ = ["BeatsFeatureExtractor"]
