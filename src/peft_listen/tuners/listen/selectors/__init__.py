"""Selectors: which prompts of the pool an input gets. Importing this folder registers all built-in selectors."""

from .base import Selection, Selector, available_selectors, get_selector, register_selector
from .grouped import GroupedSelector
from .hybrid import HybridSelector
from .paper import AttentionSelector, ResidualSelector, SimilaritySelector


__all__ = [
    "AttentionSelector",
    "GroupedSelector",
    "HybridSelector",
    "ResidualSelector",
    "Selection",
    "Selector",
    "SimilaritySelector",
    "available_selectors",
    "get_selector",
    "register_selector",
]
