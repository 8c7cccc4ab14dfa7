"""Recipes: from public data sets, in their published form, to data files."""

from .base import Item, Recipe, available_recipes, get_recipe, register_recipe
from .prepare import PreparedSplit, prepare, prepare_dataset
from .source import Skipped, SourceFolder


__all__ = [
    "Item",
    "PreparedSplit",
    "Recipe",
    "Skipped",
    "SourceFolder",
    "available_recipes",
    "get_recipe",
    "prepare",
    "prepare_dataset",
    "register_recipe",
]
