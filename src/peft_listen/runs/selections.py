"""The selections of the trained pool, for the model card and for reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Pipeline

from ..analysis import SelectionRecords, record_dataset
from ..data import Example
from ..training import AudioListenCollator


logger = logging.getLogger(__name__)


def save_selections(
    pipe: Pipeline,
    rows: Sequence[Example],
    path: Path,
    *,
    batch_size: int,
    template_variables: Mapping[str, Any],
    init_keys_at_steps: Sequence[int] = (),
) -> SelectionRecords | None:
    """
    Records the prompts that a trained adapter selects for some rows, in a file that `peft-listen report` reads.

    Args:
        pipe ([`~transformers.Pipeline`]): the pipeline of the trained model.
        rows (`Sequence[Example]`): the rows.
        path (`pathlib.Path`): file to write, see [`~peft_listen.analysis.SelectionRecords.save`].
        batch_size (`int`): number of rows per batch.
        template_variables (`Mapping[str, Any]`): variables for the chat template; may be empty.
        init_keys_at_steps (`Sequence[int]`): steps at which the training has initialized the keys. They are recorded beside
            the adapter's configuration, so that a report does not advise what was done.

    Returns:
        [`~peft_listen.analysis.SelectionRecords`]: the selections; `None`, with the reason in the log, if they are not valid:
        the queries of a model that has diverged are not finite.

    Raises:
        OSError: if a clip cannot be read or the file cannot be written.
    """
    module: Any = pipe.model
    processor: Any = pipe.processor
    # Not the pipeline itself, which `record_dataset` gives no variables. In generation, the prompts are selected by all that
    # precedes the last answer.
    collator = AudioListenCollator(processor, chat_template_kwargs=template_variables, trained_answers="last")
    try:
        selections = record_dataset(module, rows, collator=collator, batch_size=batch_size)
    except ValueError as error:
        logger.warning("The selections of the adapter were not recorded: %s", error)
        return None
    selections = replace(selections, config={**selections.config, "init_keys_at_steps": list(init_keys_at_steps)})
    selections.save(path)
    return selections
