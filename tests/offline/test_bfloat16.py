"""What is converted before autocast gives the results of autocast."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from offline import bfloat16
from offline.bfloat16 import convert_linear_layers


def test_converted_layers_give_the_results_of_autocast():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    embeddings = torch.randn(2, 5, 16, requires_grad=True)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs_embeds=embeddings).logits
        (gradient,) = torch.autograd.grad(logits.float().square().mean(), embeddings)
        return logits, gradient

    logits, gradient = run()
    convert_linear_layers(model.model, torch.bfloat16)
    assert {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(f"model.layers.{layer}.{norm}_layernorm.weight" for layer in (0, 1) for norm in ("input", "post_attention")),
    }
    converted_logits, converted_gradient = run()
    torch.testing.assert_close(converted_logits, logits, rtol=0, atol=0)
    torch.testing.assert_close(converted_gradient, gradient, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("seconds", "is_faster"), [({"float32": 4, "bfloat16": 2}, True), ({"float32": 4, "bfloat16": 40}, False)]
)
def test_the_faster_dtype_is_measured(
    seconds: dict[str, int], is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

    class Matrix:
        def __init__(self, dtype: torch.dtype) -> None:
            self.seconds = seconds[str(dtype).removeprefix("torch.")]

        def __matmul__(self, other: "Matrix") -> torch.Tensor:
            Clock.now += self.seconds
            return torch.zeros(1, 1)

    monkeypatch.setattr(bfloat16.torch, "ones", lambda *size, dtype, device: Matrix(dtype))
    monkeypatch.setattr(bfloat16.time, "perf_counter", lambda: Clock.now)
    assert bfloat16.is_bfloat16_faster(torch.device("cpu")) is is_faster
