import pickle
from types import SimpleNamespace

import pytest
import torch

from benchmarks.mini_listen.methods import METHODS
from benchmarks.mini_listen.routing import CHOICES, RoutedCollator, RoutedSelector, Router
from benchmarks.mini_listen.settings import TASKS
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.training import AudioListenCollator
from peft_listen.tuners.listen import find_listen_layer


def test_the_task_decides_at_every_position() -> None:
    router = Router("task", num_groups=3, size=len(TASKS))
    choices = router.choices([{"task": "asr"}, {"task": "acap"}])
    assert choices.tolist() == [[0, 0, 0], [11, 11, 11]]


def test_the_random_rule_is_fixed_for_a_clip_and_differs_between_positions_and_clips() -> None:
    router = Router("random", num_groups=200, size=2)
    rows = [{"audio": f"/here/audio/test/speech-{index:04d}.wav", "task": "asr"} for index in range(20)]
    choices = router.choices(rows)
    assert 0.45 < choices.float().mean() < 0.55
    assert len({tuple(row) for row in choices.tolist()}) == 20
    # On another machine, and for another task about the same clip.
    moved = [{"audio": row["audio"].replace("/here/", "/there/"), "task": "er"} for row in rows]
    assert torch.equal(router.choices(moved), choices)


def test_one_prompt_of_each_group_is_selected() -> None:
    selector = RoutedSelector(num_groups=3)
    selector.choices = torch.tensor([[0, 1, 0], [1, 0, 1]])
    query, keys = torch.zeros(2, 4), torch.zeros(6, 4)
    assert selector.select(query, keys, 3).indices.tolist() == [[0, 3, 4], [1, 2, 5]]
    assert selector.select(query, keys, 2).indices.tolist() == [[0, 3], [1, 2]]
    with pytest.raises(ValueError, match="k=4 prompts of 3 groups"):
        selector.select(query, keys, 4)
    with pytest.raises(ValueError, match="the choices of 3 rows and has those of 2"):
        selector.select(torch.zeros(3, 4), keys, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("best", 2, 2), "no rule 'best', expected 'task' or 'random'"), (("task", 2, 6), "each of 12 tasks .*, got 6")],
)
def test_impossible_rules_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Router(*arguments)


def test_a_routed_collator_can_be_sent_to_a_data_loader_worker() -> None:
    collator = RoutedCollator(SimpleNamespace(answer_end="end"), Router("random", 2, 2))
    copy = pickle.loads(pickle.dumps(collator))
    assert copy.answer_end == "end"
    with pytest.raises(AttributeError):
        _ = copy.other


def test_the_model_uses_the_prompts_of_the_task(parts: dict[str, str], clips: list[str]) -> None:
    processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
    qformer = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    base = AudioListenForCausalLM.from_sub_models_pretrained(
        **parts, tokenizer=processor.tokenizer, qformer_config=qformer
    )
    adapted = METHODS["routed"](base, processor, 0, rule="task", prompt_length=2, prompts_per_position=12)
    model, router = adapted.model.eval(), adapted.router
    collator = RoutedCollator(AudioListenCollator(processor), router)
    rows = [
        {"audio": clips[0], "instruction": "What?", "answer": "a dog", "task": task} for task in ("asr", "acap", "asr")
    ]
    batch = collator(rows)
    pool = find_listen_layer(model).pool_of()
    with torch.no_grad():
        pool.values[11] = 5.0  # of "acap", in the first group
        logits = model(**batch).logits
    # Only the prompt tells the rows apart.
    assert torch.equal(logits[0], logits[2])
    assert not torch.allclose(logits[0], logits[1])
    assert CHOICES not in router.take(batch)

    model.train()
    model(**batch).loss.backward()
    touched = pool.values.grad.abs().sum(dim=-1).nonzero().flatten().tolist()
    assert touched == [0, 11, 12, 23]
    assert pool.keys.grad is None
