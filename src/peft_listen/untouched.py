"""Checks that a language model has no trained parts, so that another copy of it computes the same from embeddings."""

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


def check_untouched(*modules: nn.Module | None, ignored: tuple[type[nn.Module], ...] = ()) -> None:
    """
    Checks that no active adapter changes these modules.

    Args:
        modules (`nn.Module`): The decoder and the head of a language model; `None` is skipped.
        ignored (`tuple` of types, *optional*): Layers of adapters that change nothing but the input of the decoder.

    Raises:
        ValueError: For a layer of another adapter, such as LoRA, that is active or merged, and for a module of
            `modules_to_save`. The message names the layer.
    """
    for module in modules:
        for name, layer in [] if module is None else module.named_modules():
            if isinstance(layer, ignored) or not isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                continue
            if layer.merged_adapters or (not layer.disable_adapters and layer.active_adapters):
                raise ValueError(
                    f"The language model has trained parts beside the prompts: {name or 'its head'!r} is a "
                    f"{type(layer).__name__}. A copy of the language model without them computes something else from the "
                    "embeddings. Disable that adapter, or generate with this model."
                )
