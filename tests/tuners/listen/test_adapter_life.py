"""Adding, switching, saving, loading and removing adapters, with the methods of PEFT and of transformers."""

import copy
import json
import pickle
from pathlib import Path

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from peft_listen import ListenConfig, ListenModel


PEFT = Version(peft.__version__)
needs_renaming_by_peft = pytest.mark.skipif(
    PEFT < Version("0.21"), reason="PEFT below 0.21 does not let a method look at the tensors that it loads"
)
needs_native_loading = pytest.mark.skipif(
    PEFT < Version("0.22") and Version(transformers.__version__) >= Version("5.24"),
    reason="transformers 5.24 loads and adds adapters itself only with PEFT 0.22",
)
FIXTURE = Path(__file__).parents[2] / "fixtures" / "adapter_v0"
PATH = "base_model.model.model.prompt_pool"
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture
def saved_base(build, tmp_path):
    build().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


# ------------------------------------------------------------------------------------------------- several adapters


def test_adapters_with_different_settings_can_coexist(build, attach, tokens):
    model = attach(build())
    input_ids = tokens()
    first = model(input_ids).logits
    other = ListenConfig(
        pool_size=20, prompt_length=7, init_weights=False, selector="attention", seed=5, center_queries=False
    )
    model.add_adapter("other", other)
    assert torch.equal(model(input_ids).logits, first)  # the first adapter is still active
    model.set_adapter("other")
    second = model(input_ids).logits
    assert model.last_selection.indices.shape == (2, 7)
    assert model.last_selection.weights is not None
    assert not torch.equal(second, first)
    model.set_prompt_length(3, "default")
    assert torch.equal(model(input_ids).logits, second)
    model.set_adapter("default")
    model(input_ids)
    assert model.last_selection.indices.shape == (2, 3)
    model.set_prompt_length(4)
    assert torch.equal(model(input_ids).logits, first)


def test_only_the_active_adapter_is_trained(build, attach, tokens):
    model = attach(build()).train()
    model.add_adapter("other", ListenConfig(pool_size=8, prompt_length=2))
    for active in ("default", "other"):
        model.set_adapter(active)
        trained = {name.rsplit(".", 2)[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {active}
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert model.layer.listen_pools["default"].keys.grad is None
    assert model.layer.listen_pools["other"].keys.grad is not None


def test_activating_two_pools_raises(build, attach):
    model = attach(build())
    model.add_adapter("other", ListenConfig(pool_size=8, prompt_length=2))
    with pytest.raises(
        ValueError, match=r"Only one LiSTEN adapter can be active at a time, got \['default', 'other'\]"
    ):
        model.base_model.set_adapter(["default", "other"])


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_different_adapters_for_the_rows_of_a_batch_raise(task_type, build, attach, tokens):
    model = attach(build(), task_type=task_type)
    model.add_adapter("other", ListenConfig(pool_size=8, prompt_length=2))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"`adapter_names`.*Call `set_adapter`"):
            call(input_ids=tokens(), adapter_names=["default", "other"])


def test_a_deleted_adapter_leaves_no_tensors(build, attach, tokens):
    model = attach(build())
    before, names = model(tokens()).logits, set(model.state_dict())
    model.add_adapter("other", ListenConfig(pool_size=8, prompt_length=2))
    model.delete_adapter("other")
    assert set(model.state_dict()) == names
    assert set(model.layer.listen_pools) == {"default"}
    assert torch.equal(model(tokens()).logits, before)
    model.add_adapter("other", ListenConfig(pool_size=9, prompt_length=3, init_weights=False))
    with pytest.warns(UserWarning, match=r"Setting active adapter to other"):
        model.delete_adapter("default")
    model(tokens())
    assert model.last_selection.indices.shape == (2, 3)
    assert not [name for name in model.state_dict() if ".default." in name]


def test_the_base_model_runs_after_the_last_adapter_is_deleted(build, attach, tokens):
    base = build()
    model = attach(base)
    model.base_model.delete_adapter("default")
    assert torch.equal(model.base_model.model(tokens()).logits, base(tokens()).logits)


def test_a_disabled_adapter_gives_exactly_the_base_model(architecture, build, attach, tokens):
    base = build(architecture)
    model = attach(base)
    input_ids = tokens()
    on, off = model(input_ids).logits, base(input_ids).logits
    with model.disable_adapter():
        assert torch.equal(model(input_ids).logits, off)
    assert torch.equal(model(input_ids).logits, on)


# -------------------------------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_gives_the_same_model(low_cpu_mem_usage, dtype, build, attach, tokens, tmp_path):
    base = build().to(dtype)
    model = attach(base, center_queries=True)
    with torch.no_grad():
        model.layer.listen_pools["default"].query_mean.normal_()
        model.layer.listen_pools["default"].saved_step.fill_(17)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert isinstance(loaded.base_model, ListenModel)
    assert equal(loaded.state_dict(), model.state_dict())
    assert loaded.layer.listen_pools["default"].keys.dtype == torch.float32
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.peft_config["default"].inference_mode


def test_a_loaded_adapter_can_be_trained_further(build, attach, tokens, tmp_path):
    attach(build()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build(), tmp_path, is_trainable=True).train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert model.layer.listen_pools["default"].values.grad.abs().max() > 0


def test_the_keys_of_a_state_dict_are_stable(build, attach, tmp_path):
    model = attach(build())
    names = {f"{PATH}.listen_pools.{name}" for name in ("keys", "values", "query_mean", "saved_step")}
    assert set(get_peft_model_state_dict(model)) == names
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == names
    other = attach(build(), adapter_name="other", seed=3)
    result = set_peft_model_state_dict(other, get_peft_model_state_dict(model), adapter_name="other")
    assert not result.unexpected_keys
    assert equal(get_peft_model_state_dict(other, adapter_name="other"), get_peft_model_state_dict(model))


def test_each_adapter_is_saved_alone(build, attach, tokens, tmp_path):
    model = attach(build())
    model.add_adapter("other", ListenConfig(pool_size=8, prompt_length=2, init_weights=False))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path / "other").eval()
    assert loaded.layer.listen_pools["default"].keys.shape == (8, 32)
    loaded.load_adapter(tmp_path, "first")
    for name, ours in (("default", "other"), ("first", "default")):
        loaded.set_adapter(name), model.set_adapter(ours)
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_modules_to_save_are_trained_and_saved(build, attach, tokens, tmp_path):
    base = build()
    model = attach(base, modules_to_save=["lm_head"], task_type="CAUSAL_LM").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(loaded(tokens()).logits, model.eval()(tokens()).logits)
    with loaded.disable_adapter():
        assert torch.equal(loaded(tokens()).logits, base(tokens()).logits)
    assert f"{PATH}.listen_pools.keys" in load_file(tmp_path / "adapter_model.safetensors")


@needs_renaming_by_peft
def test_an_adapter_for_another_size_raises(build, attach, tmp_path):
    attach(build()).save_pretrained(tmp_path)
    sizes = {"vocab_size": 61, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    larger = AutoModelForCausalLM.from_config(LlamaConfig(hidden_size=64, **sizes))
    with pytest.raises(ValueError, match=r"made for embeddings of size 32 .*has embeddings of size 64"):
        PeftModel.from_pretrained(larger, tmp_path)


@needs_renaming_by_peft
def test_an_adapter_for_another_architecture_raises(build, attach, tmp_path):
    attach(build()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"another architecture: its prompts are at .*model.model'.*'.*model.decoder'"
    ):
        PeftModel.from_pretrained(build("opt"), tmp_path)


@needs_renaming_by_peft
def test_an_adapter_saved_by_the_first_version_still_loads():
    facts = json.loads((FIXTURE / "expected.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(FIXTURE / "base").eval()
    model = PeftModel.from_pretrained(base, FIXTURE).eval()
    with torch.no_grad():
        logits = model(torch.tensor(facts["input_ids"])).logits
    assert model.last_selection.indices.tolist() == facts["indices"]
    torch.testing.assert_close(logits[:, -1], torch.tensor(facts["last_logits"]), atol=1e-4, rtol=1e-4)
    generated = model.generate(torch.tensor(facts["input_ids"]), max_new_tokens=5, do_sample=False)
    assert generated.tolist() == facts["generated"]


# ------------------------------------------------------------------------------------------ transformers' own loading


def test_auto_classes_load_an_adapters_folder(saved_base, attach, tokens, tmp_path):
    model = attach(AutoModelForCausalLM.from_pretrained(saved_base), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    input_ids = tokens()
    expected = model(input_ids).logits
    generated = model.generate(input_ids, max_new_tokens=4, do_sample=False)
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
    ):
        assert torch.equal(loaded.eval()(input_ids).logits, expected)
        for settings in ({}, {"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}):
            sequences = loaded.generate(input_ids, max_new_tokens=4, do_sample=False, **settings)
            assert torch.equal(sequences, generated)


@needs_native_loading
def test_transformers_models_load_switch_and_delete_adapters(build, attach, tokens, tmp_path):
    base, input_ids = build(), tokens()
    expected = {}
    for seed in (1, 2):
        model = attach(base, seed=seed, prompt_length=seed + 2)
        model.save_pretrained(tmp_path / str(seed))
        expected[seed] = model(input_ids).logits
    loaded = copy.deepcopy(base)
    loaded.load_adapter(str(tmp_path / "1"), "first")
    assert torch.equal(loaded.eval()(input_ids).logits, expected[1])
    loaded.load_adapter(str(tmp_path / "2"), "second")
    loaded.set_adapter("second")
    assert torch.equal(loaded(input_ids).logits, expected[2])
    loaded.set_adapter("first")
    assert torch.equal(loaded(input_ids).logits, expected[1])
    loaded.disable_adapters()
    assert torch.equal(loaded(input_ids).logits, base(input_ids).logits)
    loaded.enable_adapters()
    assert torch.equal(loaded(input_ids).logits, expected[1])
    loaded.delete_adapter(["first", "second"])
    assert torch.equal(loaded(input_ids).logits, base(input_ids).logits)


@needs_native_loading
def test_a_checkpoint_with_queries_is_loaded_by_transformers_without_a_warning(
    build, attach, tokens, tmp_path, caplog
):
    model = attach(build(), center_queries=True)
    model.base_model.layer.pool_of().remember_queries(torch.ones(3, 32), 10)
    model.save_pretrained(tmp_path)
    expected, loaded = model(tokens()).logits, build()
    with caplog.at_level("WARNING"):
        info = loaded.load_adapter(str(tmp_path))
    assert torch.equal(loaded(tokens()).logits, expected)
    assert not info.unexpected_keys and not info.missing_keys
    assert torch.equal(loaded.model.prompt_pool.pool_of().recent_queries, torch.ones(3, 32))
    assert "recent_queries" not in caplog.text


@needs_native_loading
def test_transformers_models_add_and_save_adapters(build, tokens, tmp_path):
    base = build()
    base.add_adapter(ListenConfig(pool_size=12, prompt_length=4, init_weights=False), "new")
    base.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    assert base.model.prompt_pool.listen_pools["new"].values.grad.abs().max() > 0
    base.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert torch.equal(loaded(tokens()).logits, base(tokens()).logits)


# ------------------------------------------------------------------------------------------------------ unloading


def test_unloading_restores_the_base_model_bit_for_bit(architecture, build, tokens):
    base = build(architecture)
    before, names = copy.deepcopy(base.state_dict()), [name for name, _ in base.named_modules()]
    attributes = set(base.__dict__)
    logits = base(tokens()).logits
    model = get_peft_model(base, ListenConfig(pool_size=8, prompt_length=2, init_weights=False))
    assert [name for name, _ in base.named_modules() if "prompt_pool" not in name] == names  # no path has changed
    model(tokens())
    unloaded = model.unload()
    assert unloaded is base
    assert equal(base.state_dict(), before)
    assert [name for name, _ in base.named_modules()] == names
    assert set(base.__dict__) == attributes
    for module in base.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
    assert torch.equal(base(tokens()).logits, logits)
    again = get_peft_model(base, ListenConfig(pool_size=8, prompt_length=2, init_weights=False))
    assert not torch.equal(again(tokens()).logits, logits)


def test_merging_raises(build, attach):
    model = attach(build())
    for merge in (model.merge_and_unload, model.base_model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=r"cannot be merged into the weights"):
            merge()
    assert model.layer.active_adapter_name == "default"


def test_a_custom_generate_of_the_model_is_kept(build, attach, tokens):
    base = build()
    base.generate = lambda inputs=None, **kwargs: "custom"
    model = get_peft_model(base, ListenConfig(pool_size=8, prompt_length=2))
    assert model.generate(tokens()) == "custom"
    assert model.unload().generate(tokens()) == "custom"


# ------------------------------------------------------------------------------------------------------------- copies


def test_a_copy_is_independent(build, attach, tokens):
    model = attach(build()).train()
    model(input_ids=tokens(), labels=tokens())  # leaves a graph on the model
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        duplicate.eval(), model.eval()
        assert torch.equal(duplicate(tokens()).logits, model(tokens()).logits)
        generated = model.generate(tokens(), max_new_tokens=3, do_sample=False, use_cache=False)
        with torch.no_grad():
            duplicate.layer.listen_pools["default"].values.add_(1.0)
        assert not torch.equal(duplicate(tokens()).logits, model(tokens()).logits)
        assert duplicate.last_selection is not model.last_selection
        assert duplicate.get_base_model().generate.__self__ is not model.get_base_model().generate.__self__
        assert torch.equal(model.generate(tokens(), max_new_tokens=3, do_sample=False, use_cache=False), generated)
        with duplicate.disable_adapter():
            assert torch.equal(model(tokens()).logits, model(tokens()).logits)
        duplicate.unload()
        assert model.layer.active_adapter_name == "default"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_can_be_cast(dtype, build, attach, tokens):
    model = attach(build()).to(dtype)
    assert model.layer.listen_pools["default"].values.dtype == dtype
    assert model(tokens()).logits.dtype == dtype
    assert model.generate(tokens(), max_new_tokens=2).shape == (2, 8)


def test_the_pool_can_have_the_precision_of_the_base_model(build, attach, tokens, tmp_path):
    base, config = build().bfloat16(), ListenConfig(pool_size=8, prompt_length=2, num_shared_prompts=2)
    model = get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    names = [name for name, _ in model.named_parameters() if ".listen_" in name]
    assert len(names) == 3
    assert {model.get_parameter(name).dtype for name in names} == {torch.bfloat16}
    assert model.layer.listen_pools["default"].query_mean.dtype == torch.float32
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    for name in names:
        assert model.get_parameter(name).grad.isfinite().all()
    model.add_adapter("wide", config)
    assert model.layer.listen_pools["wide"].keys.dtype == torch.float32
    assert model.layer.listen_pools["default"].keys.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    for autocast, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, autocast_adapter_dtype=autocast)
        assert {loaded.get_parameter(name).dtype for name in names} == {dtype}
        torch.testing.assert_close(loaded.eval()(tokens()).logits, model.eval()(tokens()).logits, atol=2e-2, rtol=2e-2)


def test_every_parameter_is_in_the_graph_of_any_loss(build, attach, tokens):
    for mode in (True, False):
        model = attach(build()).train(mode)
        model(tokens(), listen_query_mask=torch.ones(2, 6)).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_requires_grad_can_be_set_for_each_adapter(build, attach):
    model = attach(build())
    model.add_adapter("other", ListenConfig(pool_size=8, prompt_length=2))
    for trained in (["default", "other"], ["other"]):
        model.set_requires_grad(["default", "other"], requires_grad=False)
        model.set_requires_grad(trained)
        found = {name.rsplit(".", 2)[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert found == set(trained)


def test_prompts_cannot_be_converted_to_lora(attach, build):
    assert not attach(build()).supports_lora_conversion()


# ------------------------------------------------------------------------------------------------------ together with LoRA


def trained(model):
    return {
        name.rsplit(".", 1)[-1] if "listen" in name else "lora"
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@needs_native_loading
@pytest.mark.parametrize("first", ["lora", "listen"])
def test_prompts_and_lora_are_trained_and_saved_together_by_transformers_add_adapter(first, build, tokens, tmp_path):
    model = build()
    configs = {
        "lora": LoraConfig(**LORA),
        "listen": ListenConfig(pool_size=12, prompt_length=4, init_weights=False, stochastic_prompt_length=False),
    }
    for name in sorted(configs, reverse=first == "lora"):
        model.add_adapter(configs[name], name)
    model.set_adapter(["lora", "listen"])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = copy.deepcopy(model.state_dict())
    model.train()(input_ids=tokens(), labels=tokens().masked_fill(torch.arange(6) < 3, -100)).loss.backward()
    optimizer.step()
    moved = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    assert {"lora_A", "lora_B", "keys", "values"} == {
        part for name in moved for part in name.split(".") if part.startswith("lora_") or part in ("keys", "values")
    }
    assert all("lora_" in name or "listen_" in name for name in moved)  # the base model is unchanged

    model.eval()
    expected = model(tokens()).logits
    for name in ("lora", "listen"):
        model.set_adapter(name)
        model.save_pretrained(tmp_path / name)
    loaded = build()
    for name in ("lora", "listen"):
        loaded.load_adapter(str(tmp_path / name), name)
    loaded.set_adapter(["lora", "listen"])
    assert torch.equal(loaded.eval()(tokens()).logits, expected)
    lora = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert lora and not [name for name in lora if "listen" in name]
    listen = load_file(tmp_path / "listen" / "adapter_model.safetensors")
    assert listen and not [name for name in listen if "lora" in name]


@needs_native_loading
@pytest.mark.skipif(PEFT < Version("0.21"), reason="PEFT below 0.21 freezes the pool when it injects LoRA")
def test_prompts_and_lora_are_trained_and_saved_together_by_injecting_lora_under_a_peft_model(
    build, attach, tokens, tmp_path
):
    model = attach(build(), adapter_name="listen", stochastic_prompt_length=False)
    inject_adapter_in_model(LoraConfig(**LORA), model.get_base_model(), adapter_name="lora")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_A" in name for name in names) and any(name.endswith(".keys") for name in names)
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name
    expected = model.eval()(tokens()).logits
    with model.disable_adapter():
        assert torch.equal(model(tokens()).logits, build()(tokens()).logits)
    model.save_pretrained(tmp_path)
    loaded = build()
    loaded.load_adapter(str(tmp_path / "lora"), "lora")
    loaded.load_adapter(str(tmp_path / "listen"), "listen")
    loaded.set_adapter(["lora", "listen"])
    assert torch.equal(loaded.eval()(tokens()).logits, expected)


def test_prompts_can_be_added_to_a_model_with_lora(build, tokens):
    lora = get_peft_model(build(), LoraConfig(**LORA), adapter_name="lora")
    alone = lora.eval()(tokens()).logits
    with pytest.warns(UserWarning, match=r"Already found a `peft_config`"):
        model = get_peft_model(
            lora.get_base_model(),
            ListenConfig(pool_size=12, prompt_length=4, init_weights=False),
            adapter_name="listen",
        )
    model.eval()
    assert not torch.equal(model(tokens()).logits, alone)
    model.set_prompt_length(2)
    model(tokens())
    assert model.last_selection.indices.shape == (2, 2)


@pytest.mark.parametrize(
    ("settings", "is_copy"),
    [
        ({}, True),
        ({"prompt_length": 2, "key_loss_weight": 0.5, "query_mean_momentum": 0.5}, True),
        ({"center_queries": False}, False),
        ({"standardize_queries": True}, False),
        ({"query_pooling": "mean"}, False),
        ({"query_ignored_token_ids": [5]}, False),
        ({"query_layer": 1}, False),
    ],
)
def test_a_pool_of_equal_parameters_takes_the_statistics_of_equal_queries_only(
    settings, is_copy, build, attach, tokens
):
    common = {"center_queries": True, "query_pooling": "modality_mean", "prompt_length": 4, "pool_size": 12}
    model = attach(build(), **common)
    model.add_adapter("other", ListenConfig(**{**model.peft_config["default"].to_dict(), **settings}))
    layer = model.base_model.layer
    trained, other = layer.pool_of("default"), layer.pool_of("other")
    assert other.has_parameters_of(trained)
    trained.query_mean.fill_(0.25)
    initial = other.query_mean.clone()
    model.set_adapter("other")
    model(tokens())
    expected = trained.query_mean if is_copy else initial
    torch.testing.assert_close(other.query_mean, expected, atol=0, rtol=0)
