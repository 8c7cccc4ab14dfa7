"""Requires all weights of a checkpoint: transformers only reports missing ones, and leaves them random."""

import os
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from transformers.modeling_utils import PreTrainedModel


# At most so many missing weights are listed in a message.
_MAX_LISTED = 20
# Whether the caller gets the names of missing weights by `output_loading_info=True`.
_is_reported: ContextVar[bool] = ContextVar("_is_reported", default=False)


class MissingWeightsError(ValueError):
    """
    Weights are missing from a checkpoint.

    Args:
        owner (`str`): What needs the weights.
        source (`str` or `os.PathLike`): The checkpoint.
        names (`Iterable[str]`): Names of the missing weights.
        kind (`str`, *optional*, defaults to `"model"`): The kind of model.
    """

    def __init__(self, owner: str, source: str | os.PathLike[str], names: Iterable[str], kind: str = "model") -> None:
        self.names = sorted(names)
        listed = ", ".join(self.names[:_MAX_LISTED])
        if len(self.names) > _MAX_LISTED:
            listed += f" and {len(self.names) - _MAX_LISTED} more"
        super().__init__(
            f"{owner}: {os.fspath(source)} lacks {len(self.names)} of the {kind}'s weights: {listed}. Get a complete "
            "checkpoint from its publisher, or save it again; the missing weights would stay random."
        )


class CompleteWeightsMixin(PreTrainedModel):
    """
    Refuses checkpoints that lack weights of the model. With `output_loading_info=True`, the caller gets their names instead
    of an error, and a `state_dict` without a checkpoint may be incomplete.

    Class attributes:
        _new_weights (`tuple[str, ...]`): Beginnings of the names of weights that may be missing, such as a new head.
    """

    _new_weights: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        token = _is_reported.set(bool(kwargs.get("output_loading_info")))
        try:
            return super().from_pretrained(*args, **kwargs)
        finally:
            _is_reported.reset(token)

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        source = load_config.pretrained_model_name_or_path
        missing = [name for name in loading_info.missing_keys if not name.startswith(model._new_weights)]
        if missing and source is not None and not _is_reported.get():
            raise MissingWeightsError(type(model).__name__, source, missing)
        return loading_info
