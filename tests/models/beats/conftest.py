import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


FIXTURES = Path(__file__).parents[2] / "fixtures" / "beats"
BATCHES = {
    "batch_pad2short": ["short_0.3s", "min_2800"],
    "batch_pad3": ["speech_4.4s", "speech_1s_odd", "noise_2.37s"],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def checkpoints() -> dict[str, Path]:
    """Original checkpoints of the small golden models, by variant."""
    return {path.stem: path for path in FIXTURES.glob("*.pt")}


@pytest.fixture
def waveforms() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "waveforms_int16.npz") as arrays:
        return {name: arrays[name].astype(np.float32) / 32768 for name in arrays}


@pytest.fixture
def golden_batches(waveforms: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The waveforms of each golden clip and batch, by name."""
    singles = {name: [waveform] for name, waveform in waveforms.items()}
    return singles | {name: [waveforms[clip] for clip in clips] for name, clips in BATCHES.items()}


@pytest.fixture
def golden_fbank() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "fbank.npz"))


@pytest.fixture
def golden_cases() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "cases.npz"))


@pytest.fixture
def golden_buckets() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "relative_position_buckets.npz"))


@pytest.fixture
def released_sizes() -> dict[str, dict]:
    """`cfg` and parameter shapes of the released models, pre-trained and fine-tuned."""
    pretrained, finetuned = json.loads((FIXTURES / "released_size.json").read_text()).values()
    return {"pretrained": pretrained, "finetuned": finetuned}
