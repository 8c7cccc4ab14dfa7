"""The language model's head, separate from its backbone, and the scaling of logits of each model family."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel

from ...four_bits import without_packing


# Tolerated rounding difference between two computations of the same logits, in units in the last place of the largest.
_TOLERATED_ROUNDING = 32


def build_language_head(text_config: PreTrainedConfig) -> nn.Linear:
    """
    Builds a new head for the language model of `text_config`, with a bias if its family has one.

    Args:
        text_config (`PreTrainedConfig`): Configuration of the language model.

    Raises:
        `ValueError`: if `text_config` is not the configuration of a text-only causal language model with a linear head.
    """
    check_text_config(text_config)
    with torch.device("meta"), no_init_weights():
        reference = AutoModelForCausalLM.from_config(text_config)
    head = reference.get_output_embeddings()
    check_linear_head(reference, head)
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)


def scale_logits(logits: torch.Tensor, text_config: PreTrainedConfig) -> torch.Tensor:
    """
    Scales the output of the head as the language model does: Cohere's `logit_scale`, Granite's `logits_scaling`,
    Falcon-H1's `lm_head_multiplier` and Gemma's `final_logit_softcapping`.

    Args:
        logits (`torch.Tensor` of any shape): Output of the linear head.
        text_config (`PreTrainedConfig`): Configuration of the language model.
    """
    if (scale := getattr(text_config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(text_config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (multiplier := getattr(text_config, "lm_head_multiplier", None)) is not None:
        logits = logits * multiplier
    if (cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def check_text_config(text_config: PreTrainedConfig) -> None:
    """Raises a `ValueError` for configurations of models that are not text-only causal language models."""
    name = type(text_config).__name__
    if text_config.is_encoder_decoder:
        raise ValueError(f"{name} is of an encoder-decoder model, but a decoder-only language model is needed.")
    if text_config.get_text_config() is not text_config:
        raise ValueError(
            f"{name} is of a multimodal model, but a text-only language model is needed. Save the text model inside it "
            "as a checkpoint of its own, and use that."
        )
    if type(text_config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{name} is not of a causal language model known to transformers (AutoModelForCausalLM).")


def check_linear_head(language_model: PreTrainedModel, head: nn.Module | None) -> None:
    """Raises a `ValueError` if the head of a language model is not a linear layer."""
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"The head of {type(language_model).__name__} is a {type(head).__name__}, but a linear head is needed."
        )


def input_device(module: nn.Module) -> torch.device:
    """Device for the input of a module: that of its weights, or the CPU if accelerate offloaded them, for its hook."""
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


@torch.no_grad()
def check_language_model(language_model: Any) -> None:
    """
    Checks numerically that the backbone on input embeddings, the linear head and [`scale_logits`] together reproduce the
    logits of a causal language model.

    Args:
        language_model (`PreTrainedModel`): The model to check.

    Raises:
        `ValueError`: if they do not; the message names the model class. Such a model computes something else from the
            token ids, or in its head, which would be lost.
    """
    check_text_config(language_model.config)
    check_linear_head(language_model, language_model.get_output_embeddings())
    embeddings = language_model.get_input_embeddings()
    input_ids = torch.arange(4, device=input_device(embeddings))[None] + 1
    was_training = language_model.training
    language_model.eval()
    with without_packing(language_model):
        expected = language_model(input_ids=input_ids, use_cache=False).logits
        embedded = embeddings(input_ids)
        hidden_states = language_model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    head = language_model.get_output_embeddings()
    logits = scale_logits(head(hidden_states.to(input_device(head))), language_model.config)
    language_model.train(was_training)
    difference = (logits.to(expected.device) - expected).abs().max()
    if difference > _TOLERATED_ROUNDING * torch.finfo(language_model.dtype).eps * expected.abs().max():
        raise ValueError(
            f"{type(language_model).__name__} does not support audio: its backbone and its linear head, applied to "
            f"embeddings, do not reproduce its logits (largest difference {difference:.2g}). It computes something else "
            "from the token ids, or in its head. Use another language model."
        )
