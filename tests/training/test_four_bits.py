"""A language model in 4 bits, prepared by PEFT: the pool is trained in float32, and saved without it."""

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.training import AudioListenCollator, parameter_groups
from tests import small_models


bitsandbytes = pytest.importorskip("bitsandbytes", reason="it quantizes, `pip install bitsandbytes`")
pytestmark = pytest.mark.cpu_only("it quantizes on the CPU; tests/gpu has a model in 4 bits")

# Wide enough for the kernels of bitsandbytes for all processors.
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SETTINGS = {"pool_size": 8, "prompt_length": 2, "center_queries": True, "task_type": "CAUSAL_LM"}
CONFIG = ListenConfig(**SETTINGS)


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    ids = small_models.CHAT_IDS
    config = LlamaConfig(vocab_size=small_models.CHAT_VOCAB_SIZE, num_key_value_heads=4, **SIZES, **ids)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    small_models.make_chat_tokenizer().save_pretrained(folder)
    return folder


def quantization():
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def frozen(model):
    return {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}


def train(model, batch, steps=4):
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2))
    losses = []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
def test_the_pool_of_a_text_model_is_trained(checkpointing, llm_folder, tmp_path):
    llm = AutoModelForCausalLM.from_pretrained(llm_folder, quantization_config=quantization())
    llm = prepare_model_for_kbit_training(llm, use_gradient_checkpointing=checkpointing)
    model = get_peft_model(llm, CONFIG)
    pool = model.base_model.layer.pool_of()
    assert isinstance(llm.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    assert {parameter.dtype for parameter in pool.parameters()} == {torch.float32}
    # The embeddings, from which the pool is initialized, are not quantized.
    whole = get_peft_model(AutoModelForCausalLM.from_pretrained(llm_folder), CONFIG)
    torch.testing.assert_close(pool.keys, whole.base_model.layer.pool_of().keys)

    row = torch.arange(5, 17)[None]
    before = frozen(model)
    losses = train(model, {"input_ids": row, "labels": row.masked_fill(torch.arange(12) < 6, -100)})
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in frozen(model).items():
        assert torch.equal(parameter, before[name]), name

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llm_folder), tmp_path)
    assert torch.equal(loaded.base_model.layer.pool_of().values, pool.values)


def make_audio_model(llm_folder, published_parts, **llm_kwargs):
    """An audio model of a language model, in 4 bits if `llm_kwargs` say so, and its processor."""
    parts = {"speech": str(published_parts["speech"]), "llm": str(llm_folder)}
    torch.manual_seed(0)
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        **parts, qformer_config=small_models.QFORMER, llm_kwargs=llm_kwargs
    )
    return model, AudioListenProcessor.from_sub_models_pretrained(**parts)


def projector_of(model):
    return model.get_base_model().model.multi_modal_projector.modules_to_save["default"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
def test_the_pool_and_the_projector_of_an_audio_model_are_trained(
    checkpointing, llm_folder, published_parts, examples, tmp_path
):
    base, processor = make_audio_model(llm_folder, published_parts, quantization_config=quantization())
    assert isinstance(base.model.language_model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    # Only the language model is quantized.
    assert not any(isinstance(each, bitsandbytes.nn.Linear4bit) for each in base.model.speech_tower.modules())
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
    model = get_peft_model(base, ListenConfig(**SETTINGS, modules_to_save=["multi_modal_projector"]))
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert {each.dtype for each in trained.values()} == {torch.float32}
    batch = AudioListenCollator(processor)(examples)

    model.train()(**batch).loss.backward()
    # Those of all weights: a kernel without a backward pass would cut off the projector.
    gradients = {name: float(each.grad.abs().max()) for name, each in trained.items()}
    assert min(gradients.values()) > 0, gradients
    model.zero_grad()
    before, first = frozen(model), {name: each.detach().clone() for name, each in trained.items()}
    losses = train(model, batch)
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in frozen(model).items():
        assert torch.equal(parameter, before[name]), name
    assert not [name for name, each in trained.items() if torch.equal(each, first[name])]

    model.save_pretrained(tmp_path / "adapter")
    whole, _ = make_audio_model(llm_folder, published_parts)
    loaded = PeftModel.from_pretrained(whole, tmp_path / "adapter")
    for name, weight in projector_of(loaded).state_dict().items():
        assert torch.equal(weight, projector_of(model).state_dict()[name])
    with torch.no_grad():
        # The rounding of four bits is the whole difference.
        assert float(loaded.eval()(**batch).loss) == pytest.approx(float(model.eval()(**batch).loss), abs=0.3)


def test_the_gradient_of_the_projector_is_that_of_the_same_weights_without_quantization(
    llm_folder, published_parts, examples
):
    base, processor = make_audio_model(llm_folder, published_parts, quantization_config=quantization())
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    same, _ = make_audio_model(llm_folder, published_parts)
    with torch.no_grad():
        for module, source in zip(same.modules(), base.modules(), strict=True):
            if isinstance(source, bitsandbytes.nn.Linear4bit):
                module.weight.copy_(bitsandbytes.functional.dequantize_4bit(source.weight, source.weight.quant_state))
            else:
                for weight, other in zip(module.parameters(False), source.parameters(False), strict=True):
                    weight.copy_(other)
    same.requires_grad_(False)
    model = get_peft_model(base, ListenConfig(**SETTINGS, modules_to_save=["multi_modal_projector"])).train()
    expected = get_peft_model(same, ListenConfig(**SETTINGS, modules_to_save=["multi_modal_projector"])).train()
    expected.load_state_dict(
        {name: each for name, each in model.state_dict().items() if "default" in name}, strict=False
    )
    batch = AudioListenCollator(processor)(examples)
    for each in (model, expected):
        each(**batch).loss.backward()
    weights = dict(projector_of(model).named_parameters())
    for name, weight in projector_of(expected).named_parameters():
        # The kernel rounds more coarsely than float32.
        tolerated = 0.02 * float(weight.grad.abs().max()) + 1e-4
        assert float((weights[name].grad - weight.grad).abs().max()) < tolerated, name


def test_a_model_that_has_answered_is_trained_as_one_that_has_not(llm_folder):
    """On CPUs with AVX512-BF16, bitsandbytes packs the weights in evaluation mode for a kernel without a backward pass."""
    row = torch.arange(5, 17)[None]
    batch = {"input_ids": row, "labels": row.masked_fill(torch.arange(12) < 6, -100)}
    gradients = []
    for modes in ([], ["eval"], ["train", "eval"], ["before"]):
        llm = AutoModelForCausalLM.from_pretrained(llm_folder, quantization_config=quantization())
        if modes == ["before"]:
            with torch.no_grad():
                llm(**batch)
        model = get_peft_model(prepare_model_for_kbit_training(llm, use_gradient_checkpointing=False), CONFIG)
        for mode in modes:
            model.train(mode == "train")
            if mode == "eval":
                with torch.no_grad():
                    model(**batch)
        model.train()(**batch).loss.backward()
        gradients.append(model.base_model.layer.pool_of().values.grad)
    assert gradients[0].abs().max() > 1e-3
    for gradient in gradients[1:-1]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=1e-4)
    # Packing rounds the scales of the weights.
    assert float((gradients[-1] - gradients[0]).abs().max()) < 0.03 * float(gradients[0].abs().max())
