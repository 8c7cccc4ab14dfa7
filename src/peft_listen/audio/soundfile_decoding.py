"""Decoding by soundfile: WAV, FLAC, Ogg, AIFF, AU, CAF, W64 and whatever else libsndfile reads."""

import io

import numpy as np

from .limits import DecodingBudget
from .segments import Decoded, Segment


_BLOCK_SAMPLES = 1 << 18
# A stream of unknown length declares more samples than any file holds.
_UNKNOWN_NUM_SAMPLES = 1 << 40
# The length that a header declares is exact for these containers. That of an MP3 may be an estimate.
_TOLERATED_MISSING_SECONDS = 0.02
_TOLERATED_MISSING_MP3_SECONDS = 0.1
# libsndfile reads ahead by less than this, and tags at the end of a file are usually shorter.
_TOLERATED_UNREAD_BYTES = 1 << 14


def decode_by_soundfile(content: bytes, budget: DecodingBudget) -> Decoded:
    """
    Decodes a file by soundfile and averages its channels.

    Args:
        content (`bytes`): The whole file.
        budget ([`DecodingBudget`]): Counts the samples and the time.

    Returns:
        [`Decoded`], whose `problem` is set if the file contains more audio than soundfile could read.

    Raises:
        LimitError: The clip exceeds a limit.
        ImportError: soundfile is not installed.
        soundfile.LibsndfileError, ValueError, TypeError, RuntimeError: soundfile cannot read the file.
    """
    import soundfile

    file = io.BytesIO(content)
    with soundfile.SoundFile(file) as audio_file:
        rate, container = audio_file.samplerate, audio_file.format
        declared = audio_file.frames
        block_samples = max(1, _BLOCK_SAMPLES // audio_file.channels)
        blocks, num_samples = [], 0
        # The number of samples is always passed: soundfile cannot count those of GSM 6.10, G.721 and some streams.
        while len(block := audio_file.read(block_samples, dtype="float32", always_2d=True)):
            budget.add(len(block), rate)
            # The average over one channel, or over more, is a copy, so that `block` can be reused.
            blocks.append(block.mean(axis=1))
            num_samples += len(block)
        num_unread = len(content) - file.tell()
    problem = None
    tolerated = _TOLERATED_MISSING_MP3_SECONDS if container == "MP3" else _TOLERATED_MISSING_SECONDS
    if declared < _UNKNOWN_NUM_SAMPLES and declared - num_samples > tolerated * rate:
        problem = f"its header declares {declared} samples per channel and {num_samples} could be decoded, so it is truncated"
    elif container in ("FLAC", "MP3", "OGG") and num_unread > _TOLERATED_UNREAD_BYTES:
        problem = f"{num_unread} of its {len(content)} bytes were not read"
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    return Decoded([Segment(waveform, rate)], problem)
