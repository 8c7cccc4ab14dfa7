"""Deep values: vectors at the input of decoder layers, at the places of the prompt, with the selection of the prompt."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from peft_listen import ListenConfig
from peft_listen.training import parameter_groups
from peft_listen.tuners.listen.prompt_length import train_prompt_length
from tests.call_by_hand import DeepByHand


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
GREEDY = {"max_new_tokens": 5, "do_sample": False}
STATIC = {"cache_implementation": "static", "disable_compile": True}
FIXED = {"stochastic_prompt_length": False}


def supervised(input_ids, prompt=3):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < prompt, -100)


@pytest.fixture
def attach_deep(attach):
    """Attaches a pool with deep values that have a visible effect; `scales` are those of the layers."""

    def attach_deep(base, value_layers=(0, 1), scales=(0.5, 2.0), **changes):
        model = attach(base, value_layers=list(value_layers), **changes)
        with torch.no_grad():
            model.layer.pool_of().deep.scales.copy_(torch.tensor(scales[: len(value_layers)]))
        return model

    return attach_deep


def hooks_on_layers(model):
    layers = DeepByHand(model.get_base_model(), model).layers
    return [len(layer._forward_pre_hooks) for layer in layers]


# ---------------------------------------------------------------------------------------------------------- forward passes


def test_forward_equals_the_call_by_hand(architecture, build, attach, attach_deep, tokens):
    base = build(architecture)
    model = attach_deep(base)
    input_ids = tokens()
    output = model(input_ids=input_ids, output_hidden_states=True)
    expected = DeepByHand(base, model)(input_ids, output_hidden_states=True)
    torch.testing.assert_close(output.logits, expected.logits[:, 4:], **CLOSE)
    for hidden, by_hand_hidden in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(hidden, by_hand_hidden[:, 4:], **CLOSE)
    assert (output.logits - attach(base)(input_ids).logits).abs().max() > 1e-2  # the deep values have an effect


def test_gradients_equal_those_of_the_call_by_hand(architecture, build, attach_deep, tokens):
    base = build(architecture)
    model = attach_deep(base, **FIXED, key_loss_weight=0.0, pool_size=6).train()
    input_ids = tokens()
    model(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
    values, deep = model.layer.pool_of().values, model.layer.pool_of().deep.values
    gradients = values.grad.clone(), deep.grad.clone()
    values.grad = deep.grad = None

    reference = DeepByHand(base, model)
    prompts = reference.prompts(input_ids[:, :3])
    logits = reference(input_ids, prompts, reference.vectors_of(input_ids[:, :3])).logits[:, 6:-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 3:].flatten()).backward()
    assert (deep.grad.abs().amax(dim=(1, 2)) > 1e-5).all()  # in both layers
    torch.testing.assert_close(gradients, (values.grad, deep.grad), **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gives_the_same_result_as_alone(architecture, side, build, attach_deep, padded, tokens):
    model = attach_deep(build(architecture))
    rows = [tokens(1, length, seed=length)[0] for length in (7, 3, 5)]
    batch = padded(rows, side)
    logits = model(**batch).logits
    for row, real, row_logits in zip(rows, batch["attention_mask"].bool(), logits, strict=True):
        torch.testing.assert_close(row_logits[real], model(input_ids=row[None]).logits[0], **CLOSE)


def test_added_shared_prompts_have_vectors_of_their_own(build, attach_deep, tokens):
    base = build()
    model = attach_deep(base, shared_prompt_mode="add", num_shared_prompts=12)
    pool, input_ids = model.layer.pool_of(), tokens()
    assert pool.deep.shared_values.shape == (2, 12, 32)
    reference = DeepByHand(base, model)
    prompts = reference.prompts(input_ids) + pool.shared_values[:4]
    torch.testing.assert_close(model(input_ids).logits, reference(input_ids, prompts).logits[:, 4:], **CLOSE)


def test_more_selected_prompts_than_shared_ones(build, attach_deep, tokens):
    base = build()
    model = attach_deep(base, shared_prompt_mode="add", num_shared_prompts=4, pool_size=6, **FIXED)
    pool, input_ids = model.layer.pool_of(), tokens()
    model.peft_config["default"].inference_mode = True
    model.set_prompt_length(6)
    logits = model(input_ids).logits
    with torch.no_grad():
        shared = nn.functional.pad(pool.shared_values, (0, 0, 0, 2))
        pool.deep_shared_values = nn.Parameter(nn.functional.pad(pool.deep_shared_values, (0, 0, 0, 2)))
    reference = DeepByHand(base, model)
    expected = reference(input_ids, reference.prompts(input_ids) + shared).logits[:, 6:]
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_shared_prompts_that_come_first_have_no_deep_values(build, attach_deep, tokens):
    """The first position of a row is then a shared prompt, so each selected prompt has its vector."""
    base = build()
    model = attach_deep(base, num_shared_prompts=2)
    pool, input_ids = model.layer.pool_of(), tokens()
    assert pool.deep.shared_values is None
    reference = DeepByHand(base, model)
    indices = torch.stack([reference.indices(row.mean(dim=0)) for row in reference.embed(input_ids)])
    prompts = torch.cat([pool.shared_values.expand(2, -1, -1), pool.values[indices]], dim=1)
    vectors = [scale * layer[indices] for scale, layer in zip(pool.deep.scales, pool.deep.values, strict=True)]
    with reference.adding(vectors, first=2):
        expected = base(inputs_embeds=reference.inputs_embeds(input_ids, prompts)).logits[:, 6:]
    torch.testing.assert_close(model(input_ids).logits, expected, **CLOSE)


def test_deep_values_have_the_factors_of_the_selector(build, attach_deep, tokens):
    base = build()
    model = attach_deep(base, selector="attention")
    pool, input_ids = model.layer.pool_of(), tokens()
    logits = model(input_ids).logits
    selection = model.last_selection
    assert (selection.weights - 1).abs().max() > 0.05
    factors = selection.weights.unsqueeze(-1)
    prompts = pool.values[selection.indices] * factors
    vectors = [
        scale * (layer[selection.indices] * factors)[:, 1:]
        for scale, layer in zip(pool.deep.scales, pool.deep.values, strict=True)
    ]
    torch.testing.assert_close(logits, DeepByHand(base, model)(input_ids, prompts, vectors).logits[:, 4:], **CLOSE)


def test_one_prompt_is_at_the_first_position_and_has_no_deep_value(build, attach, attach_deep, tokens):
    base, input_ids = build(), tokens()
    model = attach_deep(base, prompt_length=1, **FIXED)
    torch.testing.assert_close(model(input_ids).logits, attach(base, prompt_length=1)(input_ids).logits, **CLOSE)
    model.train()(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
    assert torch.equal(model.layer.pool_of().deep.values.grad, torch.zeros(2, 12, 32))  # in the graph of the loss


def test_positions_of_images_do_not_change(build, attach_deep):
    model = attach_deep(build("qwen2-vl"))
    input_ids = torch.tensor([[5, 6, 58, 60, 60, 60, 60, 57, 7, 8]])
    image = {
        "pixel_values": torch.randn(4, 12, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
    }

    def call(row, **inputs):
        return model(input_ids=row, **image, mm_token_type_ids=(row == 60).long(), **inputs).logits

    alone = call(input_ids)
    padded = nn.functional.pad(input_ids, (3, 0))
    logits = call(padded, attention_mask=nn.functional.pad(torch.ones_like(input_ids), (3, 0)))
    torch.testing.assert_close(logits[:, 3:], alone, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_has_deep_values_in_float32(dtype, build, attach_deep, tokens):
    model = attach_deep(build().to(dtype), **FIXED).train()
    output = model(input_ids=tokens(), labels=supervised(tokens()))
    assert output.logits.dtype == dtype
    output.loss.backward()
    gradient = model.layer.pool_of().deep.values.grad
    assert gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.abs().max() > 0


# ------------------------------------------------------------------------------------------------------------- generation


def test_greedy_tokens_equal_an_uncached_decode_by_hand(architecture, build, attach, attach_deep, padded, tokens):
    base = build(architecture)
    model = attach_deep(base)
    rows = [tokens(1, length, seed=length)[0] for length in (7, 3)]
    batch = padded(rows, "left")
    sequences = model.generate(**batch, **GREEDY)
    reference = DeepByHand(base, model)
    for row, sequence in zip(rows, sequences, strict=True):
        assert sequence[7 - len(row) :].tolist() == reference.greedy(row, 5).tolist()
    assert not torch.equal(sequences, attach(base).generate(**batch, **GREEDY))  # the deep values have an effect
    modes = [{"use_cache": False}, {"prefill_chunk_size": 5}, STATIC]
    if architecture == "qwen3-vl":
        modes.remove(STATIC)  # transformers itself generates with no static cache for it
    for mode in modes:
        if "prefill_chunk_size" in mode and architecture in ("qwen2-vl", "qwen3-vl"):
            continue  # older versions of transformers compute the positions of each chunk from the whole input
        assert torch.equal(model.generate(**batch, **GREEDY, **mode), sequences), mode


@pytest.mark.parametrize("settings", [{}, STATIC, {"prefill_chunk_size": 4}], ids=["dynamic", "static", "chunked"])
def test_beams_equal_those_without_a_cache(settings, build, attach_deep, padded, tokens):
    model = attach_deep(build())
    batch = padded([tokens(1, length, seed=length)[0] for length in (6, 4)], "left")
    beams = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    expected = model.generate(**batch, **beams, use_cache=False)
    assert torch.equal(model.generate(**batch, **beams, **settings), expected)


def test_assisted_decoding_gives_the_greedy_tokens(build, attach_deep, tokens):
    model, row = attach_deep(build()), tokens(1).repeat(1, 2)
    expected = model.generate(row, **GREEDY)
    assert torch.equal(model.generate(row, **GREEDY, assistant_model=build()), expected)
    assert torch.equal(model.generate(row, **GREEDY, prompt_lookup_num_tokens=3), expected)


@torch.no_grad()
def test_decoding_steps_read_the_cache(build, attach_deep, tokens):
    model, input_ids = attach_deep(build()), tokens()
    whole_prompt = (torch.arange(6) < 4).long().expand(2, -1)
    expected = model(input_ids, listen_query_mask=whole_prompt).logits
    first = model(input_ids=input_ids[:, :4], use_cache=True)
    model.layer.pool_of().deep.values.fill_(100.0)
    cache = copy.deepcopy(first.past_key_values)
    following = model(input_ids=input_ids[:, 4:], past_key_values=cache).logits  # two tokens at once
    torch.testing.assert_close(following, expected[:, 4:], **CLOSE)
    for position in (4, 5):
        one = model(input_ids=input_ids[:, position : position + 1], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(one[:, 0], expected[:, position], **CLOSE)


def test_generation_continues_from_a_filled_cache(build, attach_deep, tokens):
    model, input_ids = attach_deep(build()), tokens()
    for cache in (transformers.DynamicCache(), transformers.StaticCache(model.config, max_cache_len=40)):
        turn = model.generate(input_ids, **GREEDY, suppress_tokens=[0], past_key_values=cache)
        more = torch.cat([turn, tokens(2, 3, seed=9)], dim=1)
        query_mask = torch.zeros_like(more)
        query_mask[:, :6] = 1
        settings = {**GREEDY, "suppress_tokens": [0], "disable_compile": True}
        expected = model.generate(more, **settings, listen_query_mask=query_mask)
        assert torch.equal(model.generate(more, **settings, past_key_values=cache), expected)


# --------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_gradient_checkpointing_does_not_change_gradients(architecture, use_reentrant, build, attach_deep, tokens):
    model = attach_deep(build(architecture), selector="attention", **FIXED).train()
    input_ids = tokens()

    def gradients():
        model.zero_grad()
        model(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
        return [parameter.grad.clone() for parameter in model.layer.pool_of().parameters()]

    expected = gradients()
    settings = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    for _ in range(2):
        for checkpointed, plain in zip(gradients(), expected, strict=True):
            assert plain.abs().max() > 0
            torch.testing.assert_close(checkpointed, plain, **CLOSE)
    model.get_base_model().gradient_checkpointing_disable()
    torch.testing.assert_close(gradients(), expected, **CLOSE)


def test_two_passes_before_one_backward_pass_under_gradient_checkpointing(build, attach_deep, tokens):
    model = attach_deep(build(), **FIXED).train()

    def gradient():
        model.zero_grad()
        losses = [model(input_ids=row, labels=supervised(row)).loss for row in tokens(2)[:, None]]
        sum(losses).backward()
        return model.layer.pool_of().deep.values.grad.clone()

    expected = gradient()
    model.get_base_model().gradient_checkpointing_enable()
    torch.testing.assert_close(gradient(), expected, **CLOSE)


@pytest.mark.not_simulated("an exception in a backward pass there ends the process")
def test_other_kinds_of_checkpointing_raise_in_the_backward_pass(build, attach, attach_deep, tokens):
    inputs = {"input_ids": tokens(), "labels": supervised(tokens())}
    for attach_one in (attach, attach_deep):
        model = attach_one(build(), **FIXED).train()
        layers = model.get_base_model().model.layers
        for number in range(2):
            layers[number] = checkpoint_wrapper(layers[number])
        loss = model(**inputs).loss
        if attach_one is attach:
            loss.backward()
        else:
            with pytest.raises(ValueError, match=r"layer 1 of the decoder, LlamaDecoderLayer, is computed again"):
                loss.backward()


def test_training_begins_with_the_model_without_deep_values(build, tokens):
    config = {"pool_size": 12, "prompt_length": 4}
    plain = get_peft_model(build(), ListenConfig(**config)).eval()
    deep = get_peft_model(build(), ListenConfig(**config, value_layers=[1])).eval()
    inputs = {"input_ids": tokens(), "labels": supervised(tokens())}
    assert torch.equal(deep(**inputs).logits, plain(**inputs).logits)
    assert torch.equal(deep.train()(**inputs).logits, plain.train()(**inputs).logits)
    pool = deep.layer.pool_of()
    assert torch.equal(pool.keys, plain.layer.pool_of().keys)
    assert not pool.deep.values.any() and not pool.deep.shared_values.any()


def hidden_states_of_prompts(model, input_ids):
    """Hidden states at the inputs of the layers, at the places of the prompt but the first, without deep values."""
    reference = DeepByHand(model.get_base_model(), model)
    pool = model.layer.pool_of()
    with torch.no_grad(), model.disable_adapter():
        prompts = pool.shared_values[: pool.config.prompt_length].expand(len(input_ids), -1, -1)
        embeds = reference.inputs_embeds(input_ids, prompts)
        states = model.get_base_model()(inputs_embeds=embeds, output_hidden_states=True).hidden_states
    return [state[:, 1 : pool.config.prompt_length] for state in states]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt-projected", "qwen2-vl"])
def test_scales_are_measured_in_the_first_pass_in_training(architecture, build, tokens):
    model = get_peft_model(build(architecture), ListenConfig(pool_size=12, prompt_length=4, value_layers=[1, 0]))
    deep, input_ids = model.layer.pool_of().deep, tokens()
    inputs = {"input_ids": input_ids, "labels": supervised(input_ids)}
    model.eval()(**inputs)
    assert not deep.scales.any()  # an evaluation measures nothing
    model.train()(**inputs).loss.backward()
    states = hidden_states_of_prompts(model, input_ids)
    # The test's vocabularies are small, so the drawn tokens are all of it, each about equally often.
    embeds = model.get_input_embeddings()(torch.arange(3, 60))
    for layer, scale in zip((0, 1), deep.scales, strict=True):
        expected = states[layer].square().mean(dim=-1).sqrt().median() / embeds.square().mean().sqrt()
        torch.testing.assert_close(scale, expected, atol=0, rtol=0.05)
    assert deep.scales[1] > 1.2 * deep.scales[0] or architecture == "opt-projected"
    assert deep.values.grad.abs().amax(dim=(1, 2)).min() > 0  # trained from the first step on

    before = deep.scales.clone()
    with torch.no_grad():
        model.layer.pool_of().shared_values.mul_(3)
    model(**inputs)
    assert torch.equal(deep.scales, before)


@pytest.mark.parametrize("use_reentrant", [None, True])
def test_scales_are_measured_under_gradient_checkpointing(use_reentrant, build, tokens):
    scales = []
    for checkpointing in (False, True):
        model = get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=4, value_layers=[0, 1])).train()
        if checkpointing:
            settings = None if use_reentrant is None else {"use_reentrant": use_reentrant}
            model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        model(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
        scales.append(model.layer.pool_of().deep.scales)
    assert scales[0].all()
    torch.testing.assert_close(*scales)


def test_scales_are_measured_once_there_are_prompts_to_measure(build, tokens):
    settings = {"pool_size": 12, "prompt_length": 3, "max_train_prompt_length": 3, "value_layers": [1]}
    model = get_peft_model(build(), ListenConfig(**settings)).train()
    deep = model.layer.pool_of().deep
    lengths = [train_prompt_length(model.peft_config["default"], step) for step in range(12)]
    for step in (lengths.index(1), lengths.index(3)):
        assert not deep.scales.any()
        model.begin_step(step)
        model(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
        assert model.last_selection.indices.shape[1] == lengths[step]
    assert deep.scales.all()


def test_rows_that_are_not_finite_do_not_spoil_the_scales(build, attach, padded, tokens):
    base = build()
    model = attach(base, value_layers=[1], init_weights=True, **FIXED).train()
    embeds = model.get_input_embeddings()(tokens()).detach()
    embeds[0] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(inputs_embeds=embeds, labels=supervised(tokens()))
    scale = model.layer.pool_of().deep.scales
    assert scale.isfinite().all() and (scale > 0).all()


def test_training_lowers_the_loss_by_deep_values_alone(build, attach, tokens):
    torch.manual_seed(0)
    model = attach(build(), value_layers=[0, 1], init_weights=True, **FIXED).train()
    deep = model.layer.pool_of().deep
    optimizer = torch.optim.AdamW([deep.values], lr=0.05)
    input_ids, history = tokens(4, 8), []
    for _ in range(40):
        loss = model(input_ids=input_ids, labels=supervised(input_ids)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]


def test_parameter_groups_treat_deep_values_like_the_others(build):
    model = get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=4, value_layers=[0, 1]))
    pool = model.layer.pool_of()
    groups = parameter_groups(model, 1e-3, value_learning_rate=2e-3, shared_value_learning_rate=3e-3, weight_decay=0.1)
    rates = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert rates[id(pool.deep.values)] == rates[id(pool.values)] == (2e-3, 0.0)
    assert rates[id(pool.deep.shared_values)] == rates[id(pool.shared_values)] == (3e-3, 0.0)
    assert len(rates) == 5


def test_the_number_of_parameters_is_that_of_the_documentation(build):
    def trained(**settings):
        config = ListenConfig(pool_size=12, prompt_length=4, **settings)
        return get_peft_model(build("opt-projected"), config).get_nb_trainable_parameters()[0]

    width, embedding = 32, 16
    assert trained() == (2 * 12 + 4) * embedding
    assert trained(value_layers=[0, 1]) == trained() + 2 * (12 + 4) * width
    plain = {"shared_prompt_mode": "prepend", "num_shared_prompts": 3}
    assert trained(**plain, value_layers=[1]) == trained(**plain) + 12 * width


# ------------------------------------------------------------------------------------------------------------ life of hooks


def test_without_deep_values_no_layer_has_a_hook(architecture, build, attach, attach_deep):
    assert hooks_on_layers(attach(build(architecture))) == [0, 0]
    assert hooks_on_layers(attach_deep(build(architecture), value_layers=[1])) == [0, 1]


def test_hooks_follow_the_adapters(build, attach, attach_deep, tokens):
    base, input_ids = build(), tokens()
    model = attach(base)
    expected = model(input_ids).logits
    config = ListenConfig(pool_size=12, prompt_length=4, init_weights=False, value_layers=[1])
    model.add_adapter("deep", config)
    assert hooks_on_layers(model) == [0, 1]
    assert torch.equal(model(input_ids).logits, expected)  # the first adapter is still active
    model.set_adapter("deep")
    assert not torch.equal(model(input_ids).logits, expected)
    with model.disable_adapter():
        assert torch.equal(model(input_ids).logits, base(input_ids).logits)
    model.add_adapter("deeper", ListenConfig(pool_size=12, prompt_length=4, value_layers=[0, 1]))
    assert hooks_on_layers(model) == [1, 1]
    model.delete_adapter("deeper")
    assert hooks_on_layers(model) == [0, 1]
    model.set_adapter("default")
    model.delete_adapter("deep")
    assert hooks_on_layers(model) == [0, 0]
    assert torch.equal(model(input_ids).logits, expected)


def test_unloading_restores_the_layers(architecture, build, tokens):
    base = build(architecture)
    logits = base(tokens()).logits
    base.gradient_checkpointing_enable()
    checkpoints = {name: module.__dict__.get("_gradient_checkpointing_func") for name, module in base.named_modules()}
    model = get_peft_model(base, ListenConfig(pool_size=8, prompt_length=4, value_layers=[0, 1], init_weights=False))
    layers = DeepByHand(base, model).layers
    model.train()(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
    unloaded = model.eval().unload()
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
    for name, module in unloaded.named_modules():
        assert module.__dict__.get("_gradient_checkpointing_func") is checkpoints[name]
    assert torch.equal(unloaded(tokens()).logits, logits)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saving_and_loading_gives_the_same_model(low_cpu_mem_usage, build, attach_deep, tokens, tmp_path):
    base = build()
    model = attach_deep(base, shared_prompt_mode="add")
    model.save_pretrained(tmp_path)
    prefix = "base_model.model.model.prompt_pool.listen_pools."
    names = {name.removeprefix(prefix) for name in load_file(tmp_path / "adapter_model.safetensors")}
    assert {"deep_values", "deep_shared_values", "deep_scales"} < names
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(loaded.layer.pool_of().deep.scales, torch.tensor([0.5, 2.0]))
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    trained = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True).train()
    trained(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
    assert torch.equal(trained.layer.pool_of().deep.scales, torch.tensor([0.5, 2.0]))  # not measured again


def test_an_adapter_for_layers_that_are_not_there_raises(build, attach_deep, tmp_path):
    attach_deep(build(), value_layers=[1]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"LlamaModel has 1 layers.*`value_layers` contains 1"):
        PeftModel.from_pretrained(build(num_hidden_layers=1), tmp_path)


def test_copies_are_independent(build, attach_deep, tokens):
    model = attach_deep(build())
    expected = model(tokens()).logits
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(tokens()).logits, expected)
        with torch.no_grad():
            duplicate.layer.pool_of().deep.values.zero_()
        assert not torch.equal(duplicate(tokens()).logits, expected)
        duplicate.unload()
        assert torch.equal(model(tokens()).logits, expected)
        assert hooks_on_layers(model) == [1, 1]


def test_lora_beside_deep_values_is_trained_too(build, attach_deep, tokens):
    model = attach_deep(build(), **FIXED)
    before = model(tokens()).logits
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    inject_adapter_in_model(lora, model.get_base_model(), adapter_name="lora")
    assert not torch.equal(model(tokens()).logits, before)
    model.train().requires_grad_(True)
    model.get_base_model().gradient_checkpointing_enable()
    model(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
    trained = [name for name, _ in model.named_parameters() if "lora_" in name or "deep_values" in name]
    assert len(trained) == 9
    for name in trained:
        assert model.get_parameter(name).grad.abs().max() > 0, name


# ----------------------------------------------------------------------------------------------------- threads, ended calls


@torch.no_grad()
def test_threads_get_their_own_deep_values(build, attach_deep, tokens):
    model = attach_deep(build())
    inputs = [tokens(1 + seed % 3, 4 + seed % 4, seed=seed) for seed in range(8)]
    expected = [(model(row).logits, model.generate(row, **GREEDY)) for row in inputs]
    found, barrier = [None] * len(inputs), threading.Barrier(len(inputs))

    def worker(number):
        barrier.wait()
        for _ in range(5):
            found[number] = (model(inputs[number]).logits, model.generate(inputs[number], **GREEDY))

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (logits, sequences), (expected_logits, expected_sequences) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, **CLOSE)
        assert torch.equal(sequences, expected_sequences)


@torch.no_grad()
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_call_that_was_ended_leaves_no_deep_values(error, build, attach_deep, tokens):
    model = attach_deep(build()).get_base_model()
    layers, hidden = model.model.layers, torch.randn(1, 6, 32)
    cosine = model.model.rotary_emb(hidden, torch.arange(6)[None])
    expected, alone = model(tokens()).logits, layers[1](hidden, position_embeddings=cosine)

    def stop(*_):
        handle.remove()
        raise error

    handle = layers[0].self_attn.register_forward_pre_hook(stop)
    with pytest.raises(error):
        model(tokens())
    assert torch.equal(layers[1](hidden, position_embeddings=cosine)[0], alone[0])  # a layer that is called by itself
    assert torch.equal(model(tokens()).logits, expected)


# ------------------------------------------------------------------------------------------------------------ deep soft prompt


def test_a_deep_soft_prompt_is_a_pool_without_a_choice(build, tokens):
    """As many values as places, each with its own place: every input gets the same prompt, at every depth."""
    config = ListenConfig(
        pool_size=4,
        prompt_length=4,
        selector="grouped",
        selector_kwargs={"num_groups": 4},
        shared_prompt_mode="prepend",
        value_layers=[0, 1],
        init_weights=False,
    )
    base = build()
    model = get_peft_model(copy.deepcopy(base), config).eval()
    pool, input_ids = model.layer.pool_of(), tokens(3)
    logits = model(input_ids).logits
    assert model.last_selection.indices.tolist() == [[0, 1, 2, 3]] * 3
    reference = DeepByHand(base, model)
    prompts, vectors = pool.values.expand(3, -1, -1), [layer[1:].expand(3, -1, -1) for layer in pool.deep.values]
    torch.testing.assert_close(logits, reference(input_ids, prompts, vectors).logits[:, 4:], **CLOSE)


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "layers",
    [3, [1.0], ["1"], [-1], [True], "12", {"0": 1}],
    ids=["int", "float", "str", "negative", "bool", "text", "dict"],
)
def test_other_values_than_layer_numbers_raise(layers):
    with pytest.raises(ValueError, match=r"`value_layers` must be a list of numbers of decoder layers, from 0, got"):
        ListenConfig(value_layers=layers)


def test_layer_numbers_are_sorted_and_an_empty_list_is_none():
    assert ListenConfig(value_layers=[5, 1, 5]).value_layers == [1, 5]
    assert ListenConfig(value_layers=[]).value_layers is None


def test_layers_that_the_decoder_does_not_have_raise(architecture, build):
    base = build(architecture)
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=r"has 2 layers, numbered from 0 to 1, and `value_layers` contains 2"):
        get_peft_model(base, ListenConfig(value_layers=[1, 2, 7]))
    assert [name for name, _ in base.named_modules()] == names  # a rejected model is not changed


@pytest.mark.parametrize("change", ["another list", "no list", "another number"])
def test_a_decoder_whose_layers_are_not_found_raises_with_its_name(change, build):
    base = build()
    if change == "another list":
        base.model.more_layers = nn.ModuleList(copy.deepcopy(layer) for layer in base.model.layers)
    elif change == "no list":
        base.model.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
    else:
        base.config.num_hidden_layers = 3
    with pytest.raises(
        ValueError, match=r"found no decoder layers in LlamaModel.*Leave `value_layers` and `query_layer` out"
    ):
        get_peft_model(base, ListenConfig(value_layers=[1]))
    get_peft_model(base, ListenConfig())  # without deep values, layers are not needed
