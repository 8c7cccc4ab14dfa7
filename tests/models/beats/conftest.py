import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch


FIXTURES = Path(__file__).parents[2] / "fixtures" / "beats"
CASES = sorted(path.stem for path in (FIXTURES / "cases").glob("*.npz"))


class GoldenCase(NamedTuple):
    """
    Outputs of the original implementation for a clip or a batch.

    Args:
        variant (`str`): The checkpoint.
        clips (`list[str]`): Names of its waveforms.
        fbank (`torch.Tensor` of shape `(batch, frames, 128)`): Its filter bank.
        arrays (`dict[str, np.ndarray]`): Its hidden states, masks and probabilities.
    """

    variant: str
    clips: list[str]
    fbank: torch.Tensor
    arrays: dict[str, np.ndarray]

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """The frame mask of a batch, `(batch_size, frames)`; `None` for a single clip."""
        padding = self.arrays.get("frame_padding_mask")
        return None if padding is None else torch.from_numpy(~padding).long()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def checkpoints() -> dict[str, Path]:
    """Original checkpoints of the small golden models, by variant."""
    return {path.stem: path for path in FIXTURES.glob("*.pt")}


@pytest.fixture
def waveforms() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "waveforms_int16.npz") as arrays:
        return {name: arrays[name].astype(np.float32) / 32768 for name in arrays}


@pytest.fixture
def golden_fbank() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "fbank.npz"))


@pytest.fixture(params=CASES)
def golden_case(request, golden_fbank: dict[str, np.ndarray]) -> GoldenCase:
    variant, _, clip = request.param.partition("__")
    arrays = dict(np.load(FIXTURES / "cases" / f"{request.param}.npz"))
    fbank = torch.from_numpy(golden_fbank[clip.replace("batch_", "batch__")])
    fbank = fbank if fbank.ndim == 3 else fbank[None]
    return GoldenCase(variant, [str(name) for name in arrays.pop("waves")], fbank, arrays)


@pytest.fixture
def golden_batches(waveforms: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The waveforms of every golden filter bank, by the name of the filter bank."""
    singles = {name: [waveform] for name, waveform in waveforms.items()}
    batches = {
        path.stem.partition("__")[2].replace("batch_", "batch__"): [waveforms[name] for name in np.load(path)["waves"]]
        for path in (FIXTURES / "cases").glob("*batch_*.npz")
    }
    return singles | batches


@pytest.fixture
def golden_buckets() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "relative_position_buckets.npz"))


@pytest.fixture
def released_sizes() -> dict[str, dict]:
    """`cfg` and parameter shapes of the released checkpoints, pre-trained and fine-tuned."""
    pretrained, finetuned = json.loads((FIXTURES / "released_size.json").read_text()).values()
    return {"pretrained": pretrained, "finetuned": finetuned}
