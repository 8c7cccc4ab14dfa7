"""Device maps, offloading and quantization."""

import accelerate
import pytest
import torch
from accelerate.utils import compute_module_sizes
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, TorchAoConfig

from peft_listen import AudioListenForCausalLM, ListenConfig


QFORMER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
PROJECTOR = ["multi_modal_projector"]


pytestmark = pytest.mark.cpu_only("it offloads and quantizes on the CPU; tests/gpu has a model in 4 bits")

# With all weights on the disk, or all of the language model.
refused_by_older_accelerate = pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.15"),
    reason="accelerate 1.10 refuses to offload a whole model to the disk",
)


@pytest.fixture(scope="module")
def model(make_model) -> AudioListenForCausalLM:
    return make_model(sound=True)


@pytest.fixture(scope="module")
def inputs(make_processor, clip):
    text = ["<|audio|> What is said?", "the<|audio|>fox"]
    return make_processor(sound=True)(text=text, audio=[clip(1.0, 1), clip(0.4, 2)], sampling_rate=16000)


@torch.no_grad()
@pytest.mark.parametrize(
    "share",
    [
        pytest.param(0.0, marks=refused_by_older_accelerate),
        pytest.param(0.3, marks=refused_by_older_accelerate),
        0.6,
        0.9,
    ],
)
def test_weights_beyond_the_memory_limit_are_offloaded_to_the_disk(model, inputs, tmp_path, share: float) -> None:
    model.save_pretrained(tmp_path / "whole")
    room = {"cpu": int(share * compute_module_sizes(model)[""])}
    offloaded = AudioListenForCausalLM.from_pretrained(
        tmp_path / "whole", device_map="auto", max_memory=room, offload_folder=tmp_path / "offloaded"
    )
    assert "disk" in offloaded.hf_device_map.values()
    assert any(weight.is_meta for weight in offloaded.parameters())
    torch.testing.assert_close(offloaded(**inputs).logits, model(**inputs).logits)
    options = {"max_new_tokens": 3, "num_beams": 2}
    assert offloaded.generate(**inputs, **options).tolist() == model.generate(**inputs, **options).tolist()


@torch.no_grad()
def test_layers_and_projector_are_never_split_between_devices(model) -> None:
    assert {"LlamaDecoderLayer", "WhisperEncoderLayer", "BeatsEncoderLayer", "WindowQFormerProjector"} <= set(
        model._no_split_modules
    )


@refused_by_older_accelerate
@torch.no_grad()
def test_a_language_model_may_be_offloaded_when_the_model_is_built(
    published_parts, make_llm, make_tokenizer, inputs, tmp_path
) -> None:
    llm = make_llm("llama")
    llm.resize_token_embeddings(301, mean_resizing=False)
    llm.save_pretrained(tmp_path / "llm")
    make_tokenizer().save_pretrained(tmp_path / "llm")
    parts = {**published_parts, "llm": tmp_path / "llm"}
    placement = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offloaded"}
    torch.manual_seed(0)
    model = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER, llm_kwargs=placement)
    torch.manual_seed(0)
    expected = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)
    assert all(weight.is_meta for weight in model.model.language_model.parameters())
    torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits)


@refused_by_older_accelerate
def test_an_offloaded_vocabulary_cannot_be_enlarged(published_parts, tmp_path) -> None:
    placement = {"device_map": {"": "disk"}, "offload_folder": tmp_path}
    with pytest.raises(ValueError, match=r"embeddings of the language model are offloaded.*`device_map`"):
        AudioListenForCausalLM.from_sub_models_pretrained(
            **published_parts, qformer_config=QFORMER, llm_kwargs=placement
        )


def skip_without_4bit_kernels_for_narrow_weights(bitsandbytes) -> None:
    # Where the processor has AVX512-BF16, bitsandbytes 0.50 dequantizes weights of fewer than 64 columns wrongly, and
    # packs only those whose rows are divisible by 32. The small models of these tests have neither.
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    restored = bitsandbytes.functional.dequantize_4bit(
        *bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    )
    if float((restored - weight).abs().mean()) > 0.1:
        pytest.skip("the 4-bit kernel of bitsandbytes for this processor does not support narrow weights")


def quantization(name: str):
    """A quantization configuration, and the class of the modules or weights that it quantizes."""
    if name.startswith("bitsandbytes"):
        bitsandbytes = pytest.importorskip("bitsandbytes", reason="it quantizes, `pip install bitsandbytes`")
        if name.endswith("8bit"):
            return BitsAndBytesConfig(load_in_8bit=True), bitsandbytes.nn.Linear8bitLt
        skip_without_4bit_kernels_for_narrow_weights(bitsandbytes)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return config, bitsandbytes.nn.Linear4bit
    torchao = pytest.importorskip("torchao.quantization", reason="it quantizes, `pip install torchao`")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2)), torchao.Int8Tensor


def is_quantized(module: torch.nn.Module, kind: type) -> bool:
    return isinstance(module, kind) or isinstance(module.weight, kind)


QUANTIZERS = ["torchao", "bitsandbytes_4bit", "bitsandbytes_8bit"]


@pytest.fixture(params=QUANTIZERS)
def quantized_parts(request, published_parts):
    config, kind = quantization(request.param)
    torch.manual_seed(0)
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        **published_parts, qformer_config=QFORMER, llm_kwargs={"quantization_config": config}
    )
    return model, config, kind


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


@torch.no_grad()
def test_logits_with_a_quantized_language_model_are_close(quantized_parts, published_parts, inputs) -> None:
    model, _, kind = quantized_parts
    torch.manual_seed(0)
    whole = AudioListenForCausalLM.from_sub_models_pretrained(**published_parts, qformer_config=QFORMER)
    for name, module in linear_layers(model).items():
        assert is_quantized(module, kind) == ("language_model" in name), name
    assert {weight.dtype for weight in model.model.multi_modal_projector.parameters()} == {torch.float32}
    assert model.is_quantized
    logits, expected = model(**inputs).logits, whole(**inputs).logits
    assert 0 < (logits - expected).abs().mean() < 0.2 * expected.std()
    assert model.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("method", ["lora", "listen"])
def test_adapter_and_projector_train_on_a_quantized_language_model(quantized_parts, inputs, tmp_path, method) -> None:
    base, _, _ = quantized_parts
    if method == "lora":
        config = LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj", r=4, modules_to_save=PROJECTOR)
    else:
        config = ListenConfig(pool_size=8, prompt_length=3, modules_to_save=PROJECTOR)
    model = get_peft_model(base, config).train()
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    losses = []
    for _ in range(3):
        torch.manual_seed(0)
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(weight.dtype == torch.float32 for weight in learning)


@torch.no_grad()
def test_a_reference_to_a_quantized_language_model_is_quantized_again(quantized_parts, inputs, tmp_path) -> None:
    model, config, kind = quantized_parts
    model.save_pretrained(tmp_path, save_frozen=False)
    loaded = AudioListenForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert is_quantized(loaded.model.language_model.layers[0].self_attn.q_proj, kind)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
# The 8-bit CPU kernel of bitsandbytes fails on batches with outliers, such as the normalized filter bank.
@pytest.mark.parametrize("quantizer", ["torchao", "bitsandbytes_4bit"])
def test_a_complete_checkpoint_is_quantized_except_projector_and_head(model, inputs, tmp_path, quantizer: str) -> None:
    config, kind = quantization(quantizer)
    model.save_pretrained(tmp_path / "whole")
    quantized = AudioListenForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=config)
    for name, module in linear_layers(quantized).items():
        assert is_quantized(module, kind) != ("multi_modal_projector" in name or "lm_head" in name), name
    quantized.save_pretrained(tmp_path / "quantized")
    again = AudioListenForCausalLM.from_pretrained(tmp_path / "quantized")
    torch.testing.assert_close(again(**inputs).logits, quantized(**inputs).logits)
