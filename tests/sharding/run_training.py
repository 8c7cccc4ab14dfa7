"""A training run in two processes on CPUs, with DistributedDataParallel or, through accelerate, with FSDP2.

    python -m tests.sharding.run_training BASE DATA FOLDER KIND SECONDS

writes the losses of the run in `FOLDER/KIND`, and under FSDP2 those of one that was interrupted and continued, and of one that was
killed after its last step, to `FOLDER/KIND-RANK.json`. KIND is DDP or FSDP2, and an adapter or "skip". After SECONDS, it ends and shows where it was.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from peft_listen.processes import in_main_process
from tests.pages import ROOT


class Interruption(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


class ShardedParameters(TrainerCallback):
    """Names of the parameters that are sharded in the first step."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            model = kwargs["model"]
            self.names = [name for name, each in model.named_parameters() if hasattr(each, "device_mesh")]
            self.number = len(list(model.parameters()))


def use_fsdp2_on_cpus() -> None:
    """accelerate ignores FSDP where there is no accelerator. With this, it takes the CPUs for some; nothing else changes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = ROOT / "examples" / "accelerate" / "fsdp2.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "--num_processes", "2", "train.py"])
    launched = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    settings = {name: value for name, value in launched.items() if name.startswith(("FSDP_", "ACCELERATE_"))}
    os.environ.update(settings, ACCELERATE_TORCH_DEVICE="cpu")
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def make_run(base: str, data: str, folder: Path, processes: int, adapter: str, **changes: Any) -> Any:
    from peft_listen.runs import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments, TrainingRun

    settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "disable_tqdm": True, "eval_strategy": "steps"}
    settings |= {"eval_steps": 4, "per_device_train_batch_size": 4 // processes, "per_device_eval_batch_size": 2}
    settings |= {"learning_rate": 1e-2, "use_cpu": not os.environ.get("ACCELERATE_USE_FSDP")}
    callbacks = changes.pop("callbacks", ())
    return TrainingRun(
        ModelOptions(model=base),
        AdapterOptions(adapter=adapter, lora_dropout=0.0),
        ListenOptions(listen_pool_size=6, listen_prompt_length=2, init_keys_at_steps=[1]),
        DataOptions([data], [data], [data], eval_rows_per_task=0, max_new_tokens=3, **changes),
        RunArguments(output_dir=str(folder), **settings),
        callbacks=callbacks,
    )


def summary(result: Any) -> dict[str, Any]:
    logged = result.log_history
    return {
        "losses": [row["loss"] for row in logged if "loss" in row],
        "eval_loss": [row["eval_loss"] for row in logged if "eval_loss" in row],
        "scores": {task: score.value for task, score in result.scores["test"].items()},
    }


def trained_tensors(folder: Path) -> dict[str, torch.Tensor]:
    paths = sorted(folder.rglob("adapter_model.safetensors"))
    return {f"{path.parent.name} {name}": each for path in paths for name, each in load_file(path).items()}


def forget_the_end(folder: Path) -> None:
    """Leaves what a run that was killed after its last step leaves: its checkpoints."""
    for name in ("training.json", "result.json"):
        (folder / name).unlink()
    for name in ("model", "eval", "test"):
        shutil.rmtree(folder / name)


def main(base: str, data: str, folder: Path, kind: str) -> None:
    if kind.startswith("FSDP2"):
        use_fsdp2_on_cpus()
    way, _, adapter = kind.partition(" ")
    changes = {"on_bad_clip": "skip"} if adapter == "skip" else {}
    adapter = "listen" if adapter == "skip" else adapter
    sharded = ShardedParameters()
    result = make_run(base, data, folder / kind, 2, adapter, callbacks=[sharded], **changes).run()
    found: dict[str, Any] = {"whole": summary(result), "num_skipped": result.num_skipped}
    found["share of sharded parameters"] = len(sharded.names) / sharded.number
    if way == "FSDP2":
        before = trained_tensors(result.model_dir)
        in_main_process(lambda: forget_the_end(folder / kind))
        restored = make_run(base, data, folder / kind, 2, adapter).run()
        found["restored"] = summary(restored)
        after = trained_tensors(restored.model_dir)
        found["is restored exactly"] = before.keys() == after.keys() and all(
            torch.equal(after[name], tensor) for name, tensor in before.items()
        )
        cut = folder / f"{kind} cut"
        try:
            make_run(base, data, cut, 2, adapter, callbacks=[Interruption()]).run()
        except KeyboardInterrupt:
            pass
        found["continued"] = summary(make_run(base, data, cut, 2, adapter).run())
    (folder / f"{kind}-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(int(sys.argv[5]), exit=True)
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
