"""Number of prompts in training and inference."""

import warnings
from collections import Counter

import pytest
import torch
from peft import PeftModel, get_peft_model

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


def test_lengths_are_those_of_inference_unless_they_are_drawn():
    fixed = ListenConfig(pool_size=50, prompt_length=7)
    assert {train_prompt_length(fixed, step) for step in range(30)} == {7}
    drawn = ListenConfig(pool_size=50, prompt_length=7, stochastic_prompt_length=True)
    assert {train_prompt_length(drawn, step) for step in range(200)} == set(range(1, 15))
    small = ListenConfig(pool_size=9, prompt_length=7, stochastic_prompt_length=True)
    assert {train_prompt_length(small, step) for step in range(200)} == set(range(1, 10))


def test_the_paper_draws_from_the_whole_pool():
    config = ListenConfig.paper(pool_size=50)
    assert {train_prompt_length(config, step) for step in range(1000)} == set(range(1, 51))
    assert {train_prompt_length(ListenConfig.paper(max_train_prompt_length=2), step) for step in range(60)} == {1, 2}
    fixed = ListenConfig.paper(stochastic_prompt_length=False)
    assert {train_prompt_length(fixed, step) for step in range(60)} == {10}


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
    with pytest.raises(ValueError, match=r"no LiSTEN adapter 'other'; there are \['default'\]"):
        model.set_prompt_length(3, "other")


def test_the_length_can_be_changed_in_a_with_block(build, attach, tokens):
    model = attach(build())
    with pytest.raises(RuntimeError), model.use_prompt_length(2):
        model(tokens())
        assert model.last_selection.indices.shape == (2, 2)
        raise RuntimeError
    model(tokens())
    assert model.last_selection.indices.shape == (2, 4)


# ------------------------------------------------------------------------- training and inference with other lengths


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        (
            {"stochastic_prompt_length": True, "max_train_prompt_length": 12},
            r"1 to 12 .*6.5 on average.*`prompt_length`=2",
        ),
        ({"max_train_prompt_length": 9}, r"1 to 9 .*5 on average.*`prompt_length`=2.*from 2 to 8"),
        ({"max_train_prompt_length": 1}, r"1 to 1 .*`prompt_length`=2"),
    ],
)
def test_lengths_that_differ_much_give_one_warning_with_both_numbers(settings, lengths, build):
    config = ListenConfig(pool_size=12, prompt_length=2, **settings)
    with pytest.warns(UserWarning, match=lengths) as caught:
        get_peft_model(build(), config)
    assert len([one for one in caught if "prompt_length" in str(one.message)]) == 1


def test_the_form_of_the_paper_warns_of_its_lengths(build):
    with pytest.warns(UserWarning, match=r"1 to 400 .*200.5 on average.*`prompt_length`=10"):
        get_peft_model(build(), ListenConfig.paper())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stochastic_prompt_length": True},
        {"max_train_prompt_length": 8},
        {"max_train_prompt_length": 12, "inference_mode": True},
    ],
)
def test_lengths_that_agree_and_adapters_for_inference_give_no_warning(settings, build):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=2, **settings))


def trained(model, tokens):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = tokens()
    labels[:, :3] = -100
    model.train()(input_ids=tokens(), labels=labels).loss.backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    ("settings", "allowed", "refused", "trained_with"),
    [
        ({}, [4], [1, 3, 5], "4 prompts"),
        ({"max_train_prompt_length": 6}, [1, 6, 4], [7, 12], "1 to 6 prompts"),
    ],
)
def test_lengths_that_were_not_trained_give_a_warning(
    settings, allowed, refused, trained_with, build, tokens, tmp_path
):
    model = get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=4, **settings))
    model = trained(model, tokens)
    model.save_pretrained(tmp_path)
    for adapter in (model, PeftModel.from_pretrained(build(), tmp_path)):
        for length in refused:
            with pytest.warns(UserWarning, match=f"trained with {trained_with}, and `prompt_length` is now {length}"):
                adapter.set_prompt_length(length)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for length in allowed:
                adapter.set_prompt_length(length)


def test_a_length_that_is_set_before_training_is_trained(build, tokens):
    model = get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=4, num_shared_prompts=6))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.set_prompt_length(6)
        trained(model, tokens).set_prompt_length(6)
    assert model.last_selection.indices.shape == (2, 6)
    with pytest.warns(UserWarning, match="trained with 6 prompts, and `prompt_length` is now 4"):
        model.set_prompt_length(4)


def test_an_adapter_with_more_prompts_than_shared_ones_can_be_saved_and_loaded(build, tokens, tmp_path):
    model = trained(get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=4)), tokens)
    with pytest.warns(UserWarning, match="trained with 4 prompts"):
        model.set_prompt_length(9)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert loaded.last_selection.indices.shape == (2, 9)


def test_a_length_that_is_set_before_training_is_checked_as_by_the_constructor(build):
    model = get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=4))
    with pytest.raises(ValueError, match=r"`num_shared_prompts`=4 is too small .*`prompt_length`=6 selected ones"):
        model.set_prompt_length(6)
    config = model.peft_config["default"]
    assert (config.prompt_length, config.max_train_prompt_length) == (4, 4)
    model = get_peft_model(build(), ListenConfig(pool_size=12, prompt_length=4, max_train_prompt_length=8))
    with pytest.warns(UserWarning, match=r"1 to 8 .*4.5 on average.*`prompt_length`=1"):
        model.set_prompt_length(1)


def test_without_a_draw_the_trained_number_is_the_fixed_one(build, tokens):
    settings = {"prompt_length": 3, "max_train_prompt_length": 6, "stochastic_prompt_length": False}
    model = trained(get_peft_model(build(), ListenConfig(pool_size=12, **settings)), tokens)
    with pytest.warns(UserWarning, match="trained with 3 prompts, and `prompt_length` is now 6"):
        model.set_prompt_length(6)
