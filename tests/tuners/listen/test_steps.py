"""Optimizer steps are counted, no matter how the optimizer updates its parameters."""

import copy
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from tests.device import place, test_device


STEPS = 4


def supervised(input_ids, prompt=3):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1], device=input_ids.device) < prompt, -100)


class ByHand:
    """Gradient descent that writes to `.data`, which torch's version counters do not register."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self):
        for parameter in self.parameters:
            parameter.data = parameter.data - 0.1 * parameter.grad

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None


class MasterWeights(ByHand):
    """Trains float32 copies, as Apex and DeepSpeed do, with an optimizer that does not hold the parameters."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.masters = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.SGD(self.masters, lr=0.1)

    def step(self):
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = parameter.grad
        self.optimizer.step()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            parameter.data.copy_(master)


def bitsandbytes_adam(parameters):
    return pytest.importorskip("bitsandbytes").optim.Adam8bit(parameters, lr=1e-3)


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
    "foreach AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=True),
    "fused SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-3),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-3),
    "bitsandbytes": bitsandbytes_adam,
    "by hand": ByHand,
    "master weights": MasterWeights,
    "two": lambda parameters: Several([torch.optim.SGD([parameter], lr=0.1) for parameter in parameters]),
}


class Several:
    """One optimizer for each parameter."""

    def __init__(self, optimizers):
        self.optimizers = optimizers

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.fixture
def model(build, attach):
    return attach(build(), center_queries=True, query_mean_momentum=0.5).train()


def train(model, optimizer, tokens, accumulation=2, steps=STEPS, step=None):
    """Prompt lengths of every forward pass, and the query mean after each step."""
    lengths, means = [], []
    pool = model.base_model.layer.pool_of()
    for number in range(steps):
        for part in range(accumulation):
            input_ids = tokens(2, seed=10 * number + part)
            model(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
            lengths.append(model.base_model.last_selection.indices.shape[1])
        (optimizer.step if step is None else step)()
        optimizer.zero_grad()
        means.append(pool.query_mean.clone())
    return lengths, means


def expected_means(model, tokens, accumulation=2, steps=STEPS):
    """The running mean, computed by hand, and the length that each step draws."""
    from peft_listen.tuners.listen.prompt_length import train_prompt_length

    embed, mean, means = model.get_input_embeddings(), torch.zeros(32), []
    for number in range(steps):
        rows = torch.cat([tokens(2, seed=10 * number + part)[:, :3] for part in range(accumulation)])
        mean = torch.lerp(mean, embed(rows).mean(dim=1).mean(dim=0).detach(), max(1 / (number + 1), 0.5))
        means.append(mean)
    lengths = [train_prompt_length(model.peft_config["default"], number) for number in range(steps)]
    return [length for length in lengths for _ in range(accumulation)], means


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_draws_a_length_and_updates_the_mean(name, accumulation, model, tokens):
    lengths, means = train(model, OPTIMIZERS[name](trained(model)), tokens, accumulation)
    expected, expected_mean = expected_means(model, tokens, accumulation)
    assert lengths == expected
    pool = model.base_model.layer.pool_of()
    if name in ("by hand", "master weights"):  # detected by the next forward pass
        model(input_ids=tokens(), labels=supervised(tokens()))
        means = [*means[1:], pool.query_mean.clone()]
    assert pool.step == int(pool.saved_step) == STEPS
    for found, mean in zip(means, expected_mean, strict=True):
        torch.testing.assert_close(found, mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["SGD", "by hand", "master weights"])
def test_a_step_before_the_keys_are_initialized_counts(name, model, tokens):
    train(model, OPTIMIZERS[name](trained(model)), tokens, steps=2)
    model.init_keys_from(torch.randn(20, 32))
    pool = model.base_model.layer.pool_of()
    assert pool.step == 2
    mean = pool.query_mean.clone()
    model(input_ids=tokens(), labels=supervised(tokens()))
    assert pool.step == 2
    assert torch.equal(pool.query_mean, mean)  # that of the queries for the keys


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_gradient_scaling_skips_does_not_count(fused, model, tokens):
    optimizer = torch.optim.AdamW(trained(model), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler(test_device().type, init_scale=1.0)
    pool = model.base_model.layer.pool_of()
    counts = []
    for number in range(4):
        input_ids = tokens(2, seed=number)
        loss = model(input_ids=input_ids, labels=supervised(input_ids)).loss
        scaler.scale(loss).backward()
        if number == 1:
            pool.values.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        counts.append(pool.step)
    assert counts == [1, 1, 2, 3]


def test_another_models_optimizer_does_not_count(model, tokens):
    other = place(torch.nn.Linear(2, 2))
    theirs, ours = torch.optim.SGD(other.parameters(), lr=0.1), torch.optim.SGD(trained(model), lr=0.1)
    pool = model.base_model.layer.pool_of()
    for number in range(3):
        for _ in range(2):
            model(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
            other(torch.ones(1, 2)).sum().backward()
            theirs.step()
        ours.step()
        ours.step()  # a second step without a forward pass between them
        assert pool.step == number + 1


def test_evaluation_and_generation_do_not_count(model, tokens):
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    train(model, optimizer, tokens, steps=2)
    pool = model.base_model.layer.pool_of()
    mean = pool.query_mean.clone()
    model.eval()(input_ids=tokens(), labels=supervised(tokens()))
    model.train().generate(tokens(), max_new_tokens=2, do_sample=False)
    assert pool.step == 2
    assert torch.equal(pool.query_mean, mean)


def test_manual_updates_count_after_training_with_an_optimizer(model, tokens):
    pool = model.base_model.layer.pool_of()
    train(model, torch.optim.SGD(trained(model), lr=0.1), tokens, steps=2)
    model.eval()
    model.train()
    train(model, ByHand(trained(model)), tokens, steps=2)
    model(input_ids=tokens(), labels=supervised(tokens()))
    assert pool.step == 4


def test_a_loaded_adapter_continues_to_count(model, build, tokens, tmp_path):
    train(model, torch.optim.AdamW(trained(model), fused=True), tokens, steps=3)
    model.save_pretrained(tmp_path)
    for loaded in (
        PeftModel.from_pretrained(build(), tmp_path, is_trainable=True),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        pool = loaded.base_model.layer.pool_of()
        assert pool.step == 3
        train(loaded.train(), torch.optim.AdamW(trained(loaded), fused=True), tokens, steps=2)
        assert pool.step == 5
    assert model.base_model.layer.pool_of().step == 3


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        input_ids = torch.randint(3, 56, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": input_ids, "labels": supervised(input_ids[None])[0]}


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "sgd", "adafactor"])
def test_the_trainer_needs_no_callback(optimizer, model, tmp_path):
    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": optimizer}
    settings |= {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    with model.record_selections() as records:
        Trainer(model, TrainingArguments(str(tmp_path), **settings), train_dataset=Rows()).train()
    pool = model.base_model.layer.pool_of()
    assert pool.step == 3
    assert pool.query_mean.abs().max() > 0
    lengths = [record.indices.shape[1] for record in records]
    assert lengths[0::2] == lengths[1::2] and len(set(lengths)) > 1


WORKER = """
import sys, torch
sys.path[:0] = {paths!r}
import conftest, test_steps
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
build, attach = conftest.build.__wrapped__(), conftest.attach.__wrapped__()
model = attach(build(), center_queries=True, query_mean_momentum=0.5).train()
kind = {kind!r}
if kind == "DDP":
    called = torch.nn.parallel.DistributedDataParallel(model)
else:
    from torch.distributed.fsdp import fully_shard
    base = model.get_base_model()
    for layer in base.model.layers:
        fully_shard(layer)
    if kind == "FSDP2 of the pool":
        fully_shard(model.base_model.layer.pool_of())
    called = fully_shard(model)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
tokens = conftest.tokens.__wrapped__()
lengths = []
for number in range(test_steps.STEPS):
    for part in range(2):
        input_ids = tokens(2, seed=10 * number + part)[rank : rank + 1]
        called(input_ids=input_ids, labels=test_steps.supervised(input_ids)).loss.backward()
        lengths.append(model.base_model.last_selection.indices.shape[1])
    optimizer.step()
    optimizer.zero_grad()
pool = model.base_model.layer.pool_of()
save_file(
    {{"lengths": torch.tensor(lengths), "mean": pool.query_mean, "step": torch.tensor(pool.step)}},
    {folder!r} + f"/rank{{rank}}.safetensors",
)
torch.distributed.barrier()
"""


@pytest.mark.cpu_only("its processes use gloo")
@pytest.mark.parametrize(
    "kind",
    ["DDP", "FSDP2", "FSDP2 of the pool"],
)
@pytest.mark.slow
def test_two_processes_count_the_same_steps_as_one(kind, model, tokens, tmp_path):
    from safetensors.torch import load_file

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    script = tmp_path / "worker.py"
    script.write_text(
        WORKER.format(
            paths=[str(Path(__file__).parent), str(Path(__file__).parents[3])], kind=kind, folder=str(tmp_path)
        )
    )
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        with (tmp_path / f"stderr{rank}").open("w") as stderr:
            settings = {**environment, "RANK": rank, "LOCAL_RANK": rank}
            command = [sys.executable, str(script)]
            processes.append(subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=stderr))
    for process in processes:
        process.wait(timeout=240)
    expected, means = expected_means(model, tokens)
    for rank in (0, 1):
        file = tmp_path / f"rank{rank}.safetensors"
        assert file.exists(), (tmp_path / f"stderr{rank}").read_text()[-3000:]
        found = load_file(file)
        assert found["lengths"].tolist() == expected
        assert int(found["step"]) == STEPS
        torch.testing.assert_close(found["mean"], means[-1], atol=1e-5, rtol=1e-5)


def test_optimizers_are_not_observed_before_training_begins():
    code = """
import torch, peft_listen
from torch.optim.optimizer import _global_optimizer_post_hooks as hooks
assert not hooks
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_closure_of_an_optimizer_belongs_to_its_step(model, tokens):
    optimizer = torch.optim.LBFGS(trained(model), lr=0.01, max_iter=3)
    pool, lengths = model.base_model.layer.pool_of(), []

    def closure():
        optimizer.zero_grad()
        loss = model(input_ids=tokens(), labels=supervised(tokens())).loss
        loss.backward()
        lengths.append(model.base_model.last_selection.indices.shape[1])
        return loss

    for number in range(3):
        lengths.clear()
        optimizer.step(closure)
        assert pool.step == number + 1
        assert len(set(lengths)) == 1


def test_loading_and_initializing_count_as_no_step(model, build, tokens, tmp_path):
    pool = model.base_model.layer.pool_of()
    model.save_pretrained(tmp_path)
    for change in (
        lambda: model.init_keys_from(torch.randn(20, 32)),
        lambda: model.load_adapter(str(tmp_path), "default", is_trainable=True),
    ):
        model(input_ids=tokens(), labels=supervised(tokens()))
        change()
        model.train()(input_ids=tokens(), labels=supervised(tokens()))
        assert pool.step == 0


class SharpnessAware:
    """Moves the parameters against the gradient's direction before the second pass of a step, and back after it."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.1)

    @torch.no_grad()
    def first_step(self):
        self.before = [parameter.clone() for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.add_(parameter.grad)
        self.optimizer.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for parameter, before in zip(self.parameters, self.before, strict=True):
            parameter.copy_(before)
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize("is_given", [True, False])
def test_a_step_of_two_passes_counts_once_after_the_first_or_if_it_is_given(is_given, model, tokens):
    optimizer, counts = SharpnessAware(trained(model)), []
    pool = model.base_model.layer.pool_of()
    for number in range(3):
        if is_given:
            model.base_model.begin_step(number)
        model(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
        optimizer.first_step()
        model(input_ids=tokens(), labels=supervised(tokens())).loss.backward()
        optimizer.second_step()
        counts.append(pool.step)
    assert counts == ([0, 1, 2] if is_given else [2, 3, 4])
