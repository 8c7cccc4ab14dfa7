"""Training of a small audio model by one process or by two, of which the second has no clips in its batch.

    python -m tests.sharding.audio_training CLIP FOLDER "KIND;KIND" SECONDS

trains in two processes, in every kind, and writes what each has found to `FOLDER/KIND-RANK.safetensors`. After SECONDS, it
ends and shows where it was.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from peft_listen.evaluation.collated_answers import answer_batches
from peft_listen.training import AudioListenCollator
from peft_listen.tuners.listen.running_statistics import gather_rows
from tests import small_models


# `fully_shard` of the decoder layers; then the rest belongs to one unit, or the projector or the pool is one of its own.
FSDP2_KINDS = ("FSDP2", "FSDP2, projector", "FSDP2, pool")
STEPS = 4
KEYS_AT_STEP = 2
SETTINGS = {"center_queries": True, "query_mean_momentum": 0.5, "query_pooling": "modality_mean"}
QUESTIONS = (
    ("What is said?", "the quick fox"),
    ("Which animal is it?", "dog"),
    ("What is it?", "a fox"),
    ("Is it?", "lazy"),
)


def rows_of_step(clip: str, step: int) -> list[dict[str, Any]]:
    """Four rows, of which the first two have a clip."""
    order = [(index + step) % len(QUESTIONS) for index in range(len(QUESTIONS))]
    return [
        {"audio": clip if place < 2 else None, "instruction": QUESTIONS[index][0], "answer": QUESTIONS[index][1]}
        for place, index in enumerate(order)
    ]


def make_model() -> Any:
    return small_models.make_adapted_chat_model(**SETTINGS).train()


def make_collator() -> AudioListenCollator:
    return AudioListenCollator(small_models.make_chat_processor())


def train(model: Any, called: Any, clip: str, rank: int = 0, processes: int = 1) -> dict[str, torch.Tensor]:
    """Some steps of gradient descent; the keys are set to centers of the queries before one of them."""
    collator, share = make_collator(), len(QUESTIONS) // processes
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    losses, queries = [], []
    for step in range(STEPS):
        rows = rows_of_step(clip, step)
        if step == KEYS_AT_STEP:
            model.init_keys_from(gather_rows(torch.cat(queries)))
        items = int((collator(rows)["labels"][:, 1:] != -100).sum())
        batch = collator(rows[rank * share : (rank + 1) * share])
        loss = called(**batch, num_items_in_batch=torch.tensor(items)).loss
        queries.append(model.base_model.last_selection.query)
        (processes * loss).backward()  # the gradients of the processes are averaged
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses)}


@torch.no_grad()
def evaluated(model: Any, clip: str, rank: int = 0, processes: int = 1) -> torch.Tensor:
    """The loss of this process's rows in evaluation mode."""
    share = len(QUESTIONS) // processes
    batch = make_collator()(rows_of_step(clip, 0)[rank * share : (rank + 1) * share])
    loss: torch.Tensor = model.eval()(**batch).loss
    return loss


def answers(model: Any, clip: str, rank: int = 0) -> list[str]:
    """Answers to a row with a clip, by the first process, or without one, by the second."""
    row = rows_of_step(clip, 0)[2 * rank]
    return answer_batches(model.eval(), make_collator(), [row], 1, max_new_tokens=4, min_new_tokens=4, do_sample=False)


def shard(model: Any, kind: str) -> Any:
    from torch.distributed.fsdp import fully_shard

    base = model.get_base_model()
    for layer in base.model.language_model.layers:
        fully_shard(layer)
    if kind == "FSDP2, projector":
        fully_shard(base.model.multi_modal_projector.modules_to_save["default"])
    if kind == "FSDP2, pool":
        fully_shard(model.base_model.layer.pool_of())
    return fully_shard(model)


def wrap(model: Any, kind: str) -> Any:
    return nn.parallel.DistributedDataParallel(model) if kind == "DDP" else shard(model, kind)


def save_adapter(model: Any, kind: str, folder: Path) -> None:
    """The way of docs/scaling.md."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state_dict = None
    if kind != "DDP":
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state_dict = get_model_state_dict(model, options=options)
    if torch.distributed.get_rank() == 0:
        model.save_pretrained(folder, state_dict=state_dict)
    torch.distributed.barrier()


def load_into_shards(kind: str, folder: Path) -> Any:
    """A new model, sharded before the adapter is loaded."""
    from peft import get_peft_model_state_dict
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    whole = make_model()
    whole.load_adapter(folder, "default")
    state_dict = {name: tensor for name, tensor in whole.state_dict().items() if ".default." in name}
    assert len(state_dict) >= len(get_peft_model_state_dict(whole))
    model = shard(make_model(), kind)
    set_model_state_dict(model, state_dict, options=StateDictOptions(full_state_dict=True, strict=False))
    return model


def initialized_from_shards() -> dict[str, torch.Tensor]:
    """The pool of an adapter that is added to a model whose embeddings are sharded."""
    from peft import get_peft_model
    from torch.distributed.fsdp import fully_shard

    from peft_listen import ListenConfig

    base = small_models.make_chat_model()
    fully_shard(base.get_input_embeddings())
    fully_shard(base)
    model = get_peft_model(base, ListenConfig(pool_size=12, prompt_length=3, center_queries=True))
    return {name: tensor.clone() for name, tensor in model.base_model.layer.pool_of().state_dict().items()}


def whole_pool(model: Any) -> dict[str, torch.Tensor]:
    return {
        f"pool.{name}": (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
        for name, tensor in model.base_model.layer.pool_of().state_dict().items()
    }


def main(clip: str, folder: Path, kinds: list[str]) -> None:
    from torch.distributed.fsdp import register_fsdp_forward_method

    rank = torch.distributed.get_rank()
    for kind in kinds:
        model = make_model()
        called = wrap(model, kind)
        found = train(model, called, clip, rank, processes=2)
        found |= whole_pool(model)
        found["evaluated"] = evaluated(called, clip, rank, processes=2)
        if kind != "DDP":
            register_fsdp_forward_method(model, "generate")
        (answer,) = answers(model, clip, rank)
        found["answer"] = torch.tensor(list(answer.encode()), dtype=torch.uint8)
        save_adapter(model, kind, folder / f"{kind} adapter")
        if kind == "FSDP2":
            loaded = load_into_shards(kind, folder / f"{kind} adapter")
            found["loaded"] = evaluated(loaded, clip, rank, processes=2)
            found |= {f"initial.{name}": tensor for name, tensor in initialized_from_shards().items()}
        save_file(found, folder / f"{kind}-{rank}.safetensors")
        torch.distributed.barrier()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(int(sys.argv[4]), exit=True)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(";"))
