"""
Decoding by PyAV, whose packages contain FFmpeg's libraries: MP3, and containers that soundfile cannot read.

FFmpeg conceals damage where it can. So this module compares what was decoded with what the file contains: packets that
could not be decoded, gaps between the times of packets, the declared length, and bytes that no packet covers.
"""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from .containers import count_mp3_samples, count_trailing_bytes, declares_duration
from .limits import DecodingBudget
from .segments import Decoded, Segment, describe_error
from .waveform import to_float


# Formats that FFmpeg may detect. Playlists are excluded, because a playlist can name any other file on this machine.
_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dss,dts,eac3,flac,flv,gsm,ircam,loas,matroska,mlp,mov,mp3,mpc,"
    "mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,pvf,qcp,rm,shn,sox,tak,truehd,tta,voc,w64,wav,wv"
)
# The content is passed by Python and nothing else may be opened, so no protocol is allowed.
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none", "err_detect": "crccheck"}
# Monkey's Audio has the longest frames, of 2^20 samples and more. The header of a damaged file may declare any number.
_CODEC_OPTIONS = {"err_detect": "crccheck", "max_samples": str(1 << 21)}
# These formats consist of packets alone, without headers or an index, and do not declare their length. FFmpeg estimates
# it from the bit rate.
_PACKETS_ALONE = {"aac", "ac3", "amr", "amrnb", "amrwb", "dts", "eac3", "gsm", "loas", "mp3"}
_WITHOUT_LENGTH = _PACKETS_ALONE | {"avi", "mpeg", "mpegts"}
# Codecs whose packets have an exact number of samples.
_LOSSLESS = ("pcm", "flac", "alac", "ape", "tta", "wavpack", "tak", "shorten", "wmalossless")
# The declared length of other codecs differs by one or two packets.
_TOLERATED_MISSING_SECONDS = 0.1
_TOLERATED_MISSING_LOSSLESS_SECONDS = 0.02
# Encoders with discontinuous transmission leave up to 0.4 seconds of silence out of these formats.
_WITH_PAUSES = {"matroska", "asf", "flv", "mpegts"}
_TOLERATED_PAUSE_SECONDS = 0.5
_TOLERATED_UNREAD_SHARE = 0.1
# Headers and indexes of short packets take up to this share of a file.
_OVERHEAD_SHARES = {"avi": 0.4}
# Length of FFmpeg's list of planes (AV_NUM_DATA_POINTERS).
_MAX_SAFE_PLANES = 8
# FFmpeg's AV_DISPOSITION_ATTACHED_PIC and AV_TIME_BASE.
_ATTACHED_PICTURE = 0x400
_TICKS_PER_SECOND = 1_000_000


def decode_by_ffmpeg(content: bytes, budget: DecodingBudget) -> Decoded:
    """
    Decodes the first audio stream of a file by FFmpeg and averages its channels.

    Args:
        content (`bytes`): The whole file.
        budget ([`DecodingBudget`]): Counts the samples and the time.

    Returns:
        [`Decoded`], whose `problem` is set if a part of the file could not be decoded.

    Raises:
        LimitError: The clip exceeds a limit.
        av.FFmpegError: FFmpeg cannot read the file.
        ImportError: PyAV is not installed.
        ValueError: The file contains no audio.
    """
    import av

    options = _OPTIONS | {"codec_whitelist": _names_of_audio_codecs()}
    with av.open(io.BytesIO(content), mode="r", options=options, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise ValueError("it contains no audio stream")
        stream = container.streams.audio[0]
        stream.codec_context.options = _CODEC_OPTIONS
        reader = _Reader(container, stream, budget)
        segments = reader.segments()
        return Decoded(segments, reader.find_problem(content))


@functools.cache
def _names_of_audio_codecs() -> str:
    """
    Lists the decoders that FFmpeg may use.

    It would decode pictures and videos too, to find out their format: a cover of 1 MB can fill gigabytes of memory.
    """
    import av

    names = []
    for name in av.codecs_available:
        try:
            if av.Codec(name, "r").type == "audio":
                names.append(name)
        except ValueError:
            pass  # an encoder
    return ",".join(sorted(names))


class _Reader:
    """Decodes a stream packet by packet, and counts what is missing."""

    def __init__(self, container: Any, stream: Any, budget: DecodingBudget) -> None:
        self._container, self._stream, self._budget = container, stream, budget
        self._format = container.format.name.partition(",")[0]
        self._lossless = stream.codec_context.name.startswith(_LOSSLESS)
        self._tolerated = _TOLERATED_MISSING_LOSSLESS_SECONDS if self._lossless else _TOLERATED_MISSING_SECONDS
        self._decoded_seconds = 0.0
        self._lost_seconds = 0.0
        self._gap_seconds = 0.0
        self._decoded_bytes = 0
        self._first_byte: int | None = None
        self._last_byte = 0
        self._error: str | None = None

    def segments(self) -> list[Segment]:
        segments: list[Segment] = []
        blocks: list[np.ndarray] = []
        rate = 0
        for frame in self._frames():
            self._decoded_seconds += frame.samples / max(frame.sample_rate, 1)
            self._budget.add(frame.samples, frame.sample_rate)
            if frame.sample_rate != rate and blocks:
                segments.append(Segment(np.concatenate(blocks), rate))
                blocks = []
            rate = frame.sample_rate
            blocks.append(_mean_of_channels(frame))
        segments.append(Segment(np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate))
        return segments

    def _frames(self) -> Iterator[Any]:
        end_of_last: float | None = None
        packets = self._container.demux(self._stream)
        while True:
            self._budget.check_time()
            try:
                packet = next(packets, None)
            except Exception as error:
                self._error = describe_error(error)
                return
            if packet is None:
                return
            seconds = float((packet.duration or 0) * (packet.time_base or 0))
            if packet.size and packet.pts is not None and packet.time_base:
                start = float(packet.pts * packet.time_base)
                if end_of_last is not None:
                    tolerated = _TOLERATED_PAUSE_SECONDS if self._format in _WITH_PAUSES else self._tolerated
                    if start - end_of_last > tolerated:
                        self._gap_seconds += start - end_of_last
                end_of_last = start + seconds
            if packet.size and packet.pos is not None and packet.pos >= 0:
                self._first_byte = packet.pos if self._first_byte is None else min(self._first_byte, packet.pos)
                self._last_byte = max(self._last_byte, packet.pos + packet.size)
            try:
                frames = packet.decode()
            except Exception as error:
                self._lost_seconds += seconds
                self._error = self._error if self._lost_seconds <= self._tolerated else describe_error(error)
                continue
            self._decoded_bytes += packet.size
            yield from frames

    def find_problem(self, content: bytes) -> str | None:
        """Describes what is missing, or returns `None` if everything was decoded."""
        if self._error is not None:
            return f"it is damaged after {self._decoded_seconds:.1f} seconds of audio ({self._error})"
        if self._lost_seconds > self._tolerated:
            return f"{self._lost_seconds:.1f} seconds of its audio are damaged"
        if self._gap_seconds:
            return f"{self._gap_seconds:.1f} seconds of its audio are missing"
        if self._format in ("ogg", "mov"):
            # The declared length of an Ogg file, and of an MP4 file in fragments, is that of its readable part.
            trailing = count_trailing_bytes(content)
            if trailing > _TOLERATED_UNREAD_SHARE * len(content):
                return _describe_unread(trailing, content)
            if self._format == "ogg":
                return None
        declared = self._declared_seconds(content)
        if declared is not None:
            if declared - self._decoded_seconds > self._tolerated:
                return (
                    f"it declares {declared:.1f} seconds of audio and {self._decoded_seconds:.1f} could be decoded, so it "
                    "is truncated"
                )
            return None
        # Pictures and other streams are not read.
        if self._first_byte is None or len(self._container.streams) > 1:
            return None
        available = len(content) - self._first_byte
        if self._format in _PACKETS_ALONE or self._format in _OVERHEAD_SHARES:
            unread = available - self._decoded_bytes
        else:
            unread = len(content) - self._last_byte
        if unread > _OVERHEAD_SHARES.get(self._format, _TOLERATED_UNREAD_SHARE) * available:
            return _describe_unread(unread, content)
        return None

    def _declared_seconds(self, content: bytes) -> float | None:
        """The length in the header in seconds; `None` if there is none, or it may be that of a video."""
        if self._format == "mp3":
            # FFmpeg replaces the number of samples by an estimate if bytes follow the audio.
            num_samples = count_mp3_samples(content)
            return None if num_samples is None else num_samples / max(1, self._stream.codec_context.sample_rate)
        if self._format in _WITHOUT_LENGTH or not declares_duration(content):
            return None
        has_video = any(not int(stream.disposition) & _ATTACHED_PICTURE for stream in self._container.streams.video)
        if has_video and self._format != "mov":
            return None
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration is not None and len(self._container.streams.audio) == 1:
            return self._container.duration / _TICKS_PER_SECOND
        return None


def _describe_unread(num_bytes: int, content: bytes) -> str:
    return f"{num_bytes} of its {len(content)} bytes are not audio that can be decoded"


def _mean_of_channels(frame: Any) -> np.ndarray:
    """Float32 samples of shape `(num_samples,)` from a frame of any layout and sample format."""
    import av

    if frame.format.is_planar and frame.layout.nb_channels >= _MAX_SAFE_PLANES:
        # PyAV looks for the end of the list of planes behind its end, which crashes the process.
        (frame,) = av.AudioResampler(format=frame.format.packed).resample(frame)
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(frame.samples, -1).T
    if samples.dtype == np.int64:
        samples = (samples >> 32).astype(np.int32)
    if len(samples) == 1:
        return to_float(samples[0], "audio")
    return to_float(samples, "audio").mean(axis=0, dtype=np.float32)
