"""The simulated device finds tensors on the wrong device, and the tests' own tensors and models are placed on their device."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForCausalLM, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments, pipeline

from peft_listen import ListenConfig
from peft_listen.tuners.listen.selectors.clustering import cluster_centers
from tests.device import named_device, on_device, placing
from tests.simulated_device import SIMULATED
from tests.small_models import LLM_CONFIGS, make_clip, make_llm, make_processor


pytestmark = [
    pytest.mark.usefixtures("simulated"),
    pytest.mark.cpu_only("it compares the CPU with the simulated device"),
]


def pair(*shape, seed=0):
    """The same values on the CPU and on the device."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values, values.to(SIMULATED)


def test_results_and_gradients_are_those_of_the_cpu():
    found = []
    for x, w in zip(pair(3, 4), pair(4, 4, seed=1), strict=True):
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        hidden = F.layer_norm(x @ w, (4,))
        hidden = torch.cat([hidden, torch.ones_like(hidden)])[torch.arange(3, device=x.device)]
        attended = F.scaled_dot_product_attention(hidden[None], hidden[None], hidden[None], is_causal=True)
        attended.square().sum().backward()
        assert {tensor.device for tensor in (hidden, attended, x.grad, w.grad)} == {x.device}
        found.append([attended.detach().cpu(), x.grad.cpu(), w.grad.cpu()])
    torch.testing.assert_close(found[1], found[0])


def test_views_share_their_values():
    _, x = pair(2, 3)
    x[:, 1] = 5
    x.view(-1)[0] += 1
    x.data.mul_(2)
    assert x[:, 1].tolist() == [10, 10]
    assert torch.equal(x.cpu(), torch.stack([row.cpu() for row in x]))


_CPU = torch.ones(2, 3)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + _CPU,
        lambda x: x.add_(_CPU),
        lambda x: x @ _CPU.T,
        lambda x: torch.cat([x, _CPU]),
        lambda x: torch.where(x > 0, x, _CPU),
        lambda x: x.masked_fill(_CPU.bool(), 0),
        lambda x: x.gather(1, _CPU.long()),
        lambda x: x[torch.tensor([1])],
        lambda x: F.embedding(torch.tensor([1]), x),
        lambda x: F.linear(_CPU, x),
        lambda x: torch.equal(x, _CPU),
        lambda x: _CPU.lerp(x, 0.5),
    ],
)
def test_operations_on_two_devices_are_refused(operation):
    _, x = pair(2, 3)
    with pytest.raises(RuntimeError, match="on the same device, but got .* on cpu"):
        operation(x)


def test_random_numbers_of_a_generator_on_the_cpu_and_numpy_are_refused():
    with pytest.raises(RuntimeError, match="'simulated' device type for generator but found 'cpu'"):
        torch.randn(2, device=SIMULATED, generator=torch.Generator())
    with pytest.raises(TypeError, match="can't convert simulated:0 device type tensor to numpy"):
        torch.ones(2, device=SIMULATED).numpy()


def test_copies_and_numbers_are_allowed():
    cpu, x = pair(2, 3)
    assert torch.equal((x * torch.tensor(2.0)).cpu(), cpu * 2)
    assert torch.equal(torch.where(x > 0, torch.tensor(1.0), x).cpu(), torch.where(cpu > 0, torch.tensor(1.0), cpu))
    assert torch.equal(torch.zeros(2, 3).copy_(x), cpu)
    assert torch.equal(torch.zeros_like(x).copy_(cpu).cpu(), cpu)
    assert torch.tensor([x[0, 0], 1.0], device=SIMULATED).device == x.device


def test_other_libraries_may_index_with_the_cpu():
    _, x = pair(2, 3)
    function = {}
    exec(compile("def select(x, index): return x[index]", "/a/library.py", "exec"), function)
    assert torch.equal(function["select"](x, torch.tensor([1])).cpu(), x[1:].cpu())


def test_modules_move_with_their_optimizer_and_are_copied_and_pickled():
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = module.weight.detach().clone()
    module.to(SIMULATED)
    module(torch.ones(1, 3, device=SIMULATED)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(module.weight.cpu(), before - 1)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert isinstance(other.weight, torch.nn.Parameter) and other.weight.device == torch.device(SIMULATED)
        assert torch.equal(other.weight, module.weight) and other.weight is not module.weight
    assert module.to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert module.to("cpu").weight.device.type == "cpu"


def test_a_view_in_inference_mode_is_as_on_the_cpu():
    for x in pair(2, 3):
        with torch.inference_mode():
            view, new = x.view(-1), x + 1
        assert new.is_inference() and not view.is_inference()


def test_autocast_computes_in_half_precision():
    module = torch.nn.Linear(3, 2).to(SIMULATED)
    with torch.autocast("simulated", dtype=torch.bfloat16):
        assert module(torch.ones(1, 3, device=SIMULATED)).dtype == torch.bfloat16


def test_what_a_test_makes_is_placed_and_what_the_library_makes_is_not(composite_folder, tmp_path):
    device = named_device("simulated")
    with on_device(device), placing():
        generator = torch.Generator().manual_seed(0)
        made = [torch.ones(2), torch.randn(2, generator=generator, requires_grad=True), torch.tensor([1])]
        llm = AutoModelForCausalLM.from_config(LLM_CONFIGS["llama"]())
        inputs = make_processor()(text=["<|audio|>"], audio=[make_clip(0.5)], sampling_rate=16000)
        assert {found.device for found in (*made, make_llm("llama"), llm, *inputs.values())} == {device}
        assert made[1].is_leaf and made[1].requires_grad
        assert cluster_centers(torch.ones(2, 2), 2, seed=0).device.type == "cpu"
        assert torch.ones(2, device="cpu").device.type == "cpu"
        assert TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]).device == device
        pipe = pipeline("audio-text-to-text", model=str(composite_folder))
        assert pipe.device == pipe.model.device == device
        llm.save_pretrained(tmp_path / "llm")
        llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
        get_peft_model(llm, ListenConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
        adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
        assert {parameter.device for parameter in adapted.parameters()} == {device}
        torch.testing.assert_close(made[0], torch.ones(2, device="cpu"))
    assert torch.ones(2).device.type == make_llm("llama").device.type == "cpu"
    assert TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]).device.type == "cpu"
