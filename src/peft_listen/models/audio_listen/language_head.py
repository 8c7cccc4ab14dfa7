"""The head of the language model: built beside its backbone, with the scaling that its family applies to logits."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel


# Two ways to compute the same logits differ by rounding only: by so many units in the last place of the largest.
_TOLERATED_ROUNDING = 32


def build_language_head(text_config: PreTrainedConfig) -> nn.Linear:
    """
    A new head for the language model of `text_config`: of its size, and with a bias where its family has one.

    Raises:
        `ValueError`: if `text_config` is not of a causal language model with a linear head.
    """
    check_text_config(text_config)
    with torch.device("meta"), no_init_weights():
        reference = AutoModelForCausalLM.from_config(text_config)
    head = reference.get_output_embeddings()
    check_linear_head(reference, head)
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)


def scale_logits(logits: torch.Tensor, text_config: PreTrainedConfig) -> torch.Tensor:
    """
    What the language model does to the output of its head: Cohere's `logit_scale`, Granite's `logits_scaling`,
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
    """Raises a `ValueError` for configurations of models that are no causal language models of text alone."""
    name = type(text_config).__name__
    if text_config.is_encoder_decoder:
        raise ValueError(f"{name} is of an encoder-decoder model, but a decoder-only language model is needed.")
    if text_config.get_text_config() is not text_config:
        raise ValueError(
            f"{name} is of a multimodal model, but a language model of text alone is needed. Use the text model inside "
            "it, saved on its own."
        )
    if type(text_config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{name} is not of a causal language model known to transformers (AutoModelForCausalLM).")


def check_linear_head(language_model: PreTrainedModel, head: nn.Module | None) -> None:
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"The head of {type(language_model).__name__} is a {type(head).__name__}, but a linear head is needed."
        )


def input_device(module: nn.Module) -> torch.device:
    """Where the input of a module goes: to its weights or, where accelerate offloaded them, to the hook that waits."""
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


@torch.no_grad()
def check_language_model(language_model: Any) -> None:
    """
    Checks by numbers that a causal language model gives the same logits when it is taken apart: its backbone fed with
    embeddings, then its linear head, then [`scale_logits`].

    Raises:
        `ValueError`: naming the model class, if it does not; such a model computes something more, from the token ids
            or in its head, that would be lost.
    """
    check_text_config(language_model.config)
    check_linear_head(language_model, language_model.get_output_embeddings())
    embeddings = language_model.get_input_embeddings()
    input_ids = torch.arange(4, device=input_device(embeddings))[None] + 1
    was_training = language_model.training
    language_model.eval()
    expected = language_model(input_ids=input_ids, use_cache=False).logits
    hidden_states = language_model.base_model(inputs_embeds=embeddings(input_ids), use_cache=False).last_hidden_state
    head = language_model.get_output_embeddings()
    logits = scale_logits(head(hidden_states.to(input_device(head))), language_model.config)
    language_model.train(was_training)
    difference = (logits.to(expected.device) - expected).abs().max()
    if difference > _TOLERATED_ROUNDING * torch.finfo(language_model.dtype).eps * expected.abs().max():
        raise ValueError(
            f"{type(language_model).__name__} cannot be given audio: its backbone and its linear head, fed with "
            f"embeddings, do not reproduce its logits (largest difference {difference:.2g}). It computes something "
            "from the token ids, or in its head, that is not known here. Choose another language model."
        )
