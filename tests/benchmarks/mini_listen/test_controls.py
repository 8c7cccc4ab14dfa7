"""The selectors that are told what to select."""

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from benchmarks.mini_listen.controls import (
    RouteCollator,
    clip_route,
    register_controls,
    routing,
    take_routes,
    task_route,
)
from peft_listen import ListenConfig, get_selector
from peft_listen.tuners.listen.selectors import base
from tests.small_models import IDS, SIZES


TASKS = ("asr", "er", "sv")
ROWS = [{"task": task, "audio": f"clips/{number}.wav"} for number, task in enumerate(TASKS * 40)]
KEYS = torch.zeros(12, 8)  # four groups of three


def selected(name, routes, k=4):
    with routing(torch.as_tensor(routes)):
        return get_selector(name, num_groups=4).select(torch.randn(len(routes), 8), KEYS, k).indices


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(base, "_SELECTORS", dict(base._SELECTORS))  # other tests run all that are registered
    register_controls()


@pytest.fixture
def model():
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=61, **SIZES, **IDS))
    config = ListenConfig(
        pool_size=12,
        prompt_length=4,
        selector="task_known",
        selector_kwargs={"num_groups": 4},
        key_loss_weight=0.0,
        value_layers=[1],
    )
    model = get_peft_model(llm, config)
    take_routes(model.get_base_model())
    return model


def test_a_task_has_its_own_prompt_in_each_group():
    routes = [task_route(TASKS)(row) for row in ROWS[:4]]
    assert selected("task_known", routes).tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11], [0, 3, 6, 9]]
    assert selected("task_known", routes, k=2).tolist() == [[0, 3], [1, 4], [2, 5], [0, 3]]


def test_a_clip_has_the_same_prompts_always_and_every_prompt_is_selected_equally_often():
    routes = [clip_route(row) for row in ROWS]
    indices = selected("random_routing", routes)
    assert torch.equal(indices, selected("random_routing", routes))
    assert torch.equal(indices // 3, torch.arange(4).expand(120, -1))  # one of each group
    counts = torch.bincount(indices.flatten(), minlength=12)
    assert counts.min() > 20 and counts.max() < 60  # 40 on average
    assert len(indices.unique(dim=0)) > 50  # of 81 combinations
    assert clip_route(ROWS[0]) == 415013952  # in every process
    assert clip_route({"audio": f"/elsewhere/{ROWS[0]['audio']}"}) == 415013952  # and on every machine


def test_tasks_do_not_share_their_clips_prompts():
    indices = selected("random_routing", [clip_route(row) for row in ROWS])
    for first in range(3):
        shares = torch.bincount(indices[first::3, 0], minlength=3) / 40
        assert shares.max() < 0.6


def test_the_model_takes_the_routes_of_a_batch(model):
    input_ids = torch.randint(3, 60, (3, 6))
    labels = input_ids.masked_fill(torch.arange(6) < 3, -100)
    model.train()(input_ids=input_ids, labels=labels, routes=torch.tensor([0, 2, 2])).loss.backward()
    assert model.last_selection.indices[:, 0].tolist() == [0, 2, 2]
    gradient = model.layer.pool_of().values.grad
    assert gradient[0::3].any() and gradient[2::3].any() and not gradient[1::3].any()
    deep = model.layer.pool_of().deep_values.grad[0]
    assert deep[3::3].any() and not deep[1::3].any()
    output = model.layer.hooks.selection_for(input_ids=input_ids, routes=torch.tensor([1, 1, 0]))
    assert output.selection.indices[:, 0].tolist() == [1, 1, 0]


def test_the_routes_of_a_block_replace_those_of_an_earlier_call(model):
    input_ids = torch.randint(3, 60, (2, 6))
    model.eval()(input_ids=input_ids, routes=torch.tensor([0, 0]))
    assert selected("task_known", [2, 1])[:, 0].tolist() == [2, 1]


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}]
)
def test_generation_takes_the_routes_of_a_block(settings, model):
    input_ids = torch.randint(3, 60, (2, 6))
    with routing(torch.tensor([2, 1])), model.record_selections() as records:
        model.eval().generate(input_ids, max_new_tokens=3, **settings)
    firsts = records[0].indices[:, 0]
    assert firsts[:: len(firsts) // 2].tolist() == [2, 1]


def test_a_trainer_passes_the_routes_on(model, tmp_path):
    def collate(rows):
        input_ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": input_ids, "labels": input_ids.masked_fill(torch.arange(6) < 3, -100)}

    rows = [{**row, "input_ids": torch.randint(3, 60, (6,))} for row in ROWS[:6]]
    collator = RouteCollator(collate, task_route(TASKS))
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
    }
    arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, **settings)
    with model.record_selections() as records:
        Trainer(model, arguments, train_dataset=rows, data_collator=collator).train()
    assert sorted(int(record.indices[row, 0]) for record in records for row in range(2)) == [0, 0, 1, 1, 2, 2]


def test_missing_routes_raise(model):
    input_ids = torch.randint(3, 60, (3, 6))
    model(input_ids, routes=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"needs the routes of the rows"):
        model(input_ids)
    with pytest.raises(ValueError, match=r"There are 2 routes for 3 rows"):
        model(input_ids, routes=torch.tensor([0, 1]))


def test_groups_of_other_sizes_raise():
    with pytest.raises(ValueError, match=r"pool of 12 prompts in 4 groups has no 5 groups of equal size"):
        selected("task_known", [0], k=5)
    with routing(torch.tensor([0])), pytest.raises(ValueError, match=r"in 5 groups"):
        get_selector("task_known", num_groups=5).select(torch.randn(1, 8), KEYS, 2)
