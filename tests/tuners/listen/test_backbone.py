"""The decoder is found without a list of architectures, and unsuitable models are rejected."""

import pytest
import transformers
from peft import get_peft_model
from torch import nn

from peft_listen import ListenConfig
from peft_listen.tuners.listen.backbone import find_backbone


@pytest.mark.parametrize(
    ("architecture", "path"),
    [
        ("llama", "model"),
        ("gpt2", "transformer"),
        ("opt", "model.decoder"),
        ("gpt-neox", "gpt_neox"),
        ("bloom", "transformer"),
        ("llava", "model.language_model"),
        ("qwen2-vl", "model.language_model"),
    ],
)
def test_the_decoder_is_found(architecture, path, build):
    base = build(architecture)
    found, backbone = find_backbone(base)
    assert found == path
    assert backbone is base.get_submodule(path)


def test_the_decoder_of_a_composite_model_is_found(build):
    class Composite(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = transformers.PretrainedConfig()
            self.language_model = build()

        def get_decoder(self):
            return self.language_model

    assert find_backbone(Composite())[0] == "language_model.model"


def test_the_path_of_the_decoder_can_be_given(build):
    base = build("llava")
    assert find_backbone(base, "model.language_model")[1] is base.model.language_model
    with pytest.raises(
        ValueError, match=r"`backbone`='model.decoder' is not a module of LlavaForConditionalGeneration"
    ):
        find_backbone(base, "model.decoder")
    with pytest.raises(
        ValueError, match=r"'lm_head' of LlavaForConditionalGeneration, a Linear, does not accept `inputs_embeds`"
    ):
        find_backbone(base, "lm_head")


def test_an_encoder_decoder_model_raises():
    sizes = {"vocab_size": 40, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    with pytest.raises(ValueError, match=r"T5ForConditionalGeneration is an encoder-decoder model"):
        get_peft_model(model, ListenConfig())


def test_a_model_without_a_head_raises(build):
    with pytest.raises(ValueError, match=r"Found no text decoder inside LlamaModel"):
        get_peft_model(build().model, ListenConfig())
    with pytest.raises(ValueError, match=r"Found no text decoder inside Linear"):
        find_backbone(nn.Linear(2, 2))


@pytest.mark.parametrize("path", [None, "model"])
def test_a_model_with_embeddings_in_every_layer_raises(path):
    sizes = {"vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size": 16, "intermediate_size": 16}
    layers = {"num_hidden_layers": 2, "num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "hidden_size_per_layer_input": 4}
    config = transformers.Gemma3nTextConfig(
        **sizes, **layers, **heads, laurel_rank=2, activation_sparsity_pattern=[0.0, 0.0], altup_num_inputs=2
    )
    model = transformers.Gemma3nForCausalLM(config)
    with pytest.raises(ValueError, match=r"Gemma3nTextModel adds embeddings of the token ids in every layer"):
        get_peft_model(model, ListenConfig(backbone=path))


def test_a_rejected_model_is_not_changed(build, attach):
    base = build()
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=r"no selector"):
        get_peft_model(base, ListenConfig(selector="nearest"))
    assert [name for name, _ in base.named_modules()] == names
    assert "generate" not in base.__dict__
    assert not base._forward_pre_hooks and not base.model._forward_hooks


def test_all_adapters_of_a_model_share_its_backbone(build, attach):
    model = attach(build("llava"))
    with pytest.raises(
        ValueError, match=r"prepended at 'model.language_model', but the new adapter has `backbone`='model'"
    ):
        model.add_adapter("other", ListenConfig(backbone="model"))
    assert list(model.peft_config) == ["default"]
