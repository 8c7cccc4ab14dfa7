"""Waveforms: checks, scaling, mixing down and resampling of samples that are already decoded."""

import numbers
from typing import Any

import numpy as np
import torch


DEFAULT_SAMPLING_RATE = 16_000
MIN_SAMPLING_RATE = 1_000
MAX_SAMPLING_RATE = 768_000
MAX_CHANNELS = 8
# A loud float recording may exceed 1.0 by a few decibels; integer samples stored as floats exceed it by far more.
MAX_FLOAT_PEAK = 16.0

# Integer sample types: (value of silence, distance from silence to full scale).
_INTEGER_RANGES = {
    np.dtype(np.uint8): (128.0, 128.0),
    np.dtype(np.int16): (0.0, 2.0**15),
    np.dtype(np.int32): (0.0, 2.0**31),
}


def is_samples(value: Any) -> bool:
    """Whether `value` is one clip given as a list or tuple of numbers."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], (int, float, np.number))


def is_list_of_clips(value: Any) -> bool:
    """Whether `value` is a list or tuple of clips, possibly empty, and not one clip given as a list of numbers."""
    return isinstance(value, (list, tuple)) and not is_samples(value)


def check_audio(array: np.ndarray | torch.Tensor, name: str) -> None:
    """
    Checks that a waveform has at least one sample and that all samples are finite.

    Args:
        array (`np.ndarray` or `torch.Tensor`): Samples of any shape and any numeric dtype.
        name (`str`): What the error message calls this audio, such as its file name.

    Raises:
        ValueError: The audio is empty, or holds NaN or infinite samples.
    """
    array = as_array(array, name)
    if array.size == 0:
        raise ValueError(
            f"{name}: the audio is empty (0 samples), but at least one sample is needed. Leave this clip out, or "
            "record it again."
        )
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(
            f"{name}: {int((~finite).sum())} of {array.size} audio samples are NaN or infinite, but all must be finite. "
            "The clip was damaged by an earlier processing step: leave it out, or create it again."
        )


def check_peak(waveform: np.ndarray, name: str) -> None:
    """
    Checks that float samples are not integer samples that were never scaled.

    Args:
        waveform (`np.ndarray`): At least one float sample, of any shape.
        name (`str`): What the error message calls this audio.

    Raises:
        ValueError: The largest absolute sample exceeds 16.
    """
    # Without the absolute values of all samples, which would take as much memory as the clip.
    peak = max(float(waveform.max()), -float(waveform.min()))
    if peak > MAX_FLOAT_PEAK:
        raise ValueError(
            f"{name}: the largest sample is {peak:g}, but floating point audio should lie in [-1, 1]. If these are "
            "integer samples stored as floats, divide them by their full scale (32768 for 16 bit) or pass them with "
            "their integer dtype."
        )


def check_sampling_rate(sampling_rate: Any, name: str) -> float:
    """
    Checks a sampling rate.

    Args:
        sampling_rate: Expected to be a number of samples per second; `None` if it is unknown.
        name (`str`): What the error message calls this audio.

    Returns:
        `float`: The rate in Hz.

    Raises:
        ValueError: The rate is unknown, is not a number, or lies outside 1 kHz to 768 kHz.
    """
    if sampling_rate is None:
        raise ValueError(
            f"{name}: the sampling rate of these samples is unknown. Pass `sampling_rate=` in Hz (such as 16000), or a "
            'dictionary {"array": ..., "sampling_rate": ...}.'
        )
    is_number = isinstance(sampling_rate, numbers.Real) and not isinstance(sampling_rate, (bool, np.bool_))
    # NaN fails the comparison too.
    if not is_number or not MIN_SAMPLING_RATE <= float(sampling_rate) <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"{name}: the sampling rate {sampling_rate!r} is invalid. Expected a number of samples per second between "
            f"{MIN_SAMPLING_RATE} and {MAX_SAMPLING_RATE}, such as 16000."
        )
    return float(sampling_rate)


def as_array(samples: Any, name: str) -> np.ndarray:
    """
    Converts samples to a NumPy array of the same shape; bfloat16, which NumPy lacks, becomes float32.

    Args:
        samples: A tensor, an array, or nested lists of numbers.
        name (`str`): What the error message calls this audio.

    Raises:
        ValueError: Nested lists differ in length.
    """
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        return (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
    try:
        return np.asarray(samples)
    except ValueError as error:
        raise ValueError(f"{name}: the samples do not form a regular array ({error}).") from error


def to_float(samples: np.ndarray, name: str) -> np.ndarray:
    """
    Converts samples to float32; integers are scaled to [-1, 1] by the range of their dtype.

    Args:
        samples (`np.ndarray`): Floats, `int16`, `int32` or `uint8`, of any shape.
        name (`str`): What the error message calls this audio.

    Raises:
        ValueError: The samples have another dtype.
    """
    if samples.dtype in _INTEGER_RANGES:
        silence, full_scale = _INTEGER_RANGES[samples.dtype]
        return ((samples.astype(np.float64) - silence) / full_scale).astype(np.float32)
    if samples.dtype.kind == "f":
        # A float64 beyond float32's range becomes infinite, which check_audio reports.
        with np.errstate(over="ignore"):
            return samples.astype(np.float32)
    raise ValueError(
        f"{name}: samples of dtype {samples.dtype} are not supported, because their full scale is unknown. Expected "
        "floats in [-1, 1], or int16, int32 or uint8."
    )


def mix_down(samples: np.ndarray, name: str) -> np.ndarray:
    """
    Averages the channels of a clip.

    Args:
        samples (`np.ndarray` of shape `(num_samples,)`, `(channels, num_samples)` or `(num_samples, channels)`):
            One clip; of two axes, the shorter one holds the channels.
        name (`str`): What the error message calls this audio.

    Returns:
        `np.ndarray` of shape `(num_samples,)`.

    Raises:
        ValueError: The samples have another shape, or more than 8 channels.
    """
    if samples.ndim == 1:
        return samples
    if samples.ndim == 2:
        channel_axis = 0 if samples.shape[0] <= samples.shape[1] else 1
        if samples.shape[channel_axis] <= MAX_CHANNELS:
            return samples.mean(axis=channel_axis, dtype=np.float32) if samples.size else samples.reshape(-1)
    raise ValueError(
        f"{name}: samples of shape {samples.shape} are not one clip. Expected (num_samples,), (channels, num_samples) "
        f"or (num_samples, channels) with at most {MAX_CHANNELS} channels; pass several clips one by one."
    )


def resample(waveform: np.ndarray, sampling_rate: float, target_sampling_rate: int) -> np.ndarray:
    """
    Converts a waveform to another sampling rate by soxr (quality "HQ").

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): At least one sample, float32.
        sampling_rate (`float`): Its rate in Hz.
        target_sampling_rate (`int`): Rate of the result in Hz.

    Returns:
        `np.ndarray` of shape `(num_target_samples,)`, at least one sample; `waveform` itself if the rates are equal.

    Raises:
        ImportError: The rates differ and soxr is not installed.
    """
    if sampling_rate == target_sampling_rate:
        return waveform
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"Resampling audio from {sampling_rate:g} to {target_sampling_rate} Hz needs soxr: "
            'pip install "peft-listen[audio]"'
        ) from error
    resampled = soxr.resample(waveform, sampling_rate, target_sampling_rate, quality="HQ")
    # soxr returns no samples for a clip that is shorter than one sample at the target rate.
    return resampled if resampled.size else waveform[:1]
