"""The picture of a model card that shows which prompts each task selects."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .files import atomic_path


if TYPE_CHECKING:
    from .analysis import SelectionRecords


logger = logging.getLogger(__name__)

# Name of the file beside the card.
PICTURE = "prompts_by_task.png"

# The Hub shows a card with a width of about 750 pixels. With this width, the text of the picture has the size of the
# card's, and the resolution is twice that of the page.
_INCHES, _DPI = 8.0, 200
# Each task is a row of the picture.
_MAX_TASKS = 100
_TOP = 10

_TEXT = """\
![Heat map: the fraction of each task's inputs that select each prompt of the pool]({picture})

One column per prompt that is selected at all, one row per task. The darker, the larger the fraction of the task's inputs that
select the prompt; the strip below groups the prompts by the task that selects them most. For {num_rows} inputs of {num_tasks}
tasks, with {prompt_length} prompts each, {live} of the {pool_size} prompts of the pool are selected. On average over all pairs of
tasks, {overlap:.0%} of their {top} most selected prompts are the same.
"""


def save_prompt_picture(selections: SelectionRecords, folder: Path) -> str | None:
    """
    Draws which prompts each task selects, in the file `prompts_by_task.png`. Nothing is drawn, and the reason is logged, if
    there are fewer than 2 or more than 100 tasks, or matplotlib is not installed.

    Args:
        selections ([`SelectionRecords`]): the selections.
        folder (`pathlib.Path`): existing folder of the card.

    Returns:
        `str`: the section of the card about it, in Markdown; `None` if nothing was drawn.

    Raises:
        OSError: if the file cannot be written; an existing file then remains unchanged.
    """
    from .analysis import plot_prompt_heatmap

    num_tasks = len(selections.task_names)
    if not 2 <= num_tasks <= _MAX_TASKS:
        logger.info(
            "The model card gets no picture of the prompts by task: it shows 2 to %s, got %s.", _MAX_TASKS, num_tasks
        )
        return None
    try:
        figure = plot_prompt_heatmap(selections, width=_INCHES)
    except ImportError as error:
        logger.warning("The model card gets no picture of the prompts by task. %s", error)
        return None
    with atomic_path(folder / PICTURE) as temporary, warnings.catch_warnings():
        # matplotlib's font may lack the characters of a task's name.
        warnings.filterwarnings("ignore", message="Glyph")
        # On white, since the Hub has a dark theme, too.
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white")
    usage = selections.usage()
    return _TEXT.format(
        picture=PICTURE,
        num_rows=len(selections.tasks),
        num_tasks=num_tasks,
        prompt_length=selections.prompt_length,
        live=usage.live_prompts(),
        pool_size=selections.pool_size,
        overlap=usage.mean_task_overlap(_TOP),
        top=_TOP,
    ).rstrip()
