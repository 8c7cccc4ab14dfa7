"""Number of prompts in training and inference."""

from collections import Counter

import pytest
import torch

from peft_listen import ListenConfig
from peft_listen.tuners.listen.prompt_length import draw_prompt_length, train_prompt_length


def test_the_draw_is_a_pure_function_of_seed_and_step():
    drawn = [draw_prompt_length(3, step, 400) for step in range(20)]
    torch.manual_seed(0)
    assert [draw_prompt_length(3, step, 400) for step in reversed(range(20))] == drawn[::-1]
    assert [draw_prompt_length(4, step, 400) for step in range(20)] != drawn


def test_the_draw_is_the_same_in_all_processes_platforms_and_versions():
    assert [draw_prompt_length(0, step, 400) for step in range(6)] == [300, 97, 244, 165, 345, 135]


def test_all_lengths_are_equally_likely():
    counts = Counter(draw_prompt_length(0, step, 8) for step in range(8000))
    assert sorted(counts) == list(range(1, 9))
    assert all(850 < count < 1150 for count in counts.values())
    correlation = torch.corrcoef(
        torch.tensor([[draw_prompt_length(0, s + d, 400) for s in range(2000)] for d in (0, 1)])
    )
    assert abs(float(correlation[0, 1])) < 0.08  # neighboring steps are independent


def test_lengths_are_drawn_unless_they_are_fixed():
    config = ListenConfig(pool_size=50, prompt_length=7)
    assert len({train_prompt_length(config, step) for step in range(30)}) > 10
    fixed = ListenConfig(pool_size=50, prompt_length=7, stochastic_prompt_length=False)
    assert {train_prompt_length(fixed, step) for step in range(30)} == {7}


def test_the_draw_ends_at_the_maximum():
    config = ListenConfig(pool_size=50, prompt_length=7, max_train_prompt_length=3)
    assert {train_prompt_length(config, step) for step in range(60)} == {1, 2, 3}


@pytest.mark.parametrize("value", [0, True, 2.0, None])
def test_a_length_that_is_not_a_positive_integer_raises(value, build, attach):
    with pytest.raises(ValueError, match=f"`prompt_length` must be an integer of at least 1, got {value}"):
        attach(build()).set_prompt_length(value)


def test_more_prompts_than_in_the_pool_raise_with_both_numbers(build, attach):
    model = attach(build())
    message = r"`prompt_length`=13 exceeds the size of the pool \(`pool_size`=12\)"
    with pytest.raises(ValueError, match=message):
        model.set_prompt_length(13)
    with pytest.raises(ValueError, match=message), model.use_prompt_length(13):
        pass


def test_the_length_can_be_changed_at_any_time(build, attach, tokens):
    model = attach(build())
    for k in (1, 12, 5):
        model.base_model.set_prompt_length(k)
        model(tokens())
        assert model.base_model.last_selection.indices.shape == (2, k)
        assert model.peft_config["default"].prompt_length == k
    with pytest.raises(ValueError, match=r"`prompt_length`=13.*`pool_size`=12"):
        model.set_prompt_length(13)
    with pytest.raises(ValueError, match=r"no LISTEN adapter 'other'; there are \['default'\]"):
        model.set_prompt_length(3, "other")


def test_the_length_can_be_changed_in_a_with_block(build, attach, tokens):
    model = attach(build())
    with pytest.raises(RuntimeError), model.use_prompt_length(2):
        model(tokens())
        assert model.last_selection.indices.shape == (2, 2)
        raise RuntimeError
    model(tokens())
    assert model.last_selection.indices.shape == (2, 4)
