import os
import shutil
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the `ffmpeg` command, where `load_audio` finds it: the machine's own, or that of imageio-ffmpeg."""
    installed = shutil.which("ffmpeg")
    if installed is not None:
        return installed
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    link = Path(tmp_path_factory.mktemp("bin")) / "ffmpeg"
    link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(link.parent), prepend=os.pathsep)
    return str(link)
