"""
`Trainer` with the audio model on the device of `tests/simulated_device.py` gives the results of the CPU. The tests marked `gpu`
repeat this on a GPU.
"""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from peft_listen.training import AudioListenCollator, ListenCallback, create_listen_optimizer
from tests.simulated_device import SIMULATED


pytestmark = [
    pytest.mark.usefixtures("simulated"),
    pytest.mark.cpu_only("it compares the CPU with the simulated device"),
]

STEPS = 4
SETTINGS = {"max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", "seed": 3}
SETTINGS |= {"report_to": [], "disable_tqdm": True, "learning_rate": 1e-2, "remove_unused_columns": False}


def test_trainer_gives_the_losses_and_measures_of_the_cpu(make_adapted, processor, examples, tmp_path, monkeypatch):
    results = []
    for device in ("cpu", SIMULATED):
        if device == SIMULATED:
            monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
        model = make_adapted(center_queries=True)
        args = TrainingArguments(
            str(tmp_path), use_cpu=device == "cpu", gradient_checkpointing=device == SIMULATED, **SETTINGS
        )
        trainer = Trainer(
            model,
            args,
            train_dataset=examples,
            data_collator=AudioListenCollator(processor),
            callbacks=[ListenCallback((2,))],
            optimizers=(create_listen_optimizer(model, args), None),
        )
        trainer.train()
        pool = model.base_model.layer.pool_of()
        assert {tensor.device for tensor in (*pool.parameters(), *pool.buffers())} == {torch.device(device)}
        names = ("loss", "key_loss", "live_prompts", "query_cosine", "key_cosine", "top_prompt_share")
        logs = [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]
        results.append([torch.tensor(logs), pool.keys.detach().cpu(), pool.query_mean.cpu()])
    assert len(results[0][0]) == STEPS
    torch.testing.assert_close(results[1], results[0], atol=1e-3, rtol=1e-3)
