"""Reading an adapter: which prompts it uses for what. Scores, plots and reports come with the extra `analysis`."""

from .findings import Finding, Verdict, judge
from .plots import plot_prompt_heatmap, plot_query_key_map, plot_usage
from .query_space import neighbor_accuracy, project, silhouette
from .recording import record_dataset
from .records import SelectionRecords
from .report import format_summary, save_report
from .selections import SelectionLog, format_overlap, mean_pairwise_cosine
from .summary import SelectionSummary, TaskSummary, summarize


__all__ = [
    "Finding",
    "SelectionLog",
    "SelectionRecords",
    "SelectionSummary",
    "TaskSummary",
    "Verdict",
    "format_overlap",
    "format_summary",
    "judge",
    "mean_pairwise_cosine",
    "neighbor_accuracy",
    "plot_prompt_heatmap",
    "plot_query_key_map",
    "plot_usage",
    "project",
    "record_dataset",
    "save_report",
    "silhouette",
    "summarize",
]
