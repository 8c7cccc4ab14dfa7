"""DeepSpeed ZeRO-2 and ZeRO-3 on CPUs: two processes train the pool of a text model as one process does."""

import pytest
import torch
from safetensors.torch import load_file

from tests.sharding import text_training
from tests.sharding.launching import run_two_processes


pytest.importorskip("deepspeed", reason="`pip install deepspeed`")
pytestmark = [pytest.mark.slow, pytest.mark.cpu_only("its processes use gloo")]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_as_one(stage, tmp_path):
    variables = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"}
    arguments = [str(tmp_path), str(stage), "890"]
    outputs = run_two_processes("tests.sharding.text_training", arguments, tmp_path, variables, timeout=900)
    model, losses = text_training.alone()
    pool = model.base_model.layer.pool_of()
    initial = text_training.make_model().base_model.layer.pool_of().state_dict()
    assert losses[0] != losses[-1]
    for rank, output in enumerate(outputs):
        file = tmp_path / f"{stage}-{rank}.safetensors"
        assert file.exists(), output[-3000:]
        found = load_file(file)
        torch.testing.assert_close(found["losses"], losses, atol=1e-4, rtol=1e-4)
        for name, tensor in pool.named_parameters():
            torch.testing.assert_close(found[f"pool.{name}"], tensor.detach(), atol=1e-4, rtol=1e-4, msg=name)
        assert int(found["size"]) == (0 if stage == 3 else pool.keys.numel())
        if stage == 3:  # from partitioned embeddings
            for name, tensor in initial.items():
                torch.testing.assert_close(found[f"initial.{name}"], tensor, msg=name)
