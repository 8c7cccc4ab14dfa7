"""From anything that holds sound (a file, a URL, bytes, an array) to one mono waveform at one sampling rate."""

import io
import numbers
import os
import shutil
import struct
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any, BinaryIO

import numpy as np
import torch


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

DEFAULT_SAMPLING_RATE = 16_000
MIN_SAMPLING_RATE = 1_000
MAX_SAMPLING_RATE = 768_000
MAX_CHANNELS = 8
# A loud float recording may pass 1.0 by some decibels; integer samples stored as floats pass it by orders of magnitude.
MAX_FLOAT_PEAK = 16.0
DOWNLOAD_TIMEOUT_SECONDS = 30.0
MAX_DOWNLOAD_BYTES = 1 << 30

# The range of an integer sample: (value of silence, value of full scale above it).
_INTEGER_RANGES = {
    np.dtype(np.uint8): (128.0, 128.0),
    np.dtype(np.int16): (0.0, 2.0**15),
    np.dtype(np.int32): (0.0, 2.0**31),
}

# What ffmpeg may take a file for. Playlists are not among them: one could name any other file of this machine.
_FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,loas,matroska,mov,mp3,mpc,mpc8,mpeg,"
    "mpegts,mxf,nut,ogg,rm,tak,tta,voc,w64,wav,wv"
)

# libsndfile's SF_ERR_MALFORMED_FILE: a format it knows, in a file that is broken.
_SOUNDFILE_MALFORMED = 3
# The length an MP3 declares is an estimate, off by a few frames of 1152 samples.
_TOLERATED_MISSING_SAMPLES = 4 * 1152
_TOLERATED_MISSING_SHARE = 0.05
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255

_CONTAINERS = {
    b"RIFF": "WAV",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"FORM": "AIFF",
    b"caff": "CAF",
    b"\x1a\x45\xdf\xa3": "WebM/Matroska",
    b"\x30\x26\xb2\x75": "WMA/ASF",
    b"#!AMR": "AMR",
    b"\xff\xf1": "AAC",
    b"\xff\xf9": "AAC",
}


def load_audio(
    source: AudioSource,
    sampling_rate: float | None = None,
    *,
    target_sampling_rate: int = DEFAULT_SAMPLING_RATE,
) -> np.ndarray:
    """
    Reads one clip and returns it as a mono waveform at `target_sampling_rate`.

    Channels are mixed down by their mean and the rate is converted by soxr (quality "HQ"). Files are decoded by
    soundfile (WAV, FLAC, OGG, MP3, AIFF, ...); what soundfile cannot read (MP4/M4A, WebM, AMR, WMA, ...) is handed to
    the `ffmpeg` command where one is installed. Silence and clips of one sample are valid.

    Args:
        source:
            One of

            - `str` or `os.PathLike`: path of an audio file; a `str` may be an http(s) URL;
            - `bytes` or a binary file object: the content of an audio file;
            - `np.ndarray`, `torch.Tensor` or list of floats: samples of shape `(num_samples,)`,
              `(channels, num_samples)` or `(num_samples, channels)` (the smaller axis, at most 8 long, holds the
              channels). `int16`, `int32` and `uint8` are scaled by their range; floats are taken as they are and
              should lie in [-1, 1];
            - `dict`: `{"array", "sampling_rate"}` or `{"path", "bytes"}` (the columns of `datasets.Audio`),
              or `{"raw", "sampling_rate"}` (transformers' speech recognition pipeline);
            - a torchcodec `AudioDecoder`, which a decoded `datasets.Audio` column yields.
        sampling_rate (`float`, *optional*):
            Rate of `source` in Hz, needed if it holds bare samples. Encoded files state their own rate and dictionaries
            of samples their `sampling_rate`: both take precedence over this argument.
        target_sampling_rate (`int`, defaults to 16000):
            Rate of the result in Hz.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, dtype `float32`, full scale at 1.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError:
            A file or URL that cannot be opened, is empty, is truncated or holds no sound that can be decoded.
        ValueError:
            Samples that are empty, not finite, of an unexpected type, shape or range, or whose rate is unknown or
            invalid.
        ImportError:
            A file has to be decoded or resampled and soundfile or soxr is not installed.
    """
    target_sampling_rate = int(_check_sampling_rate(target_sampling_rate, "target_sampling_rate"))
    samples, rate, name = _read(source, sampling_rate)
    waveform = _mix_down(_to_float(samples, name), name)
    check_audio(waveform, name)
    peak = float(np.abs(waveform).max())
    if peak > MAX_FLOAT_PEAK:
        raise ValueError(
            f"{name}: the largest sample is {peak:g}, but floating point audio should lie in [-1, 1]. If these are "
            "integer samples stored as floats, divide them by their full scale (32768 for 16 bit) or pass them with "
            "their integer dtype."
        )
    return _resample(waveform, rate, target_sampling_rate)


def check_audio(array: np.ndarray | torch.Tensor, name: str) -> None:
    """
    Checks that a waveform can be heard by a model: it has at least one sample and all samples are finite.

    Args:
        array: Samples of any shape and any numeric dtype.
        name: What to call this audio in the message, such as its file name.

    Raises:
        ValueError: The audio is empty, or holds NaN or infinite samples.
    """
    array = _as_array(array, name)
    if array.size == 0:
        raise ValueError(
            f"{name}: the audio is empty (0 samples), but at least one sample is needed. Leave this clip out, or "
            "record it again."
        )
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(
            f"{name}: {int((~finite).sum())} of {array.size} audio samples are NaN or infinite, but all must be finite. "
            "The clip was damaged by an earlier processing step: leave it out, or make it again."
        )


def _read(source: Any, sampling_rate: float | None) -> tuple[np.ndarray, float, str]:
    """Returns the samples as they are stored, their rate in Hz, and what to call the source in messages."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if name.lower().startswith(("http://", "https://")):
            return *_decode(io.BytesIO(_download(name)), name), name
        with _open_audio_file(name) as file:
            return *_decode(file, name), name
    if isinstance(source, (bytes, bytearray, memoryview)):
        return *_decode(io.BytesIO(source), "audio bytes"), "audio bytes"
    if isinstance(source, Mapping):
        return _read_mapping(source, sampling_rate)
    if hasattr(source, "get_all_samples"):
        decoded = source.get_all_samples()
        return _as_array(decoded.data, "audio").mean(axis=0), float(decoded.sample_rate), "audio"
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "audio file object"))
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError(f'{name}: the file object returns text. Open it in binary mode: open(path, "rb").')
        return *_decode(io.BytesIO(content), name), name
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        return _as_array(source, "audio"), _check_sampling_rate(sampling_rate, "audio"), "audio"
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
            rate = _check_sampling_rate(sampling_rate if own_rate is None else own_rate, name)
            return _as_array(source[key], name), rate, name
    if source.get("bytes") is not None:
        return *_decode(io.BytesIO(source["bytes"]), name), name
    if path:
        return _read(path, None)
    raise ValueError(
        f"audio: a dictionary with the keys {sorted(map(str, source))} holds no audio. Expected "
        '{"array": ..., "sampling_rate": ...}, {"raw": ..., "sampling_rate": ...} or {"path": ..., "bytes": ...} '
        "with at least one of path and bytes set."
    )


def _as_array(samples: Any, name: str) -> np.ndarray:
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        # numpy has no bfloat16.
        return (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
    try:
        return np.asarray(samples)
    except ValueError as error:
        raise ValueError(f"{name}: the samples do not form a regular array ({error}).") from error


def _check_sampling_rate(sampling_rate: Any, name: str) -> float:
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


def _to_float(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.dtype in _INTEGER_RANGES:
        silence, full_scale = _INTEGER_RANGES[samples.dtype]
        return ((samples.astype(np.float64) - silence) / full_scale).astype(np.float32)
    if samples.dtype.kind == "f":
        # A float64 beyond float32's range becomes infinite, which check_audio reports.
        with np.errstate(over="ignore"):
            return samples.astype(np.float32)
    raise ValueError(
        f"{name}: samples of dtype {samples.dtype} are not understood, because their full scale is unknown. Expected "
        "floats in [-1, 1], or int16, int32 or uint8."
    )


def _mix_down(samples: np.ndarray, name: str) -> np.ndarray:
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


def _resample(waveform: np.ndarray, sampling_rate: float, target_sampling_rate: int) -> np.ndarray:
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
    # A clip shorter than one sample of the target rate would vanish.
    return resampled if resampled.size else waveform[:1]


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
            f"{url}: the server answered with HTTP status {error.code} ({error.reason}). Check the address, and "
            "whether it needs a login; a downloaded file can be passed by its path."
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


def _decode(file: BinaryIO, name: str) -> tuple[np.ndarray, float]:
    """Decodes a seekable file to `(samples [num_samples], rate in Hz)`, the mean of its channels."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f'Reading {name} needs soundfile: pip install "peft-listen[audio]"') from error
    head = file.read(64)
    if not head:
        raise OSError(f"{name} is empty (0 bytes); expected an audio file. Copy or download it again.")
    missing_bytes = _missing_bytes(file)
    if missing_bytes:
        raise OSError(
            f"{name} is truncated: {missing_bytes} bytes of sound that it declares are missing at its end. "
            "Copy or download it again."
        )
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as audio_file:
            samples = audio_file.read(dtype="float32", always_2d=True)
            declared, rate = audio_file.frames, audio_file.samplerate
    except soundfile.LibsndfileError as error:
        if head.startswith(b"fLaC") or error.code == _SOUNDFILE_MALFORMED:
            raise OSError(
                f"{name} is a damaged or truncated {_container(head)} file ({error.error_string}). Copy or download it "
                "again."
            ) from error
        return _decode_by_ffmpeg(file, name, _container(head))
    # A stream of unknown length declares more samples than any file holds.
    missing = declared - len(samples) if declared < 1 << 40 else 0
    if missing > max(_TOLERATED_MISSING_SAMPLES, _TOLERATED_MISSING_SHARE * declared):
        raise OSError(
            f"{name} is truncated: its header declares {declared} samples per channel and {len(samples)} could be "
            "decoded. Copy or download it again."
        )
    # A file without samples has no mean; check_audio names it.
    waveform = samples.mean(axis=1) if samples.size else samples.reshape(-1)
    return waveform, _check_sampling_rate(rate, name)


def _missing_bytes(file: BinaryIO) -> int:
    """How many bytes of sound a WAV, AIFF or Ogg file lacks at its end, which libsndfile passes over in silence."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    kind = file.read(12)
    if kind[:4] == b"OggS":
        file.seek(max(0, length - _MAX_OGG_PAGE_BYTES))
        # A page: 26 bytes of header, the number of its segments, one byte for the size of each, the segments.
        last_page = file.read()
        last_page = last_page[max(0, last_page.rfind(b"OggS")) :]
        num_segments = last_page[26] if len(last_page) > 26 else 0
        return max(0, 27 + num_segments + sum(last_page[27 : 27 + num_segments]) - len(last_page))
    if kind[:4] == b"RIFF" and kind[8:] == b"WAVE":
        byte_order, sound_chunk = "<I", b"data"
    elif kind[:4] == b"FORM" and kind[8:] in (b"AIFF", b"AIFC"):
        byte_order, sound_chunk = ">I", b"SSND"
    else:
        return 0
    position = 12
    while position + 8 <= length:
        file.seek(position)
        chunk = file.read(8)
        (size,) = struct.unpack(byte_order, chunk[4:])
        if chunk[:4] == sound_chunk:
            # Programs that write to a pipe do not know the size and put down (almost) the largest one.
            return 0 if size >= 0x7FFFF000 else max(0, position + 8 + size - length)
        position += 8 + size + size % 2
    return 0


def _container(head: bytes) -> str:
    """Names the kind of a file from its first bytes."""
    if head[4:8] == b"ftyp":
        return "MP4/M4A"
    for magic, name in _CONTAINERS.items():
        if head.startswith(magic):
            return name
    is_text = all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "text" if is_text else "unknown"


def _decode_by_ffmpeg(file: BinaryIO, name: str, container: str) -> tuple[np.ndarray, float]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise OSError(
            f"{name} is no audio file that soundfile can read: its container is {container}. If it does hold sound, "
            "install `ffmpeg` (it is then used by itself), or convert the file to WAV or FLAC."
        )
    file.seek(0)
    with tempfile.NamedTemporaryFile(prefix="peft_listen_") as copy:
        # ffmpeg seeks in its input (the index of an MP4 may stand at its end), so a pipe is not enough.
        shutil.copyfileobj(file, copy)
        copy.flush()
        command = [ffmpeg, "-nostdin", "-v", "error", "-xerror"]
        command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", _FFMPEG_FORMATS]
        command += ["-i", f"file:{copy.name}", "-map", "0:a:0", "-f", "wav", "-c:a", "pcm_f32le", "pipe:1"]
        result = subprocess.run(command, capture_output=True, check=False)
    messages = result.stderr.decode(errors="replace").strip().replace(copy.name, name)
    if result.returncode != 0 or "ended prematurely" in messages:
        raise OSError(
            f"{name} cannot be decoded by soundfile or ffmpeg: its container is {container}, and it holds no sound, or "
            f"is damaged or truncated. ffmpeg says: {messages.splitlines()[0] if messages else result.returncode}"
        )
    return _decode(io.BytesIO(result.stdout), name)
