"""
Fixtures of the tests marked `gpu`: `pytest -m gpu -n 0 tests/gpu`. They run on CUDA, or on the device that
`PEFT_LISTEN_TEST_DEVICE` names (`cpu` and `simulated` exist everywhere), except for those that need CUDA itself. Each compares
the device with the CPU, so they place models and tensors themselves.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_listen import ListenConfig
from tests.device import VARIABLE, named_device, on_device
from tests.small_models import make_llm


@pytest.fixture(scope="session")
def device() -> torch.device:
    device = named_device(os.environ.get(VARIABLE, "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"CUDA is not available; `{VARIABLE}=simulated` runs these tests on the CPU")
    return device


@pytest.fixture(scope="module", autouse=True)
def _builders_on_the_cpu() -> Iterator[None]:
    with on_device(torch.device("cpu")):
        yield


@pytest.fixture
def needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs CUDA")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    # By default, convolutions on CUDA round float32 to TF32, which is not the CPU's result.
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def make_pair(device: torch.device) -> Callable[..., tuple[Any, PeftModel]]:
    """Makes a language model and the same one with a pool that visibly acts, both on the device (or another one)."""

    def make_pair(
        name: str = "llama",
        on: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        attention: str | None = None,
        **changes: Any,
    ) -> tuple[Any, PeftModel]:
        bases = []
        for _ in range(2):
            base = make_llm(name).to(device if on is None else on, dtype)
            if attention is not None:
                base.set_attn_implementation(attention)
            base.generation_config.eos_token_id = None  # every row generates the requested number of tokens
            bases.append(base)
        plain = {"center_queries": False, "query_pooling": "mean", "shared_prompt_mode": "prepend"}
        settings = {"pool_size": 12, "prompt_length": 4, "init_weights": False, **plain, **changes}
        return bases[0], get_peft_model(bases[1], ListenConfig(**settings)).eval()

    return make_pair


@pytest.fixture
def tokens(device: torch.device) -> Callable[..., torch.Tensor]:
    """Random ordinary tokens on the device, `(rows, length)`."""

    def tokens(rows: int = 2, length: int = 7, seed: int = 1) -> torch.Tensor:
        return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(seed)).to(device)

    return tokens
