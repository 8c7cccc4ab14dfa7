"""The prompts that were selected for one question: how near their keys are to the query, which tasks use them, and which words
are near them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F

from ..analysis import NearestWords
from ..tuners.listen import PromptPool, SelectionRecord
from .task_shares import TaskShares


@dataclass(frozen=True)
class SelectedPrompt:
    """
    One selected prompt.

    Attributes:
        index (`int`): its number in the pool, from 0.
        cosine (`float`): cosine of its key and the query, from -1 to 1.
        tasks (`list[tuple[str, float]]`): the tasks that usually select it, with the fraction of their recorded rows that
            do so, the most frequent first. Empty without records.
        words (`list[str]`): the words of the vocabulary that are nearest to it, nearest first. May be empty.
        is_near_words (`bool`): whether the first of them is nearer than chance.
    """

    index: int
    cosine: float
    tasks: list[tuple[str, float]]
    words: list[str] = field(default_factory=list)
    is_near_words: bool = False


@dataclass(frozen=True)
class SelectedPrompts:
    """
    The selection of one question.

    Attributes:
        prompts (`list[SelectedPrompt]`): in the order in which they are prepended: best first.
        pool_cosines (`list[float]`): cosine of each key of the pool and the query.
        shares ([`TaskShares`], *optional*): the records from which the tasks are.
        words ([`~peft_listen.analysis.NearestWords`], *optional*): the comparison from which the words are.
    """

    prompts: list[SelectedPrompt]
    pool_cosines: list[float]
    shares: TaskShares | None = None
    words: NearestWords | None = None


def selected_prompts(
    record: SelectionRecord,
    pool: PromptPool,
    shares: TaskShares | None = None,
    words: NearestWords | None = None,
    row: int = 0,
) -> SelectedPrompts:
    """
    Reads one row of a recorded selection.

    Args:
        record ([`SelectionRecord`]): the selection.
        pool ([`PromptPool`]): the pool from which it selected.
        shares ([`TaskShares`], *optional*): how often each task selects each prompt.
        words ([`~peft_listen.analysis.NearestWords`], *optional*): the words that are nearest to each prompt.
        row (`int`, defaults to 0): the row.

    Returns:
        [`SelectedPrompts`]
    """
    query = pool.normalize_query(record.query[row : row + 1].float())  # [1, embedding_size]
    keys = pool.keys.detach().to(query)
    cosines = (F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T)[0].cpu().tolist()
    near = {} if words is None else words.prompts
    prompts = [
        SelectedPrompt(
            index,
            cosines[index],
            tasks=[] if shares is None else shares.tasks_of(index),
            words=[word.text for word in near.get(index, [])],
            is_near_words=words is not None and index in near and words.is_near(index),
        )
        for index in record.indices[row].tolist()
    ]
    return SelectedPrompts(prompts, cosines, shares, words)
