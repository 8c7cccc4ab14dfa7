"""Audio loading: reads one clip from a path, URL, bytes, array or dictionary."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from .addresses import display_name, is_data_uri, is_url, read_data_uri
from .decoding import decode
from .download import download
from .files import read_bounded, read_file
from .limits import AudioLimits, check_length, check_size, resolve_limits
from .waveform import (
    DEFAULT_SAMPLING_RATE,
    MIN_SAMPLING_RATE,
    as_array,
    check_audio,
    check_peak,
    check_sampling_rate,
    mix_down,
    resample,
    to_float,
)


# Anything `load_audio` reads: path, URL, encoded bytes, binary file, samples, or one of the dictionaries it documents.
AudioSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | np.ndarray
    | torch.Tensor
    | Sequence[float]
    | Mapping[str, Any]
)


def load_audio(
    source: AudioSource,
    sampling_rate: float | None = None,
    *,
    target_sampling_rate: int = DEFAULT_SAMPLING_RATE,
    limits: AudioLimits | None = None,
) -> np.ndarray:
    """
    Reads one clip and returns it as a mono waveform at `target_sampling_rate`.

    Channels are mixed down by their mean and the rate is converted by soxr (quality "HQ"). Files are decoded by
    soundfile (WAV, FLAC, OGG, AIFF, ...) or PyAV (MP3, MP4/M4A, WebM, AMR, WMA, ...); if one of them cannot read a file
    to its end, the other one is tried. Silence and clips of one sample are valid.

    A file is read whole or not at all: the lengths in its header are hints, and the decoded audio is compared with what
    the file contains. Pipes, devices and playlists are refused, and files are read within `limits`.

    Args:
        source ([`AudioSource`]):
            One of

            - `str` or `os.PathLike`: path of a regular audio file; a `str` may be an http(s) URL or a `data:` URI in
              base64;
            - `bytes` or a binary file object: the content of an audio file;
            - `np.ndarray`, `torch.Tensor` or list of floats: samples of shape `(num_samples,)`,
              `(channels, num_samples)` or `(num_samples, channels)` (the shorter axis, of length 8 at most, holds the
              channels). `int16`, `int32` and `uint8` are scaled by their range; floats are not scaled and should lie
              in [-1, 1];
            - `dict`: `{"array", "sampling_rate"}` or `{"path", "bytes"}` (the columns of `datasets.Audio`),
              or `{"raw", "sampling_rate"}` (transformers' speech recognition pipeline);
            - a torchcodec `AudioDecoder`, the value of a decoded `datasets.Audio` column.
        sampling_rate (`float`, *optional*):
            Rate of `source` in Hz, required if it holds samples only. Encoded files declare their own rate and
            dictionaries of samples their `sampling_rate`: both take precedence over this argument.
        target_sampling_rate (`int`, defaults to 16000):
            Rate of the result in Hz.
        limits ([`AudioLimits`], *optional*):
            Limits on the length, the size, the time and the addresses. By default those of [`set_default_limits`], which
            are an hour of audio, 1 GiB, and 120 seconds each for a download and for decoding.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, dtype `float32`, full scale at 1.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError:
            A file or URL that cannot be opened, is empty, is truncated or contains no audio that can be decoded, or a
            clip that exceeds a limit ([`LimitError`]).
        ValueError:
            Samples that are empty, not finite, of an unsupported type, shape or range, or whose rate is unknown or
            invalid.
        ImportError:
            A file must be decoded or resampled and soundfile or soxr is not installed.
    """
    target_sampling_rate = int(check_sampling_rate(target_sampling_rate, "target_sampling_rate"))
    samples, rate, name = _read(source, sampling_rate, resolve_limits(limits))
    waveform = mix_down(to_float(samples, name), name)
    check_audio(waveform, name)
    check_peak(waveform, name)
    return resample(waveform, rate, target_sampling_rate)


def _read(source: Any, sampling_rate: float | None, limits: AudioLimits) -> tuple[np.ndarray, float, str]:
    """Returns the stored samples, their rate in Hz, and a name of the source for error messages."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = display_name(path)
        return *decode(_read_address(path, name, limits), name, limits), name
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = "audio bytes"
        check_size(memoryview(source).nbytes, name, limits)
        return *decode(bytes(source), name, limits), name
    if isinstance(source, Mapping):
        return _read_mapping(source, sampling_rate, limits)
    if hasattr(source, "get_all_samples"):
        _check_duration(source, limits)
        decoded = source.get_all_samples()
        samples, rate = as_array(decoded.data, "audio").mean(axis=0), float(decoded.sample_rate)
        return _within(limits, samples, rate, "audio"), rate, "audio"
    if hasattr(source, "read"):
        name = display_name(str(getattr(source, "name", "audio file object")))
        return *decode(read_bounded(source, name, limits), name, limits), name
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        rate = check_sampling_rate(sampling_rate, "audio")
        return _within(limits, as_array(source, "audio"), rate, "audio"), rate, "audio"
    raise ValueError(
        f"audio: a {type(source).__name__} cannot be read as audio. Pass a path, an http(s) URL, the bytes of an audio "
        "file, a binary file object, an array with its sampling rate, or a dictionary such as "
        '{"array": ..., "sampling_rate": ...}.'
    )


def _read_mapping(
    source: Mapping[str, Any], sampling_rate: float | None, limits: AudioLimits
) -> tuple[np.ndarray, float, str]:
    path = source.get("path")
    name = display_name(os.fsdecode(path)) if path else "audio"
    for key in ("array", "raw"):
        if source.get(key) is not None:
            own_rate = source.get("sampling_rate")
            rate = check_sampling_rate(sampling_rate if own_rate is None else own_rate, name)
            return _within(limits, as_array(source[key], name), rate, name), rate, name
    if source.get("bytes") is not None:
        check_size(memoryview(source["bytes"]).nbytes, name, limits)
        return *decode(bytes(source["bytes"]), name, limits), name
    if path:
        return _read(path, None, limits)
    raise ValueError(
        f"audio: a dictionary with the keys {sorted(map(str, source))} contains no audio. Expected "
        '{"array": ..., "sampling_rate": ...}, {"raw": ..., "sampling_rate": ...} or {"path": ..., "bytes": ...} '
        "with at least one of path and bytes set."
    )


def _read_address(path: str, name: str, limits: AudioLimits) -> bytes:
    if is_data_uri(path):
        return read_data_uri(path, limits)
    return download(path, limits) if is_url(path) else read_file(path, name, limits)


def _within(limits: AudioLimits, samples: np.ndarray, rate: float, name: str) -> np.ndarray:
    """Returns the samples, after a check of their length. Of two axes, the longer one holds the samples."""
    check_length(max(samples.shape, default=0), rate, name, limits)
    return samples


def _check_duration(decoder: Any, limits: AudioLimits) -> None:
    """Checks the declared length of a torchcodec `AudioDecoder` before all of it is decoded."""
    metadata = getattr(decoder, "metadata", None)
    seconds = getattr(metadata, "duration_seconds", None)
    if seconds is not None:
        rate = float(getattr(metadata, "sample_rate", None) or MIN_SAMPLING_RATE)
        check_length(math.ceil(seconds * rate), rate, "audio", limits)
