"""
The adapter leaves no tensor on the CPU: on a second device everything runs, and gives the results of the CPU.

The device is the one of `tests/simulated_device.py`, on which an operation with a tensor of the CPU is an error. The last tests
make such mistakes, and check that they are found. The tests marked `gpu` repeat this on a GPU.
"""

import pytest
import torch
from peft import PeftModel
from transformers.utils import ModelOutput

from peft_listen.tuners.listen import hooks, placement, pool, query, synchronization
from peft_listen.tuners.listen.key_loss import add_key_loss
from peft_listen.tuners.listen.pool import PromptPool
from peft_listen.tuners.listen.selectors import grouped
from tests.simulated_device import SIMULATED, TorchWithoutDevices
from tests.small_models import LISTEN_VARIANTS


pytestmark = [
    pytest.mark.usefixtures("simulated"),
    pytest.mark.cpu_only("it compares the CPU with the simulated device"),
]

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
STANDARDIZED = {"center_queries": True, "standardize_queries": True}
GREEDY = {"max_new_tokens": 4, "do_sample": False}
WAYS_OF_GENERATING = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "without cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "chunks": {"prefill_chunk_size": 4},
    "guidance": {"guidance_scale": 1.5},
}


@pytest.fixture
def make(build, attach):
    """A model with an adapter on a device, which it is moved to after the adapter is attached, or before."""

    def make(device, attached_first=True, architecture="llama", **changes):
        base = build(architecture) if attached_first else build(architecture).to(device)
        return attach(base, **{"query_ignored_token_ids": [3, 4], **changes}).to(device)

    return make


@pytest.fixture
def batch(tokens):
    """A batch on a device, whose second row begins with padding."""

    def batch(device, seed=1):
        input_ids = tokens(seed=seed)
        mask = torch.ones_like(input_ids)
        mask[1, :2] = 0
        return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}

    return batch


def labels_of(inputs, prompt=3):
    positions = torch.arange(inputs["input_ids"].shape[1]).to(inputs["input_ids"].device)
    return inputs["input_ids"].masked_fill(positions < prompt, -100)


def train(model, batch, steps=3):
    """Losses and the state of the pool after some optimizer steps."""
    device, module = model.device, model.base_model.layer.pool_of()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    losses = []
    model.train()
    for step in range(steps):
        for micro_batch in range(2):
            inputs = batch(device, seed=2 * step + micro_batch)
            loss = model(**inputs, labels=labels_of(inputs), num_items_in_batch=torch.tensor(12)).loss
            loss.backward()
            losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert module.step == steps
    return [torch.tensor(losses), *(tensor.detach().cpu() for tensor in (*module.parameters(), *module.buffers()))]


def assert_on(device, model):
    tensors = (*model.base_model.layer.parameters(), *model.base_model.layer.buffers())
    assert {tensor.device for tensor in tensors} == {torch.device(device)}


@pytest.mark.parametrize("changes", LISTEN_VARIANTS.values(), ids=LISTEN_VARIANTS)
def test_a_forward_pass_and_training_give_the_results_of_the_cpu(changes, make, batch):
    results = []
    for device in ("cpu", SIMULATED):
        model = make(device, **changes)
        with torch.no_grad():
            logits = model(**batch(device)).logits.cpu()
        results.append([logits, *train(model, batch)])
        assert_on(device, model)
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_other_positions_and_masks_are_on_the_device(architecture, make, batch):
    results = []
    for device in ("cpu", SIMULATED):
        model = make(device, architecture=architecture)
        inputs = batch(device)
        positions = torch.arange(6).expand(2, -1).to(device)
        results.append(
            [model(**inputs, position_ids=positions).logits.cpu(), model.generate(**inputs, **GREEDY).cpu()]
        )
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("way", WAYS_OF_GENERATING)
def test_generation_gives_the_tokens_of_the_cpu(way, make, batch):
    settings = {**GREEDY, **WAYS_OF_GENERATING[way]}
    results = [make(device).generate(**batch(device), **settings).cpu() for device in ("cpu", SIMULATED)]
    assert torch.equal(results[1], results[0])


@pytest.mark.parametrize("way", ["assistant", "lookup", "filled cache", "filled cache and embeddings", "embeddings"])
def test_other_ways_of_generating_give_the_tokens_of_the_cpu(way, make, build, tokens):
    results = []
    for device in ("cpu", SIMULATED):
        model, row = make(device), tokens(1, 7).to(device)
        if way == "assistant":
            found = model.generate(row, **GREEDY, assistant_model=build().to(device))
        elif way == "lookup":
            found = model.generate(torch.cat([row, row], dim=1), **GREEDY, prompt_lookup_num_tokens=3)
        elif way.startswith("filled cache"):
            cache = model(input_ids=row[:, :-1], use_cache=True).past_key_values
            embeds = model.get_input_embeddings()(row)
            inputs = {"inputs_embeds": embeds} if way.endswith("embeddings") else {"input_ids": row}
            found = model.generate(**inputs, **GREEDY, past_key_values=cache)
        else:
            found = model.generate(inputs_embeds=model.get_input_embeddings()(row), **GREEDY)
        results.append(found.cpu())
    assert torch.equal(results[1], results[0])


def test_a_query_mask_on_the_cpu_is_moved(make, batch):
    model = make(SIMULATED)
    inputs, mask = batch(SIMULATED), torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    for given in (mask, mask.to(SIMULATED)):
        logits = model(**inputs, listen_query_mask=given).logits
        on_cpu = make("cpu")(**batch("cpu"), listen_query_mask=mask).logits
        torch.testing.assert_close(logits.cpu(), on_cpu, **CLOSE)
        assert model.generate(**inputs, listen_query_mask=given, **GREEDY).device == torch.device(SIMULATED)


@pytest.mark.parametrize("selector", ["similarity", "grouped"])
def test_keys_that_begin_at_queries_equal_those_of_the_cpu(selector, make):
    queries = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", SIMULATED):
        model = make(device, selector=selector, **STANDARDIZED)
        module = model.base_model.layer.pool_of()
        module.remember_queries(queries, 30)
        model.base_model.init_keys_from(module.recent_queries)
        assert_on(device, model)
        results.append([tensor.detach().cpu() for tensor in (*module.parameters(), *module.buffers())])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def test_initial_values_are_embeddings_of_a_model_on_the_device(make, batch):
    results = []
    for device in ("cpu", SIMULATED):
        model = make(device, attached_first=False, init_weights=True, center_queries=True)
        assert_on(device, model)
        tensors = [tensor.detach().cpu() for tensor in model.base_model.layer.parameters()]
        results.append([*tensors, model(**batch(device)).logits.cpu()])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def test_the_key_loss_of_supervised_fine_tuning_is_added_on_the_device_of_its_tensors():
    per_row, log_probs, mask = torch.tensor([1.0, 2.0]), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    output = ModelOutput(log_probs=log_probs.to(SIMULATED), label_mask=mask, is_top1=mask)
    found = add_key_loss(output, per_row.to(SIMULATED)).log_probs
    assert found.device == torch.device(SIMULATED)
    torch.testing.assert_close(found.cpu(), -per_row[:, None].expand(2, 3))


@torch.no_grad()
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_moves_and_is_saved_and_loaded(low_cpu_mem_usage, make, build, batch, tmp_path):
    model = make(SIMULATED, attached_first=False, **STANDARDIZED)
    assert_on(SIMULATED, model)
    expected = make("cpu", **STANDARDIZED)(**batch("cpu")).logits
    torch.testing.assert_close(model(**batch(SIMULATED)).logits.cpu(), expected, **CLOSE)
    model.save_pretrained(tmp_path)
    base = build().to(SIMULATED)
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert_on(SIMULATED, loaded)
    torch.testing.assert_close(loaded(**batch(SIMULATED)).logits.cpu(), expected, **CLOSE)
    torch.testing.assert_close(loaded.to("cpu")(**batch("cpu")).logits, expected, **CLOSE)


@torch.no_grad()
def test_recorded_selections_are_on_the_cpu(make, batch):
    model = make(SIMULATED, selector="hybrid")
    with model.base_model.record_selections() as records:
        model(**batch(SIMULATED))
    record = records[0]
    assert {tensor.device.type for tensor in (record.indices, record.scores, record.weights, record.query)} == {"cpu"}
    assert model.base_model.last_selection.query.device == torch.device(SIMULATED)


# Mistakes


def use(model, batch):
    model(**batch(SIMULATED))
    model.generate(**batch(SIMULATED), **GREEDY)
    train(model, batch, steps=2)


def test_what_the_mistakes_are_made_in_runs_without_them(make, batch):
    use(make(SIMULATED, selector="grouped", center_queries=True), batch)


@pytest.mark.parametrize("module", [query, placement, synchronization, grouped], ids=lambda module: module.__name__)
def test_a_module_that_makes_its_tensors_on_the_cpu_is_found(module, make, batch, monkeypatch):
    model = make(SIMULATED, selector="grouped")
    monkeypatch.setattr(module, "torch", TorchWithoutDevices())
    with pytest.raises(RuntimeError, match="on the same device.* on cpu"):
        use(model, batch)


def on_the_cpu(function):
    def left_on_the_cpu(*args, **kwargs):
        found = function(*args, **kwargs)
        return tuple(tensor.cpu() for tensor in found) if isinstance(found, tuple) else found.cpu()

    return left_on_the_cpu


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (pool, "prompt_positions"),
        (pool, "mean_query"),
        (placement, "leading_padding"),
        (hooks, "positions_from_mask"),
        (grouped, "best_prompts"),
        (grouped, "cosines"),
        (PromptPool, "normalize_query"),
    ],
)
def test_a_result_that_is_left_on_the_cpu_is_found(module, name, make, batch, monkeypatch):
    model = make(SIMULATED, selector="grouped")
    monkeypatch.setattr(module, name, on_the_cpu(getattr(module, name)))
    with pytest.raises(RuntimeError, match="on the same device.* on cpu"):
        use(model, batch)
