"""Audio loading: reads one clip from a path, URL, bytes, array or dictionary."""

import io
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any, BinaryIO

import numpy as np
import torch

from .decoding import decode
from .waveform import (
    DEFAULT_SAMPLING_RATE,
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

DOWNLOAD_TIMEOUT_SECONDS = 30.0
MAX_DOWNLOAD_BYTES = 1 << 30


def load_audio(
    source: AudioSource,
    sampling_rate: float | None = None,
    *,
    target_sampling_rate: int = DEFAULT_SAMPLING_RATE,
) -> np.ndarray:
    """
    Reads one clip and returns it as a mono waveform at `target_sampling_rate`.

    Channels are mixed down by their mean and the rate is converted by soxr (quality "HQ"). Files are decoded by
    soundfile (WAV, FLAC, OGG, MP3, AIFF, ...), or, for formats that soundfile cannot read (MP4/M4A, WebM, AMR, WMA,
    ...), by the `ffmpeg` command if it is installed. Silence and clips of one sample are valid.

    Args:
        source ([`AudioSource`]):
            One of

            - `str` or `os.PathLike`: path of an audio file; a `str` may be an http(s) URL;
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

    Returns:
        `np.ndarray` of shape `(num_samples,)`, dtype `float32`, full scale at 1.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError:
            A file or URL that cannot be opened, is empty, is truncated or contains no audio that can be decoded.
        ValueError:
            Samples that are empty, not finite, of an unsupported type, shape or range, or whose rate is unknown or
            invalid.
        ImportError:
            A file must be decoded or resampled and soundfile or soxr is not installed.
    """
    target_sampling_rate = int(check_sampling_rate(target_sampling_rate, "target_sampling_rate"))
    samples, rate, name = _read(source, sampling_rate)
    waveform = mix_down(to_float(samples, name), name)
    check_audio(waveform, name)
    check_peak(waveform, name)
    return resample(waveform, rate, target_sampling_rate)


def _read(source: Any, sampling_rate: float | None) -> tuple[np.ndarray, float, str]:
    """Returns the stored samples, their rate in Hz, and a name of the source for error messages."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if name.lower().startswith(("http://", "https://")):
            return *decode(io.BytesIO(_download(name)), name), name
        with _open_audio_file(name) as file:
            return *decode(file, name), name
    if isinstance(source, (bytes, bytearray, memoryview)):
        return *decode(io.BytesIO(source), "audio bytes"), "audio bytes"
    if isinstance(source, Mapping):
        return _read_mapping(source, sampling_rate)
    if hasattr(source, "get_all_samples"):
        decoded = source.get_all_samples()
        return as_array(decoded.data, "audio").mean(axis=0), float(decoded.sample_rate), "audio"
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "audio file object"))
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError(f'{name}: the file object returns text. Open it in binary mode: open(path, "rb").')
        return *decode(io.BytesIO(content), name), name
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        return as_array(source, "audio"), check_sampling_rate(sampling_rate, "audio"), "audio"
    raise ValueError(
        f"audio: a {type(source).__name__} cannot be read as audio. Pass a path, an http(s) URL, the bytes of an audio "
        "file, a binary file object, an array with its sampling rate, or a dictionary such as "
        '{"array": ..., "sampling_rate": ...}.'
    )


def _read_mapping(source: Mapping[str, Any], sampling_rate: float | None) -> tuple[np.ndarray, float, str]:
    path = source.get("path")
    name = os.fsdecode(path) if path else "audio"
    for key in ("array", "raw"):
        if source.get(key) is not None:
            own_rate = source.get("sampling_rate")
            rate = check_sampling_rate(sampling_rate if own_rate is None else own_rate, name)
            return as_array(source[key], name), rate, name
    if source.get("bytes") is not None:
        return *decode(io.BytesIO(source["bytes"]), name), name
    if path:
        return _read(path, None)
    raise ValueError(
        f"audio: a dictionary with the keys {sorted(map(str, source))} contains no audio. Expected "
        '{"array": ..., "sampling_rate": ...}, {"raw": ..., "sampling_rate": ...} or {"path": ..., "bytes": ...} '
        "with at least one of path and bytes set."
    )


def _open_audio_file(path: str) -> BinaryIO:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory; expected an audio file. Pass the path of a file inside it.")
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path}: no such audio file (the working directory is {os.getcwd()}). Check the path; a URL must start "
            "with http:// or https://."
        )
    return open(path, "rb")


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "peft-listen"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            expected = int(response.headers.get("Content-Length") or 0)
            content = response.read(MAX_DOWNLOAD_BYTES + 1) if expected <= MAX_DOWNLOAD_BYTES else b""
    except urllib.error.HTTPError as error:
        raise OSError(
            f"{url}: the server answered with HTTP status {error.code} ({error.reason}). Check the address and whether "
            "it requires a login; a downloaded file can be passed by its path."
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(
            f"{url}: the audio could not be downloaded ({error}). Check the address and the network."
        ) from error
    if max(expected, len(content)) > MAX_DOWNLOAD_BYTES:
        raise OSError(
            f"{url}: the file is larger than the limit of {MAX_DOWNLOAD_BYTES} bytes for a download. Download it "
            "first and pass its path."
        )
    if len(content) < expected:
        raise OSError(f"{url}: the download ended after {len(content)} of {expected} bytes. Try again.")
    return content
