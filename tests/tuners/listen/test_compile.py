"""`torch.compile` compiles the decoder a fixed number of times, regardless of the lengths."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CompileConfig


pytestmark = pytest.mark.not_simulated("the compiler traces the functions of that device too")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def counter():
    return CompileCounterWithBackend("aot_eager")


# The decoder's graph and that of the head, once for the first lengths and once for all others.
GRAPHS = 4


def test_evaluation_does_not_recompile_for_other_lengths(counter, build, attach, tokens):
    model = attach(build())
    compiled = torch.compile(model, backend=counter)
    for length, k in ((6, 4), (6, 4), (7, 4), (9, 4), (6, 3), (8, 5), (5, 7), (12, 2), (6, 12)):
        model.set_prompt_length(k)
        input_ids = tokens(2, length)
        torch.testing.assert_close(compiled(input_ids).logits, model(input_ids).logits, atol=1e-5, rtol=1e-5)
    assert counter.frame_count <= GRAPHS


def test_training_with_a_stochastic_prompt_length_does_not_recompile_for_other_lengths(counter, build, attach, tokens):
    model, plain = (attach(build(), center_queries=True).train() for _ in range(2))
    compiled = torch.compile(model, backend=counter)
    input_ids = tokens()
    labels = input_ids.masked_fill(torch.arange(6) < 3, -100)
    lengths = set()
    for step in range(10):
        for trained, called in ((model, compiled), (plain, plain)):
            trained.zero_grad()
            trained.begin_step(step)
            called(input_ids=input_ids, labels=labels).loss.backward()
        lengths.add(model.last_selection.indices.shape[1])
        for ours, theirs in zip(model.layer.parameters(), plain.layer.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    assert len(lengths) > 3
    assert counter.frame_count <= GRAPHS


def test_deep_values_are_added_in_compiled_passes(build, attach, tokens):
    model = attach(build(), value_layers=[1], stochastic_prompt_length=False)
    compiled = torch.compile(model, backend="eager")
    for length in (6, 8):
        input_ids = tokens(2, length)
        torch.testing.assert_close(compiled(input_ids).logits, model(input_ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value_layers", [None, [0, 1]])
def test_generation_with_a_static_cache_decodes_in_one_graph(value_layers, build, attach, tokens):
    graphs = []

    def backend(graph, inputs):  # a function, since `generate` copies its configuration
        graphs.append(graph)
        return graph.forward

    compile_config = CompileConfig(backend=backend, mode=None, fullgraph=True)
    compile_config._compile_all_devices = True
    model = attach(build(), value_layers=value_layers)
    settings = {"do_sample": False, "max_new_tokens": 6, "max_cache_len": 40}
    for length, k in ((6, 4), (7, 4), (9, 2)):
        model.set_prompt_length(k)
        input_ids = tokens(1, length)
        expected = model.generate(input_ids, do_sample=False, max_new_tokens=6)
        static = {"cache_implementation": "static", "compile_config": compile_config}
        assert torch.equal(model.generate(input_ids, **settings, **static), expected)
    assert len(graphs) == 1
