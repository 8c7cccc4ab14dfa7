"""Decoded audio: segments of one sampling rate each, what is missing from them, and the reasons of decoders."""

from dataclasses import dataclass

import numpy as np

from .waveform import check_sampling_rate, resample


@dataclass(frozen=True)
class Segment:
    """
    Samples of one sampling rate.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`, dtype float32): The mean of the channels.
        rate (`float`): Its sampling rate in Hz.
    """

    waveform: np.ndarray
    rate: float


@dataclass(frozen=True)
class Decoded:
    """
    What a decoder made of a file.

    Args:
        segments (`list[Segment]`): The audio in order; the rate may change within a file.
        problem (`str`, *optional*): Why the audio is incomplete, as a part of a sentence; `None` if it is complete.
    """

    segments: list[Segment]
    problem: str | None = None


def describe_error(error: Exception) -> str:
    """The reason that a decoder gives, without its number and the representation of the file object."""
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).strip().rstrip(".") or type(error).__name__


def join_segments(segments: list[Segment], name: str) -> tuple[np.ndarray, float]:
    """
    Joins segments at the rate of the first one.

    Args:
        segments (`list[Segment]`): At least one; those without samples are left out.
        name (`str`): What the error message calls this audio.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, dtype float32, and its sampling rate in Hz.

    Raises:
        ValueError: A rate is invalid.
    """
    segments = [segment for segment in segments if segment.waveform.size] or segments[:1]
    rate = check_sampling_rate(segments[0].rate, name)
    if len(segments) == 1:
        return segments[0].waveform, rate
    parts = [
        segment.waveform
        if segment.rate == rate
        else resample(segment.waveform, check_sampling_rate(segment.rate, name), int(rate))
        for segment in segments
    ]
    return np.concatenate(parts), rate
