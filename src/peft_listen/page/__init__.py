"""
A page on which a model is asked about clips, and which shows the prompts that were selected for an answer.

A visitor's question (`functions.py`) becomes one or two variants of the model (`variants.py`), which are asked one after
another (`answering.py`); the selection of each (`selected_prompts.py`) is shown with the tasks that usually make it
(`task_shares.py`) and the words that are near its prompts (`prompt_words.py`), in HTML (`html.py`). `layout.py` has the
components and `app.py` the application.
"""

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise ImportError('The page needs gradio: pip install "peft-listen[page]"') from error

from .answering import Answer, Answering, PageError
from .app import create_page
from .prompt_words import find_words
from .settings import PageSettings
from .task_shares import TaskShares, find_records, load_task_shares
from .tasks import Clip, Tasks, read_tasks
from .variants import Variant


__all__ = [
    "Answer",
    "Answering",
    "Clip",
    "PageError",
    "PageSettings",
    "TaskShares",
    "Tasks",
    "Variant",
    "create_page",
    "find_records",
    "find_words",
    "load_task_shares",
    "read_tasks",
]
