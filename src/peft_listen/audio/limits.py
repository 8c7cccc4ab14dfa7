"""Limits for audio that comes from somebody else: how long, how large and how slow a clip may be."""

import math
import numbers
import time
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class AudioLimits:
    """
    Limits within which [`load_audio`] reads a clip.

    A few kilobytes can decode to hours of silence, and a server can send one byte per second for ever, so every clip is
    read within limits. `math.inf` switches a limit off.

    Args:
        max_seconds (`float`, defaults to 3600.0):
            Longest clip in seconds: files are counted while they are decoded, samples before they are converted.
        max_bytes (`float`, defaults to 1 GiB):
            Largest size in bytes of a file, a download or other encoded content, and of the decoded mono samples
            (4 bytes each, at the rate of the file).
        download_seconds (`float`, defaults to 120.0):
            Time for a whole download in seconds, from the first connection to the last byte, redirects included.
        decoding_seconds (`float`, defaults to 120.0):
            Time in seconds for decoding one clip, checked after each block of samples.
        allow_private_addresses (`bool`, defaults to `True`):
            Whether URLs and their redirects may lead to addresses that are not public: this machine, the local network,
            or the metadata service of a cloud. Set it to `False` if URLs come from users. Proxies of the environment
            are not used then, because a proxy resolves host names itself.

    Raises:
        ValueError: A limit is not a positive number, or `allow_private_addresses` is not a `bool`.
    """

    max_seconds: float = 3600.0
    max_bytes: float = 1 << 30
    download_seconds: float = 120.0
    decoding_seconds: float = 120.0
    allow_private_addresses: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "allow_private_addresses":
                if not isinstance(value, bool):
                    raise ValueError(f"AudioLimits: `{field.name}` must be True or False, got {value!r}.")
            elif not _is_positive(value):
                raise ValueError(
                    f"AudioLimits: `{field.name}` must be a number above 0 (`math.inf` for no limit), got {value!r}."
                )


def _is_positive(value: Any) -> bool:
    # NaN fails the comparison too.
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value) > 0


_default_limits = AudioLimits()


def set_default_limits(limits: AudioLimits) -> AudioLimits:
    """
    Sets the limits of all later calls without `limits`: of [`load_audio`], processors, pipelines, collators, feature caches
    and commands.

    The setting holds for this process and the processes that it forks; a process that is spawned starts with the
    defaults of [`AudioLimits`].

    Args:
        limits ([`AudioLimits`]): The new limits.

    Returns:
        [`AudioLimits`]: The limits until now, to restore them later.

    Raises:
        TypeError: `limits` is not an [`AudioLimits`].
    """
    global _default_limits
    previous, _default_limits = _default_limits, _check_type(limits)
    return previous


def resolve_limits(limits: AudioLimits | None) -> AudioLimits:
    """Returns `limits`, or the default of this process if it is `None`."""
    return _default_limits if limits is None else _check_type(limits)


def _check_type(limits: AudioLimits) -> AudioLimits:
    if not isinstance(limits, AudioLimits):
        raise TypeError(f"`limits` must be an `AudioLimits`, got a {type(limits).__name__}.")
    return limits


class LimitError(OSError):
    """A clip exceeds a limit of [`AudioLimits`]; the message names the clip, the limit and how to raise it."""


def check_size(num_bytes: int, name: str, limits: AudioLimits) -> None:
    """
    Checks the size of encoded audio.

    Args:
        num_bytes (`int`): Its size, or the part of it that has been read.
        name (`str`): What the error message calls this audio.
        limits ([`AudioLimits`]): Their `max_bytes` is checked.

    Raises:
        LimitError: The audio is larger.
    """
    if num_bytes > limits.max_bytes:
        raise LimitError(
            f"{name}: the file is larger than the limit of {limits.max_bytes:.0f} bytes. If it is to be read, raise "
            "`max_bytes` of `AudioLimits`."
        )


def check_length(num_samples: int, rate: float, name: str, limits: AudioLimits) -> None:
    """
    Checks the length of audio whose samples are known.

    Args:
        num_samples (`int`): Samples per channel.
        rate (`float`): Their sampling rate in Hz.
        name (`str`): What the error message calls this audio.
        limits ([`AudioLimits`]): Their `max_seconds` is checked, up to one sample: resampling rounds the length.

    Raises:
        LimitError: The audio is longer.
    """
    if num_samples - 1 > limits.max_seconds * rate:
        raise LimitError(
            f"{name}: the clip of {num_samples / rate:.1f} seconds is longer than the limit of {limits.max_seconds:g} "
            "seconds. Cut it into shorter clips, or raise `max_seconds` of `AudioLimits`."
        )


class DecodingBudget:
    """
    Counts the decoded samples of one clip and the time since decoding began.

    Args:
        name (`str`): What the error message calls this clip.
        limits ([`AudioLimits`]): The limits of the clip.
    """

    def __init__(self, name: str, limits: AudioLimits) -> None:
        self.name, self.limits = name, limits
        self._seconds, self._samples = 0.0, 0
        self._seconds_before, self._samples_before = 0.0, 0
        self._deadline = time.monotonic() + limits.decoding_seconds

    def start_file(self) -> None:
        """Begins one of the files of the clip, or begins it again with another decoder."""
        self._seconds, self._samples = self._seconds_before, self._samples_before

    def finish_file(self) -> None:
        """Keeps the samples of the file that was begun last."""
        self._seconds_before, self._samples_before = self._seconds, self._samples

    def add(self, num_samples: int, rate: float) -> None:
        """
        Adds decoded samples.

        Args:
            num_samples (`int`): Samples per channel.
            rate (`float`): Their sampling rate in Hz.

        Raises:
            LimitError: The clip is too long, too large, or its decoding takes too long.
        """
        limits = self.limits
        self._samples += num_samples
        self._seconds += num_samples / max(rate, 1.0)
        # Not by the rounding of a sum.
        if self._seconds > limits.max_seconds + 1e-6:
            raise LimitError(
                f"{self.name}: the audio is longer than the limit of {limits.max_seconds:g} seconds. Cut it into "
                "shorter clips, or raise `max_seconds` of `AudioLimits`."
            )
        if 4 * self._samples > limits.max_bytes:
            raise LimitError(
                f"{self.name}: the decoded audio is larger than the limit of {limits.max_bytes:.0f} bytes. Cut it into "
                "shorter clips, or raise `max_bytes` of `AudioLimits`."
            )
        self.check_time()

    def check_time(self) -> None:
        """Raises a `LimitError` if decoding takes longer than `decoding_seconds`."""
        if math.isfinite(self._deadline) and time.monotonic() > self._deadline:
            raise LimitError(
                f"{self.name}: decoding takes longer than the limit of {self.limits.decoding_seconds:g} seconds. Convert "
                "the file to WAV or FLAC, or raise `decoding_seconds` of `AudioLimits`."
            )
