"""Audio decoding: by soundfile, or by the `ffmpeg` command for containers that soundfile cannot read."""

import io
import shutil
import subprocess
import tempfile
from typing import BinaryIO

import numpy as np

from .containers import container_name, count_missing_bytes
from .waveform import check_sampling_rate


# libsndfile's SF_ERR_MALFORMED_FILE: a known container with damaged content.
_SOUNDFILE_MALFORMED = 3
# The length that an MP3 declares is an estimate, off by a few frames of 1152 samples.
_TOLERATED_MISSING_SAMPLES = 4 * 1152
_TOLERATED_MISSING_SHARE = 0.05
# A stream of unknown length declares more samples than any file holds.
_UNKNOWN_NUM_SAMPLES = 1 << 40

# Formats that ffmpeg may detect. Playlists are excluded, because a playlist can name any other file on this machine.
_FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,loas,matroska,mov,mp3,mpc,mpc8,mpeg,"
    "mpegts,mxf,nut,ogg,rm,tak,tta,voc,w64,wav,wv"
)


def decode(file: BinaryIO, name: str) -> tuple[np.ndarray, float]:
    """
    Decodes an audio file and averages its channels.

    Args:
        file: A seekable binary file, at its beginning.
        name (`str`): What the error message calls this file.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, dtype float32, and its sampling rate in Hz.

    Raises:
        OSError: The file is empty, truncated, damaged, or not an audio file.
        ValueError: The file declares an invalid sampling rate.
        ImportError: soundfile is not installed.
    """
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f'Reading {name} needs soundfile: pip install "peft-listen[audio]"') from error
    head = file.read(64)
    if not head:
        raise OSError(f"{name} is empty (0 bytes); expected an audio file. Copy or download it again.")
    missing_bytes = count_missing_bytes(file)
    if missing_bytes:
        raise OSError(
            f"{name} is truncated: {missing_bytes} bytes of audio that it declares are missing at its end. "
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
                f"{name} is a damaged or truncated {container_name(head)} file ({error.error_string}). Copy or "
                "download it again."
            ) from error
        return _decode_by_ffmpeg(file, name, container_name(head))
    missing = declared - len(samples) if declared < _UNKNOWN_NUM_SAMPLES else 0
    if missing > max(_TOLERATED_MISSING_SAMPLES, _TOLERATED_MISSING_SHARE * declared):
        raise OSError(
            f"{name} is truncated: its header declares {declared} samples per channel and {len(samples)} could be "
            "decoded. Copy or download it again."
        )
    # NumPy warns about the mean of no samples; the caller checks for empty audio.
    waveform = samples.mean(axis=1) if samples.size else samples.reshape(-1)
    return waveform, check_sampling_rate(rate, name)


def _decode_by_ffmpeg(file: BinaryIO, name: str, container: str) -> tuple[np.ndarray, float]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise OSError(
            f"{name} is not an audio file that soundfile can read: its container is {container}. If it does contain "
            "audio, install `ffmpeg`, which is then used automatically, or convert the file to WAV or FLAC."
        )
    file.seek(0)
    with tempfile.NamedTemporaryFile(prefix="peft_listen_") as copy:
        # ffmpeg needs a file and not a pipe, because it seeks: the index of an MP4 may be at the end.
        shutil.copyfileobj(file, copy)
        copy.flush()
        command = [ffmpeg, "-nostdin", "-v", "error", "-xerror"]
        command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", _FFMPEG_FORMATS]
        command += ["-i", f"file:{copy.name}", "-map", "0:a:0", "-f", "wav", "-c:a", "pcm_f32le", "pipe:1"]
        result = subprocess.run(command, capture_output=True, check=False)
    messages = result.stderr.decode(errors="replace").strip().replace(copy.name, name)
    if result.returncode != 0 or "ended prematurely" in messages:
        raise OSError(
            f"{name} cannot be decoded by soundfile or ffmpeg: its container is {container}, and it contains no audio, "
            f"or is damaged or truncated. ffmpeg reports: {messages.splitlines()[0] if messages else result.returncode}"
        )
    return decode(io.BytesIO(result.stdout), name)
