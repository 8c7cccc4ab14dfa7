"""Which query knows the task: what a key that was found by clustering tells about the task of the rows that select it.

    python -m benchmarks.mini_listen.routing [--form small]

The queries are of the text alone, as with `query_audio_weight=0`: means over its positions or the state of its last token,
after some layers of the frozen language model. The keys of a group are the centers of a k-means clustering of training
queries, as in the grouped selector. A key's share of a task is the share of this task in the training rows that select it. The
table has the mean share of the own task over the rows: with m keys and n tasks, it is between 1/n (a key tells nothing) and
min(1, m/n).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_listen.files import atomic_path
from peft_listen.tuners.listen.selectors.clustering import cluster_centers

from .data import make_data
from .language_model import load_language_model, prompt_text
from .settings import FORMS
from .storage import RESULTS
from .training import mixture, read_split


LAYERS = (0, 10, 18, 22, 26, 28)
KEYS = (2, 4, 7, 14)  # of a group
NUM_QUERIES = 320
NUM_GROUPS = 8


@torch.no_grad()
def text_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], layers: Sequence[int]
) -> dict[tuple[str, int], torch.Tensor]:
    """
    Queries of instructions.

    Args:
        model (`PreTrainedModel`): a causal language model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        instructions (`Sequence[str]`): the instructions; equal ones are read once.
        layers (`Sequence[int]`): numbers of layers that the text has passed; 0 for its embeddings.

    Returns:
        `dict`: by pooling, `"mean"` or `"last"`, and layer, the queries, `(num_instructions, hidden_size)`.
    """
    read: dict[str, tuple[torch.Tensor, ...]] = {}
    for instruction in dict.fromkeys(instructions):
        text = prompt_text(tokenizer, [{"role": "user", "content": instruction}])
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
        states = model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
        read[instruction] = tuple(states[layer][0].float().cpu() for layer in layers)
    poolings = {"mean": lambda states: states.mean(dim=0), "last": lambda states: states[-1]}
    return {
        (name, layer): torch.stack([pool(read[instruction][place]) for instruction in instructions])
        for name, pool in poolings.items()
        for place, layer in enumerate(layers)
    }


def own_task_share(
    queries: torch.Tensor,
    tasks: torch.Tensor,
    new_queries: torch.Tensor,
    new_tasks: torch.Tensor,
    num_keys: int,
    num_groups: int = NUM_GROUPS,
) -> tuple[float, float]:
    """
    The mean share of the own task at the selected key, in the mean over some groups of keys.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, hidden_size)`): of training rows, which the keys are computed from.
        tasks (`torch.LongTensor` of shape `(num_rows,)`): their tasks, from 0.
        new_queries (`torch.FloatTensor` of shape `(num_new_rows, hidden_size)`), new_tasks: of rows with other wordings.
        num_keys (`int`): keys of a group.
        num_groups (`int`, defaults to 8): groups, with keys of their own.

    Returns:
        `tuple[float, float]`: for the training rows and for the others.
    """
    mean = queries.mean(dim=0)
    queries, new_queries = normalize(queries - mean, dim=-1), normalize(new_queries - mean, dim=-1)
    shares = torch.zeros(2)
    for group in range(num_groups):
        keys = normalize(cluster_centers(queries, num_keys, seed=group), dim=-1)
        selected, new_selected = ((rows @ keys.T).argmax(dim=-1) for rows in (queries, new_queries))
        counts = torch.zeros(num_keys, int(tasks.max()) + 1)
        counts.index_put_((selected, tasks), torch.ones(len(tasks)), accumulate=True)
        share = counts / counts.sum(dim=-1, keepdim=True).clamp_min(1)
        shares += torch.stack([share[selected, tasks].mean(), share[new_selected, new_tasks].mean()])
    trained, new = (shares / num_groups).tolist()
    return trained, new


def routing_path(results: Path, form: str) -> Path:
    """Path of the stored shares of a form."""
    return results / f"routing-{form}.json"


def read_routing(results: Path, form: str) -> list[dict[str, Any]] | None:
    """The stored shares of a form, see [`main`], or `None` if they were not measured."""
    path = routing_path(results, form)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=list(FORMS), default="small", help="whose rows (default: small)")
    parser.add_argument("--folder", type=Path, default=Path(".mini_listen"), help="data and models")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    form = FORMS[arguments.form]
    data = make_data(arguments.folder / form.name / "data", form.sizes)
    rows = mixture(read_split(data, "train", form.tasks, form.train_per_task), 1, NUM_QUERIES, seed=0)
    new_rows = read_split(data, "validation", form.tasks, form.validation_per_task)
    model, tokenizer = load_language_model(arguments.folder / "models", arguments.device)
    states, new_states = (
        text_states(model, tokenizer, [row["instruction"] for row in each], LAYERS) for each in (rows, new_rows)
    )
    tasks, new_tasks = (torch.tensor([form.tasks.index(row["task"]) for row in each]) for each in (rows, new_rows))
    found = []
    for (pooling, layer), queries in states.items():
        if pooling == "last" and layer == 0:
            continue  # the last token is the same in every prompt
        shares = {
            str(count): [
                round(share, 3)
                for share in own_task_share(queries, tasks, new_states[pooling, layer], new_tasks, count)
            ]
            for count in KEYS
        }
        found.append({"pooling": pooling, "layer": layer, "shares": shares})
        print(pooling, layer, shares, flush=True)
    path = routing_path(arguments.results, form.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
