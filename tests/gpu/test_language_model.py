"""A language model with an adapter on the device: the call by hand, and the CPU's tokens."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from peft import PeftModel
from transformers import CompileConfig

from tests.call_by_hand import ByHand
from tests.small_models import make_llm


pytestmark = pytest.mark.gpu

NEW_TOKENS = {"max_new_tokens": 8}
GREEDY = {**NEW_TOKENS, "do_sample": False}


def left_padded(input_ids):
    """The second row begins with three positions of padding."""
    mask = torch.ones_like(input_ids)
    mask[1, :3] = 0
    return {"input_ids": input_ids.masked_fill(mask == 0, 2), "attention_mask": mask}


def attention_or_skip(attention):
    if attention.startswith("flash"):
        pytest.importorskip("flash_attn")
        if not torch.cuda.is_available():
            pytest.skip("flash attention needs CUDA")
    return attention


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "mistral", "gpt2"])
def test_forward_equals_the_call_by_hand(architecture, make_pair, tokens):
    base, model = make_pair(architecture)
    input_ids = tokens()
    output, expected = model(input_ids=input_ids), ByHand(base, model)(input_ids)
    torch.testing.assert_close(output.logits, expected.logits[:, 4:], atol=1e-4, rtol=1e-4)
    padded = model(**left_padded(input_ids)).logits
    torch.testing.assert_close(padded[1, 3:], model(input_ids=input_ids[1:, 3:]).logits[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_forward_in_bfloat16_is_as_close_to_float32_as_the_call_by_hand(attention, make_pair, tokens):
    base, model = make_pair(dtype=torch.bfloat16, attention=attention_or_skip(attention))
    input_ids = tokens()
    reference = ByHand(base, model)
    prompts = reference.prompts(input_ids)
    exact = ByHand(make_llm("llama").to(base.device), model)(input_ids, prompts).logits[:, 4:]
    by_hand = reference(input_ids, prompts).logits[:, 4:].float()
    logits = model(input_ids=input_ids).logits
    assert logits.dtype == torch.bfloat16
    error, error_by_hand = (float((found - exact).abs().mean()) for found in (logits.float(), by_hand))
    assert error <= 1.5 * error_by_hand + 1e-3
    assert error < 0.05 * float(exact.std())


@pytest.mark.parametrize("selector", ["similarity", "attention", "residual", "grouped", "hybrid"])
def test_every_selector_selects_and_trains_as_on_the_cpu(selector, make_pair, tokens):
    settings = {"selector": selector, "center_queries": True, "stochastic_prompt_length": False}
    results = []
    for on in ("cpu", None):
        _, model = make_pair(on=on, **settings)
        pool = model.train().base_model.layer.pool_of()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        losses = []
        for step in range(3):
            input_ids = tokens(seed=step).to(model.device)
            loss = model(input_ids=input_ids, labels=input_ids.masked_fill(input_ids < 100, -100)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        results.append(
            [torch.tensor(losses), pool.keys.detach().cpu(), pool.values.detach().cpu(), pool.query_mean.cpu()]
        )
        assert {tensor.device for tensor in (*pool.parameters(), *pool.buffers())} == {model.device}
    torch.testing.assert_close(results[1], results[0], atol=1e-3, rtol=1e-3)


def test_keys_that_begin_at_queries_equal_those_of_the_cpu(make_pair, device):
    queries = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    keys = []
    for on in ("cpu", device):
        pool = make_pair(on=on, center_queries=True)[1].base_model.layer.pool_of()
        pool.init_keys_from(queries.to(on))
        assert pool.keys.device == torch.device(on)
        keys.append(pool.keys.detach().cpu())
    torch.testing.assert_close(keys[1], keys[0], atol=1e-4, rtol=1e-4)


MODES = {
    "greedy": GREEDY,
    "beams": {**GREEDY, "num_beams": 3, "num_return_sequences": 2},
    "a single candidate": {**NEW_TOKENS, "do_sample": True, "top_k": 1},
    "without cache": {**GREEDY, "use_cache": False},
    "static cache": {**GREEDY, "cache_implementation": "static", "disable_compile": True},
    "static cache and beams": {**GREEDY, "num_beams": 2, "cache_implementation": "static", "disable_compile": True},
    "chunks": {**GREEDY, "prefill_chunk_size": 4},
    "guidance": {**GREEDY, "guidance_scale": 1.5},
}


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("mode", MODES)
def test_generation_gives_the_tokens_of_the_cpu(mode, architecture, make_pair, tokens):
    results = []
    for on in ("cpu", None):
        _, model = make_pair(architecture, on=on)
        # The small model's limit of the logits makes many of them equal, and then beams and samples are arbitrary.
        model.get_base_model().config.final_logit_softcapping = None
        batch = {name: tensor.to(model.device) for name, tensor in left_padded(tokens()).items()}
        results.append(model.generate(**batch, **MODES[mode]).cpu())
    assert torch.equal(results[1], results[0])


@pytest.mark.parametrize("kind", ["assistant", "lookup", "embeddings", "query mask", "filled cache"])
def test_other_ways_of_generating_give_the_tokens_of_the_cpu(kind, make_pair, tokens):
    results = []
    for on in ("cpu", None):
        base, model = make_pair(on=on)
        row = tokens(1).to(model.device)
        if kind == "assistant":
            found = model.generate(row, **GREEDY, assistant_model=base)
        elif kind == "lookup":
            found = model.generate(torch.cat([row, row], dim=1), **GREEDY, prompt_lookup_num_tokens=3)
        elif kind == "embeddings":
            found = model.generate(inputs_embeds=model.get_input_embeddings()(row), **GREEDY)
        elif kind == "query mask":
            mask = torch.tensor([[0, 1, 1, 0, 0, 0, 1]]).to(model.device)
            found = model.generate(row, **GREEDY, listen_query_mask=mask)
        else:
            cache = model(input_ids=row[:, :-1], use_cache=True).past_key_values
            found = model.generate(row, **GREEDY, past_key_values=cache)
        results.append(found.cpu())
    assert torch.equal(results[1], results[0])


def test_compiled_decoding_with_a_static_cache_gives_the_same_tokens(make_pair, tokens, device):
    torch.compiler.reset()
    _, model = make_pair()
    settings = {**GREEDY, "cache_implementation": "static", "max_cache_len": 64}
    if device.type == "cpu":  # transformers compiles by itself on CUDA only
        settings["compile_config"] = CompileConfig(backend="aot_eager", mode=None)
        settings["compile_config"]._compile_all_devices = True
    for length, k in ((7, 4), (9, 4), (6, 2)):
        model.set_prompt_length(k)
        input_ids = tokens(1, length)
        expected = model.generate(input_ids, **GREEDY)
        assert torch.equal(model.generate(input_ids, **settings), expected)
    torch.compiler.reset()


def test_a_compiled_model_trains_as_the_model_itself(make_pair, tokens, device):
    torch.compiler.reset()
    gradients = []
    for is_compiled in (False, True):
        _, model = make_pair(center_queries=True)
        called = torch.compile(model, backend="inductor" if device.type == "cuda" else "aot_eager")
        input_ids = tokens()
        model.train().begin_step(0)
        labels = input_ids.masked_fill(torch.arange(7, device=device) < 3, -100)
        (called if is_compiled else model)(input_ids=input_ids, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in model.base_model.layer.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)
    torch.compiler.reset()


@torch.no_grad()
def test_an_adapter_is_saved_from_the_device_and_loaded_to_it(make_pair, tokens, tmp_path, device):
    _, model = make_pair(center_queries=True)
    pool = model.base_model.layer.pool_of()
    pool.query_mean.normal_()
    model.save_pretrained(tmp_path)
    expected = model(input_ids=tokens()).logits
    for on in ("cpu", device):
        loaded = PeftModel.from_pretrained(make_llm("llama").to(on), tmp_path).eval()
        pool = loaded.base_model.layer.pool_of()
        assert {tensor.device for tensor in (*pool.parameters(), *pool.buffers())} == {torch.device(on)}
        logits = loaded(input_ids=tokens().to(on)).logits
        torch.testing.assert_close(logits.to(device), expected, atol=1e-4, rtol=1e-4)
    moved = PeftModel.from_pretrained(make_llm("llama"), tmp_path).eval().to(device)
    torch.testing.assert_close(moved(input_ids=tokens()).logits, expected, atol=1e-4, rtol=1e-4)
    assert moved.to("cpu").base_model.layer.pool_of().query_mean.device.type == "cpu"


@torch.no_grad()
def test_threads_that_share_a_model_get_the_answers_that_they_get_alone(make_pair, tokens):
    _, model = make_pair(center_queries=True)
    kinds = [
        lambda input_ids: model(input_ids=input_ids).logits,
        lambda input_ids: model.generate(input_ids, **GREEDY),
        lambda input_ids: model.generate(input_ids, **GREEDY, num_beams=2),
    ]
    calls = [partial(kinds[i % 3], tokens(1 + i % 2, 4 + i % 5, seed=i)) for i in range(24)]
    alone = [call() for call in calls]
    barrier = threading.Barrier(2)

    @torch.no_grad()
    def worker(own):
        barrier.wait()
        return [call() for call in own]

    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(worker, [calls[::2], calls[1::2]])
    for expected, found in zip([*alone[::2], *alone[1::2]], [*first, *second], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
