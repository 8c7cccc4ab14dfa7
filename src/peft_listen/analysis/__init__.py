"""Analysis of an adapter: which prompts each task selects. Scores, plots and reports need the extra `analysis`."""

from .answers import TaskAnswers, score_answers
from .comparison import AdapterComparison, TaskChange, compare_adapters, format_comparison
from .nearest_words import NearestWords, NearWord, nearest_words
from .plots import plot_prompt_heatmap, plot_query_key_map, plot_usage
from .query_space import mean_pairwise_cosine, neighbor_accuracy, silhouette
from .recording import record_dataset
from .records import SelectionRecords
from .report import format_summary, save_report
from .summary import summarize
from .usage import PromptUsage


__all__ = [
    "AdapterComparison",
    "NearWord",
    "NearestWords",
    "PromptUsage",
    "SelectionRecords",
    "TaskAnswers",
    "TaskChange",
    "compare_adapters",
    "format_comparison",
    "format_summary",
    "mean_pairwise_cosine",
    "nearest_words",
    "neighbor_accuracy",
    "plot_prompt_heatmap",
    "plot_query_key_map",
    "plot_usage",
    "record_dataset",
    "save_report",
    "score_answers",
    "silhouette",
    "summarize",
]
