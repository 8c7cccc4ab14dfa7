"""Several processes: each may take part in another number of passes and steps, and no process waits for another one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.cpu_only("its processes use gloo")

WORKER = """
import contextlib, copy, datetime, sys, torch
sys.path[:0] = {paths!r}
import conftest, test_processes, test_steps
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=90))
rank = torch.distributed.get_rank()
base, attach = conftest.build.__wrapped__()(), conftest.attach.__wrapped__()
found = {{}}
for name, case in test_processes.CASES.items():
    settings = test_processes.SETTINGS.get(name, {{}})
    model = attach(base, center_queries=True, query_mean_momentum=0.5, **settings).train()
    case(rank, model, DistributedDataParallel)
    pool = model.base_model.layer.pool_of()
    found |= {{f"{{name}}.mean": pool.query_mean, f"{{name}}.step": torch.tensor(pool.step)}}
    found |= {{f"{{name}}.{{key}}": tensor.clone() for key, tensor in pool.named_buffers()}}
    torch.distributed.barrier()  # a collective that one process alone has begun would be found here
save_file(found, {folder!r} + f"/rank{{rank}}.safetensors")
"""


def rows(number):
    return torch.randint(3, 56, (1, 6), generator=torch.Generator().manual_seed(number))


def supervised(input_ids):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < 3, -100)


def passes(called, numbers):
    for number in numbers:
        called(input_ids=rows(number), labels=supervised(rows(number))).loss.backward()


def optimizer_of(model):
    # Without updates, so that every process has the embeddings of the first step.
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)


def each_alone(rank, model, wrapper):
    optimizer = optimizer_of(model)
    for number in range(2 + 2 * rank):
        passes(model, [10 * rank + number])
        optimizer.step()


def one_process_only(rank, model, wrapper):
    optimizer = optimizer_of(model)
    for number in range(2 if rank == 0 else 0):
        passes(model, [number])
        optimizer.step()


def other_numbers_of_micro_batches(rank, model, wrapper):
    called, optimizer = wrapper(model), optimizer_of(model)
    for step in range(2):
        numbers = [10 * step + 5 * rank + number for number in range(1 + 2 * rank)]
        with called.no_sync():
            passes(called, numbers[:-1])
        passes(called, numbers[-1:])
        optimizer.step()


def a_further_pass_of_one_process(rank, model, wrapper):
    called, optimizer = wrapper(model), optimizer_of(model)
    for step in range(2):
        passes(called, [10 * step + 5 * rank])
        optimizer.step()
        if rank == 0:
            model(input_ids=rows(99), labels=supervised(rows(99)))  # in training, for its loss alone


def joined(rank, model, wrapper):
    called, optimizer = wrapper(model), optimizer_of(model)
    with called.join():
        for step in range(2 + 2 * rank):
            passes(called, [10 * rank + step])
            optimizer.step()


def without_broadcast(rank, model, wrapper):
    # Without the broadcast of buffers, after which those of all processes are those of the first.
    called, optimizer = wrapper(model, broadcast_buffers=False), optimizer_of(model)
    for step in range(2):
        passes(called, [10 * step + 5 * rank])
        optimizer.step()


CASES = {
    "each alone": each_alone,
    "one process only": one_process_only,
    "micro-batches": other_numbers_of_micro_batches,
    "further pass": a_further_pass_of_one_process,
    "join": joined,
    "deep": without_broadcast,
    "text": without_broadcast,
}
SETTINGS = {
    "deep": {"value_layers": [0, 1], "init_weights": True, "stochastic_prompt_length": False},
    "text": {"query_layer": 1, "query_text": "last", "query_pooling": "modality_mean"},
}


def running_mean(embed, steps):
    """The running mean after these steps; each is a list of the numbers of its rows."""
    mean = torch.zeros(32)
    for number, step in enumerate(steps):
        queries = torch.cat([embed(rows(row)[:, :3]).mean(dim=1) for row in step])
        mean = torch.lerp(mean, queries.mean(dim=0).detach(), max(1 / (number + 1), 0.5))
    return mean


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
    (folder / "worker.py").write_text(WORKER.format(paths=paths, folder=str(folder)))
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        with (folder / f"stderr{rank}").open("w") as stderr:
            command = [sys.executable, str(folder / "worker.py")]
            environment |= {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr))
    for process in processes:
        process.wait(timeout=400)
    files = [folder / f"rank{rank}.safetensors" for rank in (0, 1)]
    for rank, file in enumerate(files):
        assert file.exists(), (folder / f"stderr{rank}").read_text()[-3000:]
    return [load_file(file) for file in files]


# Steps of each process, and the rows whose queries are in its statistics.
EXPECTED = {
    "each alone": [[[0], [1]], [[10], [11], [12], [13]]],
    "one process only": [[[0], [1]], []],
    "micro-batches": [[[0, 5, 6, 7], [10, 15, 16, 17]]] * 2,
    "further pass": [[[0, 5], [10, 15, 99]]] * 2,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_statistics_are_of_the_processes_that_reduce_their_gradients(name, found, build):
    embed = build().get_input_embeddings()
    for rank, steps in enumerate(EXPECTED[name]):
        assert int(found[rank][f"{name}.step"]) == len(steps)
        torch.testing.assert_close(found[rank][f"{name}.mean"], running_mean(embed, steps), atol=1e-5, rtol=1e-5)


def test_processes_that_end_earlier_do_not_keep_the_others_waiting(found):
    assert [int(rank["join.step"]) for rank in found] == [2, 4]
    for rank in found:
        assert rank["join.mean"].isfinite().all() and rank["join.mean"].abs().max() > 0


def test_scales_of_deep_values_are_the_mean_over_the_processes(found, build, attach):
    scales = []
    for rank in range(2):
        model = attach(build(), center_queries=True, **SETTINGS["deep"]).train()
        passes(model, [5 * rank])
        scales.append(model.base_model.layer.pool_of().deep_scales)
    assert not torch.allclose(*scales)
    for rank in found:
        torch.testing.assert_close(rank["deep.deep_scales"], (scales[0] + scales[1]) / 2)


def test_the_means_of_both_halves_of_a_query_are_of_all_processes(found, build):
    base, states = build(), []
    for step in ([0, 5], [10, 15]):
        outputs = base(input_ids=torch.cat([rows(number)[:, :3] for number in step]), output_hidden_states=True)
        states.append(outputs.hidden_states[1][:, -1].mean(dim=0).detach())
    for rank in found:
        torch.testing.assert_close(rank["text.text_query_means"][0], torch.lerp(*states, 0.5), atol=1e-5, rtol=1e-5)
