"""Finds the module whose input the prompts are prepended to."""

from __future__ import annotations

import inspect

from torch import nn

from .config import ListenConfig
from .initialization import embedding_size, hidden_size


def find_backbone(model: nn.Module, path: str | None = None) -> tuple[str, nn.Module]:
    """
    Finds the text decoder of a causal language model: the module that maps `inputs_embeds` to `last_hidden_state`.

    Args:
        model (`nn.Module`): a causal language model of transformers, or a composite that contains one.
        path (`str`, *optional*): its dotted path; found by `get_decoder()` if not given.

    Returns:
        `tuple[str, nn.Module]`: its dotted path and the module.

    Raises:
        ValueError: if there is no suitable module: for an encoder-decoder model, a model with embeddings per layer, a
            model without a head, a path that does not exist, or a path to a module that does not accept
            `inputs_embeds`.
    """
    name = type(model).__name__
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder model; LiSTEN prepends prompts to a decoder-only language model. Use one "
            "that `AutoModelForCausalLM` loads."
        )
    if path is None:
        path, backbone = _decoder_of(model)
    else:
        try:
            backbone = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(
                f"`backbone`={path!r} is not a module of {name}. Pass a path that `model.named_modules()` lists, or leave "
                "it out to find the decoder automatically."
            ) from error
    if "inputs_embeds" not in inspect.signature(backbone.forward).parameters:
        raise ValueError(
            f"The module {path!r} of {name}, a {type(backbone).__name__}, does not accept `inputs_embeds`, so nothing can "
            "be prepended to its input. Set `backbone` to the path of the text decoder."
        )
    if getattr(getattr(backbone, "config", None), "hidden_size_per_layer_input", None):
        raise ValueError(
            f"{type(backbone).__name__} adds embeddings of the token ids in every layer, and prompts have no token "
            "ids. LiSTEN does not support it."
        )
    return path, backbone


def find_decoder_layers(backbone: nn.Module) -> nn.ModuleList:
    """
    Finds the layers of a decoder: its list of as many modules as the configuration has `num_hidden_layers`, each of which
    takes `hidden_states`.

    Args:
        backbone (`nn.Module`): the decoder.

    Returns:
        `nn.ModuleList`: the layers, in their order.

    Raises:
        ValueError: if there is no such list, or more than one; the message names the decoder.
    """
    name, config = type(backbone).__name__, getattr(backbone, "config", None)
    get_text_config = getattr(config, "get_text_config", None)
    count = getattr(config if get_text_config is None else get_text_config(decoder=True), "num_hidden_layers", None)
    found = [
        child
        for child in backbone.children()
        if isinstance(child, nn.ModuleList)
        and len(child) == count
        and all("hidden_states" in inspect.signature(layer.forward).parameters for layer in child)
    ]
    if len(found) != 1:
        raise ValueError(
            f"LiSTEN found no decoder layers in {name}: it has {len(found)} lists of `num_hidden_layers`={count} layers that "
            "take `hidden_states`, and needs one. Leave `value_layers` and `query_layer` out for this model."
        )
    return found[0]


def check_layers(config: ListenConfig, backbone: nn.Module) -> None:
    """
    Checks that a decoder has the layers that an adapter needs, if it needs any.

    Args:
        config ([`ListenConfig`]): of the adapter.
        backbone (`nn.Module`): the decoder.

    Raises:
        ValueError: if its layers are not found, for a layer that it does not have, and for a query from its layers if they
            have another width than its embeddings; the message names the decoder.
    """
    if not config.value_layers and not config.query_layer:
        return
    name, count = type(backbone).__name__, len(find_decoder_layers(backbone))
    missing = [number for number in config.value_layers or () if number >= count]
    if missing:
        raise ValueError(
            f"{name} has {count} layers, numbered from 0 to {count - 1}, and `value_layers` contains {missing[0]}. Use layers "
            "that it has."
        )
    if config.query_layer > count:
        raise ValueError(
            f"{name} has {count} layers, and `query_layer`={config.query_layer} is the number of layers that the query has "
            f"passed. Set at most {count}."
        )
    embedding = backbone.get_input_embeddings()  # type: ignore[operator]
    sizes = embedding_size(embedding, backbone.config), hidden_size(backbone.config)
    if config.query_layer and sizes[0] != sizes[1]:
        raise ValueError(
            f"The embeddings of {name} have size {sizes[0]}, its layers have size {sizes[1]}, and the keys are compared with "
            "both. Set `query_layer=0` for this model."
        )


def _decoder_of(model: nn.Module) -> tuple[str, nn.Module]:
    backbone = model
    while True:
        get_decoder = getattr(backbone, "get_decoder", None)
        inner = None if get_decoder is None else get_decoder()
        if not isinstance(inner, nn.Module) or inner is backbone:
            break
        backbone = inner
    name = type(model).__name__
    if backbone is model:
        raise ValueError(
            f"Found no text decoder inside {name}. LiSTEN is attached to a causal language model with its head, e.g. "
            "from `AutoModelForCausalLM`; for other models, set the path of the decoder with `ListenConfig(backbone=...)`."
        )
    for path, module in model.named_modules():
        if module is backbone:
            return path, backbone
    raise ValueError(f"The decoder that {name}.get_decoder() returns is not one of its modules; set `backbone`.")
