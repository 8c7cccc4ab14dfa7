"""Requires all weights of a checkpoint: transformers only reports missing ones, and leaves them random."""

import os
from collections.abc import Iterable
from typing import Any

from transformers.modeling_utils import PreTrainedModel


class MissingWeightsError(ValueError):
    """
    Weights are missing from a checkpoint.

    Args:
        owner (`str`): What needs the weights.
        source (`str` or `os.PathLike`, *optional*): The checkpoint.
        names (`Iterable[str]`): Names of the missing weights.
        kind (`str`, *optional*, defaults to `"model"`): The kind of model.
    """

    def __init__(
        self, owner: str, source: str | os.PathLike[str] | None, names: Iterable[str], kind: str = "model"
    ) -> None:
        self.names = sorted(names)
        where = "the given state dict" if source is None else os.fspath(source)
        super().__init__(
            f"{owner}: {where} lacks {len(self.names)} of the {kind}'s weights: {', '.join(self.names)}. Get a complete "
            "checkpoint from its publisher, or save it again; the missing weights would stay random."
        )


class CompleteWeightsMixin(PreTrainedModel):
    """
    Refuses checkpoints that lack weights of the model.

    Class attributes:
        _new_weights (`tuple[str, ...]`): Beginnings of the names of weights that may be missing, such as a new head.
    """

    _new_weights: tuple[str, ...] = ()

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        missing = [name for name in loading_info.missing_keys if not name.startswith(model._new_weights)]
        if missing:
            raise MissingWeightsError(type(model).__name__, load_config.pretrained_model_name_or_path, missing)
        return loading_info
