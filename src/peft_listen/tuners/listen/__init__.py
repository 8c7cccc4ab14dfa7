"""Dynamic prompt selection, laid out as a method of `peft.tuners`."""

from .calls import SelectionRecord
from .config import ListenConfig
from .functional import prompt_embeds, record_selections, set_prompt_length, use_prompt_length
from .layer import ListenLayer, find_listen_layer
from .model import ListenModel
from .pool import PromptPool
from .selectors import (
    GroupedSelector,
    HybridSelector,
    Selection,
    Selector,
    available_selectors,
    get_selector,
    register_selector,
)


__all__ = [
    "GroupedSelector",
    "HybridSelector",
    "ListenConfig",
    "ListenLayer",
    "ListenModel",
    "PromptPool",
    "Selection",
    "SelectionRecord",
    "Selector",
    "available_selectors",
    "find_listen_layer",
    "get_selector",
    "prompt_embeds",
    "record_selections",
    "register_selector",
    "set_prompt_length",
    "use_prompt_length",
]
