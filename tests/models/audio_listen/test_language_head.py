import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CLIPTextConfig,
    FalconH1Config,
    Gemma3Config,
    Gemma3nTextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    T5Config,
)

from peft_listen.models.audio_listen.language_head import (
    build_language_head,
    check_language_model,
    check_text_config,
    scale_logits,
)


def test_heads_have_the_bias_of_their_family(make_llm) -> None:
    for name in ("llama", "gpt2", "phi"):
        language_model = make_llm(name)
        head = build_language_head(language_model.config)
        own = language_model.get_output_embeddings()
        assert head.weight.shape == own.weight.shape
        assert (head.bias is None) == (own.bias is None)
    assert build_language_head(PhiConfig(hidden_size=32, num_attention_heads=2)).bias is not None
    assert build_language_head(GPT2Config(n_embd=32, n_head=2)).bias is None


def test_logits_are_scaled_as_in_each_family() -> None:
    logits = torch.tensor([1.0, -2.0])
    config = LlamaConfig()
    assert scale_logits(logits, config) is logits
    config.logit_scale = 0.5
    torch.testing.assert_close(scale_logits(logits, config), 0.5 * logits)
    config.logits_scaling = 4.0
    torch.testing.assert_close(scale_logits(logits, config), 0.5 * logits / 4)
    config.lm_head_multiplier = 3.0
    torch.testing.assert_close(scale_logits(logits, config), 0.5 * logits / 4 * 3)
    config.final_logit_softcapping = 0.1
    torch.testing.assert_close(scale_logits(logits, config), 0.1 * torch.tanh(0.5 * logits / 4 * 3 / 0.1))


def test_models_that_are_not_text_only_causal_language_models_are_refused() -> None:
    with pytest.raises(ValueError, match="T5Config is of an encoder-decoder model"):
        check_text_config(T5Config())
    with pytest.raises(ValueError, match="Gemma3Config is of a multimodal model"):
        check_text_config(Gemma3Config())
    with pytest.raises(ValueError, match="CLIPTextConfig is not of a causal language model"):
        check_text_config(CLIPTextConfig())


@pytest.mark.parametrize("config", [BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)])
def test_heads_that_do_more_than_a_linear_layer_are_refused_by_name(config) -> None:
    with pytest.raises(ValueError, match="BertLMHeadModel"):
        check_language_model(AutoModelForCausalLM.from_config(config))


def test_models_that_need_the_token_ids_are_refused_by_name() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8,
        num_hidden_layers=2,
        num_kv_shared_layers=0,
        laurel_rank=4,
        layer_types=["full_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
        head_dim=16,
        **sizes,
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    with pytest.raises(ValueError, match="Gemma3nForCausalLM does not support audio"):
        check_language_model(model)


def test_embeddings_scaled_outside_their_module_are_refused_by_name() -> None:
    config = FalconH1Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        embedding_multiplier=5.0,
    )
    with pytest.raises(ValueError, match="FalconH1ForCausalLM does not support audio"):
        check_language_model(AutoModelForCausalLM.from_config(config))


def test_a_modified_head_is_detected(make_llm) -> None:
    class Shouting(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 2 * output.logits
            return output

    model = Shouting(make_llm("llama").config)
    with pytest.raises(ValueError, match="Shouting does not support audio"):
        check_language_model(model)


@pytest.mark.parametrize("training", [False, True])
def test_checking_does_not_change_the_training_mode(make_llm, training: bool) -> None:
    model = make_llm("llama").train(training)
    check_language_model(model)
    assert model.training is training
