"""LiSTEN (arXiv 2505.18517) as a plug-in for the Hugging Face ecosystem. See the README for where to begin."""

from .registration import register
from .tuners.listen import (
    ListenConfig,
    ListenModel,
    Selection,
    SelectionRecord,
    Selector,
    available_selectors,
    get_selector,
    register_selector,
)


__version__ = "0.1.0.dev0"

__all__ = [
    "ListenConfig",
    "ListenModel",
    "Selection",
    "SelectionRecord",
    "Selector",
    "available_selectors",
    "get_selector",
    "register_selector",
]

register()
