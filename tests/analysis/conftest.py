import pytest
import torch

from peft_listen import get_selector
from peft_listen.analysis import SelectionRecords


@pytest.fixture(scope="session")
def make_records():
    """Makes selections of the similarity selector, for tasks whose queries are separated or overlap."""

    def make(tasks=("asr", "captions", "emotion"), apart=True, rows_per_task=12, pool_size=48, prompt_length=4):
        generator = torch.Generator().manual_seed(0)
        size = 16
        centers = torch.eye(size)[: len(tasks)] * 4 if apart else torch.ones(len(tasks), size) * 4
        noise = torch.randn(len(tasks), rows_per_task, size, generator=generator)
        queries = (centers[:, None] + 0.7 * noise).flatten(0, 1)
        keys = torch.randn(pool_size, size, generator=generator)
        if apart:
            keys = 0.5 * keys + centers[torch.arange(pool_size) % len(tasks)]
        selection = get_selector("similarity").select(queries, keys, prompt_length)
        names = [task for task in tasks for _ in range(rows_per_task)]
        return SelectionRecords(
            indices=selection.indices,
            scores=selection.scores,
            queries=queries,
            keys=keys,
            tasks=names,
            inputs=[f"clip_{row}.wav · What of {name}?" for row, name in enumerate(names)],
            config={"selector": "similarity", "center_queries": True, "base_model_name_or_path": "some/base"},
        )

    return make
