import io

import pytest

from peft_listen.audio.containers import container_name, count_missing_bytes
from tests.audio.signals import encode, sine


@pytest.mark.parametrize("container", ["WAV", "AIFF", "FLAC", "OGG", "MP3"])
def test_a_complete_file_lacks_no_bytes(container):
    assert count_missing_bytes(io.BytesIO(encode(sine(), format=container))) == 0


@pytest.mark.parametrize("container", ["WAV", "AIFF", "OGG"])
@pytest.mark.parametrize("missing", [1, 100])
def test_missing_bytes_are_counted(container, missing):
    subtype = {"OGG": "VORBIS"}.get(container, "PCM_16")
    content = encode(sine(), format=container, subtype=subtype)
    assert count_missing_bytes(io.BytesIO(content[:-missing])) == missing


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"])
def test_a_file_of_undeclared_length_lacks_no_bytes(size):
    content = bytearray(encode(sine()))
    content[40:44] = size
    assert count_missing_bytes(io.BytesIO(content)) == 0


def test_containers_are_named_by_their_first_bytes():
    heads = {"WAV": encode(sine()), "FLAC": encode(sine(), format="FLAC"), "Ogg": encode(sine(), format="OGG")}
    heads |= {"MP4/M4A": b"\0\0\0\x20ftypM4A ", "text": b"These are notes.", "unknown": bytes(12)}
    assert {name: container_name(head[:12]) for name, head in heads.items()} == {name: name for name in heads}
