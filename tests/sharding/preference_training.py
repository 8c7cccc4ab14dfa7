"""A step of direct preference optimization, in one process or in two.

    python -m tests.sharding.preference_training FOLDER SECONDS

writes what each process has found to `FOLDER/RANK.safetensors`. After SECONDS, it ends and shows where it was.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from peft_listen.training import ListenCallback
from tests.training.test_preferences import Gradients, logged, make_model, make_trainer, train_a_little


ROWS = 4


def first_step(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """The loss and the gradient of the keys."""
    model = train_a_little(make_model(stochastic_prompt_length=False))
    gradients = Gradients(model.base_model.layer)
    changes = {"per_device_train_batch_size": ROWS // processes, "max_steps": 1}
    trainer = make_trainer("DPO", model, folder, [ListenCallback(), gradients], **changes)
    trainer.train()
    return {"gradient": gradients.gradients[0], "loss": torch.tensor(logged(trainer, "loss")[0])}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(int(sys.argv[2]), exit=True)
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    save_file(first_step(output / "run", 2), output / f"{os.environ['RANK']}.safetensors")
