"""
Audio containers: their names, the files that one file consists of, and sizes in their headers that do not fit.

The sizes and counts of a header are hints: a program that writes to a pipe does not know them, and others write them
wrong by a few bytes.
"""

import io
import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO


_MAGIC_NUMBERS = {
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"FORM": "AIFF",
    b"caff": "CAF",
    b".snd": "AU",
    b"riff\x2e\x91\xcf\x11": "W64",
    b"NIST_1A": "NIST SPHERE",
    b"ajkg": "Shorten",
    b"wvpk": "WavPack",
    b"TTA1": "TTA",
    b"MAC ": "Monkey's Audio",
    b"\x1a\x45\xdf\xa3": "WebM/Matroska",
    b"\x30\x26\xb2\x75": "WMA/ASF",
    b"#!AMR": "AMR",
    b"\x0b\x77": "AC-3",
    b"\xff\xf1": "AAC",
    b"\xff\xf9": "AAC",
    b"\xff\xfb": "MP3",
    b"\xff\xfa": "MP3",
    b"\xff\xf3": "MP3",
    b"\xff\xf2": "MP3",
    b"\xff\xe3": "MP3",
}
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# A program that writes to a pipe cannot know the size of the audio and declares this size or a larger one.
_UNKNOWN_SIZE = 0x7FFFF000
# The first bytes of a file, long enough not to occur inside another one by chance.
_BEGINNINGS = {
    "WAV": rb"(?:RIFF|RF64)....WAVE(?:fmt |JUNK|bext|ds64|LIST)",
    "FLAC": rb"fLaC[\x00\x80]\x00\x00\x22",
    "AIFF": rb"FORM....AIF[FC](?:COMM|FVER|MARK|NAME|COMT)",
    "CAF": rb"caff\x00\x01\x00\x00desc\x00\x00\x00\x00\x00\x00\x00\x20",
    "AU": rb"\.snd\x00\x00..........\x00\x00..\x00\x00\x00[\x01-\x08]",
    "W64": rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00",
    "TTA": rb"TTA1[\x01-\x03]\x00",
    "MP4/M4A": rb"\x00\x00\x00[\x08-\x60]ftyp[\w ]{4}",
    "WebM/Matroska": rb"\x1a\x45\xdf\xa3.{1,8}\x42\x86\x81\x01",
    "WMA/ASF": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
    # A block of index 0 that is the first one of its channels, as bit 3 of byte 25 says.
    "WavPack": rb"wvpk.{4}[\x02-\x10]\x04\x00.{5}\x00{4}.{5}["
    + re.escape(bytes(b for b in range(256) if b & 8))
    + rb"]",
    # The frame with the number of frames, after the side information of 9, 17 or 32 bytes; or a tag in front of it.
    "MP3": (
        rb"ID3[\x02-\x04]\x00[\x00-\xf0][\x00-\x7f]{4}|"
        rb"\xff[\xe2-\xff][\x00-\xff]{2}(?:\x00{9}|\x00{17}|\x00{32})(?:Xing|Info)\x00\x00\x00[\x01-\x0f]"
    ),
}


def container_name(head: bytes) -> str:
    """
    Names a file's container.

    Args:
        head (`bytes`): The first bytes of the file; 12 are enough.

    Returns:
        `str`: A name such as `"WAV"`, `"text"` for printable characters, or `"unknown"`.
    """
    if head[4:8] == b"ftyp":
        return "MP4/M4A"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    for magic_number, name in _MAGIC_NUMBERS.items():
        if head.startswith(magic_number):
            return name
    is_text = all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "text" if is_text else "unknown"


def split_joined_files(content: bytes) -> list[bytes]:
    """
    Splits a file that consists of several files of one kind, one after another.

    `cat a.mp3 b.mp3` and programs that append recordings make such files. Decoders read the first part only, or read
    the others by the sampling rate and the number of channels of the first.

    Args:
        content (`bytes`): The whole file.

    Returns:
        `list[bytes]`: The files in order; `[content]` if there is only one.
    """
    container = container_name(content[:64])
    if container == "Ogg":
        starts = _ogg_starts(content)
    elif container == "MP3":
        starts = _mp3_starts(content)
    elif container in _BEGINNINGS:
        starts = [match.start() for match in re.finditer(_BEGINNINGS[container], content, re.DOTALL)]
    else:
        starts = []
    starts = [0, *(start for start in starts if start > 0)]
    if len(starts) == 1:
        return [content]
    return [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]


def _ogg_starts(content: bytes) -> list[int]:
    """Positions of the first pages of streams that follow pages of other streams."""
    starts, position, after_first_pages = [], 0, False
    while content[position : position + 4] == b"OggS" and position + 27 <= len(content):
        is_first_page = bool(content[position + 5] & 2)
        if is_first_page and after_first_pages:
            starts.append(position)
        # The first pages of the streams of one file follow one another.
        after_first_pages = not is_first_page
        num_segments = content[position + 26]
        position += 27 + num_segments + sum(content[position + 27 : position + 27 + num_segments])
        if content[position : position + 4] != b"OggS":
            # Damage, or bytes between two pages.
            position = max(position, content.find(b"OggS", position))
    return starts


def count_trailing_bytes(content: bytes) -> int:
    """
    Counts the bytes at the end of an Ogg or MP4 file that are not a part of it.

    Args:
        content (`bytes`): The whole file.

    Returns:
        `int`: Bytes after the last page of an Ogg file or the last box of an MP4 file: 0 unless they were overwritten.
    """
    if content[4:8] == b"ftyp":
        return max(0, len(content) - _end_of_boxes(content))
    last_page = max(0, content.rfind(b"OggS"))
    num_segments = content[last_page + 26] if len(content) > last_page + 26 else 0
    size = 27 + num_segments + sum(content[last_page + 27 : last_page + 27 + num_segments])
    return max(0, len(content) - last_page - size)


def _end_of_boxes(content: bytes) -> int:
    """
    Walks over the boxes of an MP4 file.

    Returns:
        `int`: Where the last box ends by its declared size, or where bytes begin that are not a box.
    """
    position = 0
    while position + 8 <= len(content):
        size, name = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(content[position + 8 : position + 16], "big")
        elif size == 0 and name.isascii() and name.isalnum():
            return len(content)
        if size < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
            return position
        position += size
    return position


def _mp3_starts(content: bytes) -> list[int]:
    starts, tag_end = [], 0
    for match in re.finditer(_BEGINNINGS["MP3"], content, re.DOTALL):
        start = match.start()
        if match[0].startswith(b"ID3"):
            size = int.from_bytes(bytes(content[start + 6 : start + 10]), "big")
            # 7 bits of each byte count.
            size = sum((size >> (8 * index) & 0x7F) << (7 * index) for index in range(4))
            if start >= tag_end and start + 10 + size < len(content):
                starts.append(start)
                tag_end = start + 10 + size
        elif not starts:
            # Bytes in front of the first frame are not a file.
            starts.append(start if start > 65536 else 0)
        elif start >= tag_end + 4096:
            starts.append(start)
    return starts


def count_mp3_samples(content: bytes) -> int | None:
    """
    Reads the number of samples that the first frame of an MP3 declares (Xing, Info or VBRI).

    Args:
        content (`bytes`): The whole file.

    Returns:
        `int`: Samples per channel, without the delay and the padding of the encoder; `None` if no number is declared.
    """
    start = 0
    while content[start : start + 3] == b"ID3" and len(content) > start + 10:
        start += 10 + sum(byte << (7 * index) for index, byte in enumerate(content[start + 9 : start + 5 : -1]))
    frame = content[start : start + 64]
    for tag, position_of_flags, position_of_frames in ((b"Xing", 4, 8), (b"Info", 4, 8), (b"VBRI", None, 14)):
        tag_start = frame.find(tag)
        if tag_start < 4 or (position_of_flags and not frame[tag_start + position_of_flags + 3] & 1):
            continue
        num_frames = int.from_bytes(frame[tag_start + position_of_frames :][:4], "big")
        is_mpeg_1 = frame[1] & 0x18 == 0x18
        # Delay and padding are three frames at most.
        return max(0, num_frames - 3) * (1152 if is_mpeg_1 else 576) if num_frames else None
    return None


def correct_sizes(content: bytes) -> bytes:
    """
    Corrects the size of the audio in the header of a file whose audio continues after its declared end.

    Args:
        content (`bytes`): The whole file: WAV, RF64, W64, AIFF, AU or CAF.

    Returns:
        `bytes`: The file with the size of the audio that it contains, or `content` itself.
    """
    layout = _find_audio(io.BytesIO(content))
    if layout is None or layout.size_format not in _LARGEST_SIZES:
        return content
    if layout.size is None:
        # libsndfile knows that the 32 bit sizes of programs that write to a pipe are not sizes.
        if layout.size_format in ("<I", ">I"):
            return content
    else:
        end = layout.start + layout.size
        if end + layout.size % 2 >= len(content):
            return content
        if layout.is_chunk and _is_metadata(content, end, layout.size_format, is_empty=layout.size == 0):
            return content
    size = len(content) - layout.start + layout.header_in_size
    corrected = _with_number(content, layout.size_position, layout.size_format, size)
    if layout.file_size_position is None:
        return corrected
    file_size = len(content) - (0 if layout.header_in_size else 8)
    return _with_number(corrected, layout.file_size_position, layout.size_format, file_size)


def _with_number(content: bytes, position: int, number_format: str, number: int) -> bytes:
    packed = struct.pack(number_format, min(number, _LARGEST_SIZES[number_format]))
    return b"".join([content[:position], packed, content[position + len(packed) :]])


def _is_metadata(content: bytes, end: int, size_format: str, *, is_empty: bool) -> bool:
    """Whether the bytes after the declared end of the audio are further chunks, a tag or padding, and not audio."""
    if not is_empty and content.count(0, end) == len(content) - end:
        return True
    rest = content[end : end + 16]
    if rest.startswith((b"TAG", b"ID3", b"APETAGEX")):
        return True
    for padding in (0, 1):
        name, size = rest[padding : padding + 4], rest[padding + 4 : padding + 8]
        is_name = len(size) == 4 and all(32 <= byte < 127 for byte in name)
        # Names of 16 bytes and sizes of 64 bits are rare enough by their names alone.
        is_size = size_format not in ("<I", ">I", "<Q") or (
            struct.unpack(size_format[0] + "I", size)[0] <= len(content) - end if len(size) == 4 else False
        )
        if is_name and is_size:
            return True
    return False


def declares_duration(content: bytes) -> bool:
    """
    Whether the header of a Matroska or ASF file contains the duration.

    Args:
        content (`bytes`): The whole file.

    Returns:
        `bool`: `False` if a program that could not go back wrote the file, in which case FFmpeg estimates the duration
        by the bit rate; `True` for other containers.
    """
    if content.startswith(b"\x1a\x45\xdf\xa3"):
        # The element is in front of the first cluster, and holds a number of 4 or 8 bytes.
        head = content[: max(0, content.find(b"\x1f\x43\xb6\x75"))]
        return b"\x44\x89\x84" in head or b"\x44\x89\x88" in head
    if content.startswith(b"\x30\x26\xb2\x75"):
        properties = content.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65")
        if properties < 0 or properties + 92 > len(content):
            return False
        duration, _, _, flags = struct.unpack("<QQQI", content[properties + 64 : properties + 92])
        # The first flag marks a broadcast, whose numbers are not valid.
        return duration > 0 and not flags & 1
    return True


def count_missing_bytes(file: BinaryIO) -> int:
    """
    Counts the bytes that a WAV, RF64, W64, AVI, AIFF, AU, CAF, MP4 or Ogg file declares but does not contain.

    Args:
        file: A seekable binary file; its position is changed.

    Returns:
        `int`: The number of bytes; 0 for complete files, files of undeclared length and other containers.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    if head[:4] == b"OggS":
        return _count_missing_ogg_bytes(file, length)
    if head[4:] == b"ftyp":
        file.seek(0)
        return max(0, _end_of_boxes(file.read()) - length)
    layout = _find_audio(file)
    return 0 if layout is None or layout.size is None else max(0, layout.start + layout.size - length)


def _count_missing_ogg_bytes(file: BinaryIO, length: int) -> int:
    file.seek(max(0, length - _MAX_OGG_PAGE_BYTES))
    # A page holds 26 bytes of header, the number of its segments, one byte for the size of each, and the segments.
    last_page = file.read()
    last_page = last_page[max(0, last_page.rfind(b"OggS")) :]
    num_segments = last_page[26] if len(last_page) > 26 else 0
    return max(0, 27 + num_segments + sum(last_page[27 : 27 + num_segments]) - len(last_page))


@dataclass(frozen=True)
class _Layout:
    """
    Where the audio of a file lies, by its header.

    Args:
        start (`int`): Position of the first byte of audio.
        size (`int`, *optional*): Declared number of bytes; `None` if it is not known.
        size_position (`int`): Position of the size.
        size_format (`str`): How `struct` reads the size.
        is_chunk (`bool`): Whether other chunks may follow.
        file_size_position (`int`, *optional*): Position of the size of the file.
        header_in_size (`int`): Length of the chunk's header in bytes, if sizes include it.
    """

    start: int
    size: int | None
    size_position: int
    size_format: str
    is_chunk: bool = True
    file_size_position: int | None = None
    header_in_size: int = 0


_LARGEST_SIZES = {"<I": 0xFFFFFFFF, ">I": 0xFFFFFFFF, "<Q": 1 << 62, "<q": 1 << 62, ">q": 1 << 62}
# Container -> (position of the first chunk, length of a chunk's name, format of its size, name of the chunk of audio,
# position of the size of the file).
_CHUNKS: dict[str, tuple[int, int, str, bytes, int | None]] = {
    "WAV": (12, 4, "<I", b"data", 4),
    "AIFF": (12, 4, ">I", b"SSND", 4),
    "CAF": (8, 4, ">q", b"data", None),
    "W64": (40, 16, "<q", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 16),
}


def _find_audio(file: BinaryIO) -> _Layout | None:
    file.seek(0)
    head = file.read(36)
    container = container_name(head[:12])
    if len(head) < 36:
        return None
    if container == "AVI":
        (size,) = struct.unpack("<I", head[4:8])
        return _Layout(8, size if size < _UNKNOWN_SIZE else None, 4, "AVI")
    if container == "AU":
        start, size = struct.unpack(">II", head[4:12])
        return _Layout(start, size if size < _UNKNOWN_SIZE else None, 8, ">I", is_chunk=False) if start >= 24 else None
    layout = _find_chunk(file, *_CHUNKS[container]) if container in _CHUNKS else None
    if layout is not None and head[:4] == b"RF64":
        if head[12:16] != b"ds64":
            return None
        # The sizes are in a chunk of their own.
        (size,) = struct.unpack("<Q", head[28:36])
        return _Layout(layout.start, size if size < 1 << 62 else None, 28, "<Q", file_size_position=20)
    return layout


def _find_chunk(
    file: BinaryIO, position: int, name_length: int, size_format: str, name: bytes, file_size_position: int | None
) -> _Layout | None:
    """Walks over the chunks of a file to its first chunk of this name."""
    header_length = name_length + struct.calcsize(size_format)
    # Each chunk begins at a multiple of this number of bytes.
    alignment = {"<I": 2, ">I": 2, ">q": 1, "<q": 8}[size_format]
    while True:
        file.seek(position)
        header = file.read(header_length)
        if len(header) < header_length:
            return None
        (size,) = struct.unpack(size_format, header[name_length:])
        # The sizes of W64 include the header.
        header_in_size = header_length if size_format == "<q" else 0
        size -= header_in_size
        if header[:name_length] == name:
            is_known = 0 <= size < (_UNKNOWN_SIZE if size_format in ("<I", ">I") else 1 << 62)
            return _Layout(
                position + header_length,
                size if is_known else None,
                position + name_length,
                size_format,
                file_size_position=file_size_position,
                header_in_size=header_in_size,
            )
        if size < 0:
            return None
        position += header_length + size + -size % alignment
