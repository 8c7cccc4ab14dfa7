"""Reading an adapter: which prompts it uses for what."""

from .selections import SelectionLog, format_overlap, mean_pairwise_cosine


__all__ = ["SelectionLog", "format_overlap", "mean_pairwise_cosine"]
