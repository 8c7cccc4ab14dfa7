import pytest

from tests.audio.signals import encode, sine


@pytest.fixture
def wav_path(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(encode(sine()))
    return path
