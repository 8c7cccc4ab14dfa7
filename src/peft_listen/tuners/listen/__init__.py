"""Dynamic prompt selection, laid out as a method of `peft.tuners`."""

from .config import ListenConfig
from .grouped_selector import GroupedSelector
from .hybrid_selector import HybridSelector
from .layer import ListenLayer, SelectionRecord, find_listen_layer
from .model import ListenModel
from .selectors import Selection, Selector, available_selectors, get_selector, register_selector


__all__ = [
    "GroupedSelector",
    "HybridSelector",
    "ListenConfig",
    "ListenLayer",
    "ListenModel",
    "Selection",
    "SelectionRecord",
    "Selector",
    "available_selectors",
    "find_listen_layer",
    "get_selector",
    "register_selector",
]
