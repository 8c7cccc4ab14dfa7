"""What a query tells about the task."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.mini_listen.comparison import Study
from benchmarks.mini_listen.routing import own_task_share, text_states
from benchmarks.mini_listen.tables import routing_table
from tests.benchmarks.mini_listen.stored_runs import BASE
from tests.small_models import CHAT_IDS, CHAT_VOCAB_SIZE, SIZES, make_chat_tokenizer


def around(centers: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    tasks = torch.arange(len(centers)).repeat(rows)
    return centers[tasks] + 0.01 * torch.randn(len(tasks), centers.shape[1]), tasks


def test_separate_tasks_have_keys_of_their_own_if_there_are_enough() -> None:
    torch.manual_seed(0)
    centers = torch.eye(6)[:4]
    trained, new = own_task_share(*around(centers, 20), *around(centers, 5), num_keys=8, num_groups=3)
    assert trained == pytest.approx(1.0) and new == pytest.approx(1.0)
    trained, new = own_task_share(*around(centers, 20), *around(centers, 5), num_keys=2, num_groups=3)
    assert trained == pytest.approx(0.5) and new == pytest.approx(0.5)


def test_queries_that_do_not_depend_on_the_task_tell_nothing() -> None:
    torch.manual_seed(0)
    queries, tasks = torch.randn(4000, 3), torch.arange(4000) % 4
    trained, new = own_task_share(queries, tasks, torch.randn(400, 3), torch.arange(400) % 4, num_keys=2, num_groups=2)
    assert trained == pytest.approx(0.25, abs=0.01) and new == pytest.approx(0.25, abs=0.01)


def test_states_are_those_of_the_text_after_the_layers() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=CHAT_VOCAB_SIZE, **SIZES, **CHAT_IDS)).eval()
    tokenizer = make_chat_tokenizer()
    states = text_states(model, tokenizer, ["What is said?", "Who speaks?", "What is said?"], layers=(0, 2))
    assert states.keys() == {("mean", 0), ("mean", 2), ("last", 0), ("last", 2)}
    assert all(queries.shape == (3, SIZES["hidden_size"]) for queries in states.values())
    assert torch.equal(states["last", 2][0], states["last", 2][2])
    assert not torch.allclose(states["last", 2][0], states["last", 2][1])
    assert torch.allclose(states["last", 0][0], states["last", 0][1])  # the last token of the template


def test_the_table_names_queries_and_bounds() -> None:
    routing = [
        {"pooling": "mean", "layer": 0, "shares": {"2": [0.16, 0.15], "14": [0.5, 0.351]}},
        {"pooling": "last", "layer": 26, "shares": {"2": [0.166, 0.16], "14": [0.67, 0.671]}},
    ]
    text = routing_table(Study(BASE, {}, routing=routing))
    assert "| mean of the embeddings | 0.16 / 0.15 | 0.50 / 0.35 |" in text
    assert "| last token, layer 26 | 0.17 / 0.16 | 0.67 / 0.67 |" in text
    assert text.endswith("| the most that is possible | 0.17 | 1.00 |")
    assert routing_table(Study(BASE, {})) == ""
