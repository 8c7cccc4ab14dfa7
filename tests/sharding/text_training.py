"""Training of a small text model by one process, or by two under DeepSpeed ZeRO.

    python -m tests.sharding.text_training FOLDER STAGE SECONDS

writes what each process has found to `FOLDER/STAGE-RANK.safetensors`. After SECONDS, it ends and shows where it was. Needs
DeepSpeed, which compiles a part of itself for a CPU.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import save_file

from peft_listen import ListenConfig
from peft_listen.tuners.listen.running_statistics import gather_rows
from tests import small_models


ROWS, STEPS, KEYS_AT_STEP = 4, 4, 2


def make_model() -> Any:
    config = ListenConfig(
        pool_size=12, prompt_length=3, max_train_prompt_length=6, center_queries=True, query_mean_momentum=0.5
    )
    return get_peft_model(small_models.make_llm("llama"), config).train()


def trained(model: Any) -> list[torch.nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]


def train(
    model: Any, called: Any, step: Callable[[torch.Tensor], None], rank: int = 0, processes: int = 1
) -> torch.Tensor:
    """The losses of some steps; the keys are set to centers of the queries before one of them."""
    losses, queries, share = [], [], ROWS // processes
    for number in range(STEPS):
        if number == KEYS_AT_STEP:
            model.init_keys_from(gather_rows(torch.cat(queries)))
        rows = torch.randint(3, 290, (ROWS, 8), generator=torch.Generator().manual_seed(number))
        rows = rows[rank * share : (rank + 1) * share]
        loss = called(input_ids=rows, labels=rows.masked_fill(torch.arange(8) < 4, -100)).loss
        queries.append(model.base_model.last_selection.query)
        step(loss)
        # As `ListenCallback` does: DeepSpeed does not reduce the gradients in a way that the pool sees.
        model.base_model.layer.pool_of().reduce_queries()
        losses.append(loss.detach().clone())
    return torch.stack(losses)


def alone() -> tuple[Any, torch.Tensor]:
    model = make_model()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)

    def step(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, train(model, model, step)


def main(folder: Path, stage: int) -> None:
    import deepspeed

    deepspeed.init_distributed("gloo")
    rank = int(os.environ["RANK"])
    settings: dict[str, Any] = {"stage": stage}
    if stage == 3:
        settings["stage3_param_persistence_threshold"] = 0  # by default, small parameters are not partitioned
    config = {"train_micro_batch_size_per_gpu": ROWS // 2, "zero_optimization": settings}
    config |= {"zero_allow_untested_optimizer": True, "gradient_clipping": 0.0}
    model = make_model()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, model_parameters=trained(model), config=config)

    def step(loss: torch.Tensor) -> None:
        engine.backward(loss)
        engine.step()

    losses = train(model, engine, step, rank, processes=2)
    torch.distributed.all_reduce(losses)
    pool = model.base_model.layer.pool_of()
    found = {"losses": losses / 2, "size": torch.tensor(pool.keys.numel())}
    with deepspeed.zero.GatheredParameters(list(pool.parameters())):
        found |= {f"pool.{name}": tensor.detach().clone() for name, tensor in pool.state_dict().items()}
    if stage == 3:
        base = small_models.make_llm("llama").requires_grad_(False)
        deepspeed.zero.Init(module=base, config_dict_or_path=config)
        assert base.get_input_embeddings().weight.numel() == 0
        new = get_peft_model(base, model.peft_config["default"]).base_model.layer.pool_of()
        found |= {f"initial.{name}": tensor.detach().clone() for name, tensor in new.state_dict().items()}
    save_file(found, folder / f"{stage}-{rank}.safetensors")
    torch.distributed.barrier()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(int(sys.argv[3]), exit=True)
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
