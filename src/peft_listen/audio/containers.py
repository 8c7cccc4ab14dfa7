"""Audio containers: their names, and bytes missing at the end of a file, which libsndfile does not report."""

import os
import struct
from typing import BinaryIO


_MAGIC_NUMBERS = {
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
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# A program that writes to a pipe cannot know the size of the audio and declares this size or a larger one.
_UNKNOWN_SIZE = 0x7FFFF000


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
    for magic_number, name in _MAGIC_NUMBERS.items():
        if head.startswith(magic_number):
            return name
    is_text = all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "text" if is_text else "unknown"


def count_missing_bytes(file: BinaryIO) -> int:
    """
    Counts the audio bytes that a WAV, AIFF or Ogg file declares but does not contain.

    Args:
        file: A seekable binary file; its position is changed.

    Returns:
        `int`: The number of bytes; 0 for complete files, files of undeclared length and other containers.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"OggS":
        return _count_missing_ogg_bytes(file, length)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _count_missing_chunk_bytes(file, length, "<I", b"data")
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _count_missing_chunk_bytes(file, length, ">I", b"SSND")
    return 0


def _count_missing_ogg_bytes(file: BinaryIO, length: int) -> int:
    file.seek(max(0, length - _MAX_OGG_PAGE_BYTES))
    # A page holds 26 bytes of header, the number of its segments, one byte for the size of each, and the segments.
    last_page = file.read()
    last_page = last_page[max(0, last_page.rfind(b"OggS")) :]
    num_segments = last_page[26] if len(last_page) > 26 else 0
    return max(0, 27 + num_segments + sum(last_page[27 : 27 + num_segments]) - len(last_page))


def _count_missing_chunk_bytes(file: BinaryIO, length: int, size_format: str, audio_chunk: bytes) -> int:
    """The same for a file of chunks, whose sizes `struct` reads by `size_format`."""
    position = 12
    while position + 8 <= length:
        file.seek(position)
        chunk = file.read(8)
        (size,) = struct.unpack(size_format, chunk[4:])
        if chunk[:4] == audio_chunk:
            return 0 if size >= _UNKNOWN_SIZE else max(0, position + 8 + size - length)
        position += 8 + size + size % 2
    return 0
