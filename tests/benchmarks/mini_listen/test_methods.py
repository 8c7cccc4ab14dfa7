from typing import Any

import pytest
import torch

from benchmarks.mini_listen.controls import RouteCollator
from benchmarks.mini_listen.experiments import GROUPED
from benchmarks.mini_listen.methods import METHODS
from benchmarks.mini_listen.settings import TASKS
from benchmarks.mini_listen.training import rates_of_the_last_layer
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.training import AudioListenCollator
from peft_listen.tuners.listen import find_listen_layer


@pytest.fixture
def processor(parts: dict[str, str]) -> AudioListenProcessor:
    return AudioListenProcessor.from_sub_models_pretrained(**parts)


@pytest.fixture
def base(parts: dict[str, str], processor: AudioListenProcessor) -> AudioListenForCausalLM:
    qformer = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    return AudioListenForCausalLM.from_sub_models_pretrained(
        **parts, tokenizer=processor.tokenizer, qformer_config=qformer
    )


def test_with_the_task_known_only_the_prompts_tell_two_rows_apart(
    base: AudioListenForCausalLM, processor: AudioListenProcessor, clips: list[str]
) -> None:
    adapted = METHODS["routed"](base, processor, 0, rule="task", prompt_length=2, prompts_per_position=len(TASKS))
    model, route = adapted.model.eval(), adapted.route
    assert route is not None
    collator = RouteCollator(AudioListenCollator(processor), route)
    rows = [
        {"audio": clips[0], "instruction": "What?", "answer": "a dog", "task": task} for task in ("asr", "acap", "asr")
    ]
    batch = collator(rows)
    pool = find_listen_layer(model).pool_of()
    with torch.no_grad():
        pool.values[11] = 5.0  # of "acap", in the first group
        logits = model(**batch).logits
    assert torch.equal(logits[0], logits[2])
    assert not torch.allclose(logits[0], logits[1])

    model.train()
    model(**batch).loss.backward()
    assert pool.values.grad.abs().sum(dim=-1).nonzero().flatten().tolist() == [0, 11, 12, 23]
    assert pool.keys.grad is None


@pytest.mark.parametrize("value_layers", [None, [1]])
def test_every_input_gets_the_same_soft_prompt_in_the_same_order(
    base: AudioListenForCausalLM, processor: AudioListenProcessor, clips: list[str], value_layers: list[int] | None
) -> None:
    adapted = METHODS["soft_prompt"](base, processor, 0, prompt_length=3, value_layers=value_layers)
    collator = AudioListenCollator(processor)
    rows = [{"audio": clip, "instruction": f"What is {clip}?", "answer": "a dog"} for clip in clips[:2]]
    model = adapted.model.train()
    model(**collator(rows)).loss.backward()
    assert model.last_selection.indices.tolist() == [[0, 1, 2], [0, 1, 2]]
    layers = len(value_layers or ())
    assert adapted.num_adapter_parameters() == (3 + 3 * layers) * 32
    if layers:
        # The first place, which decoders use as an attention sink, has no deep value.
        assert find_listen_layer(model).pool_of().deep_values.grad[0].abs().sum(dim=-1).bool().tolist() == [
            False,
            True,
            True,
        ]


def test_the_compared_form_has_as_many_parameters_as_its_options_say(
    base: AudioListenForCausalLM, processor: AudioListenProcessor
) -> None:
    adapted = METHODS["listen"](base, processor, 0, **{**GROUPED, "value_layers": [0, 1]})
    pool, shared = GROUPED["pool_size"], GROUPED["num_shared_prompts"]
    assert adapted.num_adapter_parameters() == (2 * pool + shared + 2 * (pool + shared)) * 32
    assert adapted.value_rate == 0.2


@pytest.mark.parametrize(
    ("method", "options"),
    [("projector", {}), ("lora", {"rank": 2}), ("soft_prompt", {"prompt_length": 3}), ("listen", GROUPED)],
)
def test_the_last_layer_of_the_projector_has_a_lower_rate_with_every_method(
    base: AudioListenForCausalLM, processor: AudioListenProcessor, method: str, options: dict[str, Any]
) -> None:
    model = METHODS[method](base, processor, 0, **options).model
    rates = rates_of_the_last_layer(model, 1e-3)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert sorted(name.rpartition("linear.")[2] for name in rates) == ["bias", "weight"]
    assert rates.keys() <= trained
    assert list(rates.values()) == pytest.approx([2e-4, 2e-4])
