"""Saves the weights and the configuration of an adapter together. PEFT writes one after the other over older files."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

from peft import PeftModel

from .folder_saving import replaced_checkpoint
from .tuners.listen.checkpoints import check_can_be_saved


def install(peft_model_class: type[PeftModel]) -> None:
    """
    Wraps `PeftModel.save_pretrained`: a LiSTEN adapter that is saved over an older one and killed leaves the old adapter,
    the new one, or one that does not load, but never new weights under an old configuration.

    Args:
        peft_model_class (`type[PeftModel]`): The class to change. A second call has no effect.
    """
    save = peft_model_class.save_pretrained
    if save.__module__ == __name__:
        return

    @functools.wraps(save, assigned=("__name__", "__qualname__", "__doc__"))
    def save_pretrained(self: PeftModel, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        _warn_of_nameless_base(self)
        is_listen = any(config.peft_type == "LISTEN" for config in self.peft_config.values())
        if is_listen:
            # PEFT below 0.21 does not ask the tuner for the tensors to save.
            check_can_be_saved(self, kwargs.get("selected_adapters", args[1] if len(args) > 1 else None))
        # Positions of PEFT's arguments: safe_serialization, selected_adapters, save_embedding_layers, is_main_process.
        is_main = kwargs.get("is_main_process", args[3] if len(args) > 3 else True)
        if not is_listen or not is_main or os.path.isfile(save_directory):
            save(self, save_directory, *args, **kwargs)  # type: ignore[arg-type]
            return
        with replaced_checkpoint(save_directory, kept=("README.md",)) as temporary:
            save(self, str(temporary), *args, **kwargs)

    peft_model_class.save_pretrained = save_pretrained  # type: ignore[method-assign]


def _warn_of_nameless_base(model: PeftModel) -> None:
    """Warns if the base model is an audio model that was built in memory, since a saved adapter then names no base model."""
    base: Any = model.get_base_model()
    if type(base).__module__.partition(".")[0] != __name__.partition(".")[0] or base.__dict__.get("name_or_path"):
        return
    if all(config.base_model_name_or_path for config in model.peft_config.values()):
        return
    warnings.warn(
        "The adapter does not name its base model, because the base model was not loaded from a saved folder, and so the "
        "pipeline cannot load the adapter. Save the base model and its processor, load the base model from that folder "
        "before you add the adapter, or save all parts together with `peft_listen.save_complete_model`.",
        UserWarning,
        stacklevel=3,
    )
