"""The remedies for collapse: each does what it says, is saved with the adapter, and is off in the paper's form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from peft_listen import ListenConfig, Selection, Selector, register_selector
from peft_listen.tuners.listen import selectors
from peft_listen.tuners.listen.exploration import exploration_noise
from peft_listen.tuners.listen.pool import reseed_dead_prompts
from peft_listen.tuners.listen.query import drop_positions, mean_query
from peft_listen.tuners.listen.step_random import step_generator


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
FIXED = {"stochastic_prompt_length": False}


def supervised(input_ids, prompt=3):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < prompt, -100)


def train_step(model, input_ids, step):
    model.base_model.begin_step(step)
    loss = model(input_ids=input_ids, labels=supervised(input_ids)).loss
    loss.backward()
    return loss


def reload(model, build, tmp_path):
    model.save_pretrained(tmp_path)
    return PeftModel.from_pretrained(build(), tmp_path).eval()


# ---------------------------------------------------------------------------------------------------- ignored tokens


def test_ignored_tokens_are_not_in_the_query(build, attach):
    model = attach(build(), query_ignored_token_ids=[57, 58])
    embed = model.get_input_embeddings()
    model(input_ids=torch.tensor([[57, 5, 9, 58, 30, 57]]))
    expected = embed(torch.tensor([5, 9, 30])).mean(dim=0)
    torch.testing.assert_close(model.base_model.last_selection.query[0], expected)


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static", "disable_compile": True}])
def test_ignored_tokens_are_found_in_embeddings_and_in_generation(settings, build, attach):
    model = attach(build(), query_ignored_token_ids=[57, 58])
    input_ids = torch.tensor([[57, 5, 9, 58, 30, 57]])
    model(input_ids=input_ids)
    expected = model.base_model.last_selection.query
    model(inputs_embeds=model.get_input_embeddings()(input_ids))
    assert torch.equal(model.base_model.last_selection.query, expected)
    model.generate(input_ids, max_new_tokens=2, do_sample=False, **settings)
    assert torch.equal(model.base_model.last_selection.query, expected)


def test_a_row_of_ignored_tokens_alone_keeps_them(build, attach):
    model = attach(build(), query_ignored_token_ids=[57, 58])
    input_ids = torch.tensor([[57, 58, 57], [57, 5, 58]])
    model(input_ids=input_ids)
    embeds = model.get_input_embeddings()(input_ids)
    expected = torch.stack([embeds[0].mean(dim=0), embeds[1, 1]])
    torch.testing.assert_close(model.base_model.last_selection.query, expected)


# ------------------------------------------------------------------------------------------------ means by modality


@pytest.mark.parametrize("settings", [None, {}, {"cache_implementation": "static", "disable_compile": True}])
def test_images_and_text_are_averaged_apart(settings, build, attach):
    base = build("llava")
    model = attach(base, query_pooling="modality_mean")
    input_ids = torch.tensor([[5, 60, 60, 60, 60, 7, 8]])
    pixel_values = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    if settings is None:
        model(input_ids=input_ids, pixel_values=pixel_values)
    else:
        model.generate(
            input_ids=input_ids, pixel_values=pixel_values, max_new_tokens=2, do_sample=False, num_beams=2, **settings
        )
    image = base.get_image_features(pixel_values).pooler_output[0].mean(dim=0)
    text = base.get_input_embeddings()(torch.tensor([5, 7, 8])).mean(dim=0)
    expected = (image * text.norm() / image.norm() + text) / 2
    torch.testing.assert_close(model.base_model.last_selection.query[0], expected, **CLOSE)


def test_the_length_of_a_modality_changes_nothing():
    embeds = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.ones(2, 7, dtype=torch.bool)
    audio = torch.arange(7).expand(2, -1) < 4
    louder = torch.where(audio.unsqueeze(-1), 30 * embeds, embeds)
    torch.testing.assert_close(mean_query(louder, positions, audio), mean_query(embeds, positions, audio))
    assert not torch.allclose(mean_query(louder, positions), mean_query(embeds, positions))
    # A row of audio alone, and one of text alone, have a plain mean.
    for alone in (audio, ~audio):
        torch.testing.assert_close(mean_query(embeds, positions & alone, audio), mean_query(embeds, alone))


def test_a_row_of_text_alone_has_one_mean(build, attach, tokens):
    base = build("llava")
    model = attach(base, query_pooling="modality_mean")
    model(input_ids=tokens())
    expected = base.get_input_embeddings()(tokens()).mean(dim=1)
    torch.testing.assert_close(model.base_model.last_selection.query, expected)


# --------------------------------------------------------------------------------------------------- shared prompts


@pytest.mark.parametrize("side", ["left", "right"])
def test_shared_prompts_stand_before_the_chosen_ones(side, build, attach, by_hand, padded, tokens):
    base = build()
    model = attach(base, num_shared_prompts=2)
    rows = [tokens(1, 4, seed=1)[0], tokens(1, 7, seed=2)[0]]
    batch = padded(rows, side)
    logits = model(**batch).logits
    sequences = None
    if side == "left":
        sequences = model.generate(**batch, max_new_tokens=3, do_sample=False)
    reference = by_hand(base, model)
    shared = model.base_model.layer.listen_shared_values["default"]
    for i, row in enumerate(rows):
        prompts = torch.cat([shared[None], reference.prompts(row[None])], dim=1)
        expected = reference(row[None], prompts).logits[0, 2 + 4 :]
        torch.testing.assert_close(logits[i][batch["attention_mask"][i].bool()], expected, **CLOSE)
        if sequences is not None:
            continued = row[None]
            for _ in range(3):
                next_token = reference.next_logits(continued, prompts[0]).argmax(dim=-1, keepdim=True)
                continued = torch.cat([continued, next_token], dim=1)
            assert torch.equal(sequences[i][-len(row) - 3 :], continued[0])


def test_shared_prompts_are_trained_saved_and_counted(build, attach, tokens, tmp_path):
    model = attach(build(), num_shared_prompts=3)
    assert model.get_nb_trainable_parameters()[0] == (2 * 12 + 3) * 32
    train_step(model.train(), tokens(), 0)
    assert model.base_model.layer.listen_shared_values["default"].grad.abs().min() > 0
    loaded = reload(model.eval(), build, tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_added_shared_prompts_begin_as_one_soft_prompt_of_the_same_length(build, attach, by_hand, tokens):
    base = build()
    settings = {"num_shared_prompts": 4, "shared_prompt_mode": "add", "prompt_length": 3, "max_train_prompt_length": 4}
    model = attach(base, **settings, init_weights="vocab")
    layer = model.base_model.layer
    shared, values = layer.listen_shared_values["default"], layer.listen_values["default"]
    assert not values.any() and shared.abs().max() > 0
    ids = tokens(2, 5)
    expected = by_hand(base, model)(ids, shared[:3].expand(2, -1, -1)).logits[:, 3:]
    torch.testing.assert_close(model(ids).logits, expected, **CLOSE)
    with torch.no_grad():
        values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
    logits = model(ids).logits
    prompts = values[model.base_model.last_selection.indices] + shared[:3]
    torch.testing.assert_close(logits, by_hand(base, model)(ids, prompts).logits[:, 3:], **CLOSE)
    model.train()
    train_step(model, ids, 0)
    assert shared.grad.any() and values.grad.any()


def test_prompts_beyond_the_added_ones_are_the_values_alone(build, attach, by_hand, tokens):
    base = build()
    settings = {"num_shared_prompts": 2, "shared_prompt_mode": "add", "prompt_length": 2}
    model = attach(base, **settings, stochastic_prompt_length=False)
    layer = model.base_model.layer
    ids = tokens(1, 5)
    with model.base_model.use_prompt_length(3):
        logits = model(ids).logits
        prompts = layer.listen_values["default"][model.base_model.last_selection.indices].clone()
    prompts[:, :2] += layer.listen_shared_values["default"]
    torch.testing.assert_close(logits, by_hand(base, model)(ids, prompts).logits[:, 3:], **CLOSE)


# ---------------------------------------------------------------------------------------------------- balanced usage


def test_usage_follows_the_choices_of_the_steps(build, attach, tokens):
    model = attach(build(), usage_balance=0.5, **FIXED).train()
    usage = model.base_model.layer.listen_usage["default"]
    assert torch.equal(usage, torch.ones(12))
    train_step(model, tokens(4), 0)
    chosen = model.base_model.last_selection.indices
    model.base_model.begin_step(1)
    counts = torch.bincount(chosen.flatten(), minlength=12).float()
    torch.testing.assert_close(usage, torch.lerp(torch.ones(12), counts * 12 / counts.sum(), 0.05))
    torch.testing.assert_close(usage.mean(), torch.tensor(1.0))


def test_what_is_chosen_too_often_is_chosen_less(build, attach, tokens):
    model = attach(build(), usage_balance=0.3, prompt_length=12)
    layer = model.base_model.layer
    model(tokens(1))
    record = model.base_model.last_selection
    usage = torch.linspace(0.5, 2.5, 12)
    layer.listen_usage["default"].copy_(usage)
    model(tokens(1))
    cosines = torch.empty(12).scatter(0, record.indices[0], record.scores[0])
    expected = (cosines + 0.3 * (1 - usage).clamp_min(-1)).argsort(descending=True)
    assert torch.equal(model.base_model.last_selection.indices[0], expected)
    # The scores stay the selector's own.
    torch.testing.assert_close(model.base_model.last_selection.scores[0], cosines[expected])


def test_running_statistics_are_saved_with_the_adapter(build, attach, tokens, tmp_path):
    settings = {"usage_balance": 0.5, "center_queries": True, "standardize_queries": True}
    model = attach(build(), **settings).train()
    for step in range(3):
        train_step(model, tokens(4, seed=step), step)
    model.base_model.begin_step(None)
    loaded = reload(model.eval(), build, tmp_path)
    for name in ("listen_query_mean", "listen_query_variance", "listen_usage"):
        saved = getattr(model.base_model.layer, name)["default"]
        assert saved.std() > 0
        assert torch.equal(getattr(loaded.base_model.layer, name)["default"], saved)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("settings", [{"usage_balance": 0.1}, {"exploration": 0.1, "exploration_steps": 5}])
def test_a_selector_that_takes_no_bias_is_refused(settings, build, attach, monkeypatch):
    monkeypatch.setattr(selectors, "_SELECTORS", dict(selectors._SELECTORS))

    @register_selector("first")
    class First(Selector):
        def select(self, query, keys, k):
            indices = torch.arange(k).expand(len(query), -1)
            return Selection(indices=indices, scores=torch.zeros(indices.shape))

    attach(build(), selector="first")
    with pytest.raises(ValueError, match=r"The selector 'first' takes no `bias`"):
        attach(build(), selector="first", **settings)


# ---------------------------------------------------------------------------------------------------------- reseeding


def test_dead_prompts_go_to_lonely_queries_with_the_value_of_their_neighbour():
    keys = torch.eye(4)
    values = torch.arange(4.0).unsqueeze(-1).expand(4, 4).clone()
    usage = torch.tensor([2.0, 0.01, 1.9, 0.05])
    queries = torch.tensor([[1.0, 0.1, 0.0, 0.0], [0.0, 0.0, 0.5, -0.9], [0.9, 0.0, 0.0, 0.0]])
    moved = reseed_dead_prompts(keys, values, usage, queries)
    assert moved.tolist() == [1, 3]
    assert torch.equal(keys[1], queries[1])  # the farthest from the living keys 0 and 2
    assert torch.equal(values[1], torch.full((4,), 2.0))
    assert torch.equal(keys[3], queries[0])
    assert torch.equal(values[3], torch.zeros(4))
    assert torch.equal(keys[[0, 2]], torch.eye(4)[[0, 2]])
    assert usage.tolist() == pytest.approx([2.0, 1.0, 1.9, 1.0])


def test_a_pool_that_is_all_dead_or_all_alive_stays():
    for level in (0.0, 1.0):
        keys, values = torch.eye(3), torch.ones(3, 3)
        assert len(reseed_dead_prompts(keys, values, torch.full((3,), level), torch.randn(2, 3))) == 0
        assert torch.equal(keys, torch.eye(3))


def test_prompts_are_reseeded_after_the_named_steps_only(build, attach, tokens):
    model = attach(build(), reseed_every=2, prompt_length=1, **FIXED).train()
    layer = model.base_model.layer
    keys = layer.listen_keys["default"]
    layer.listen_usage["default"][5:] = 0.0
    before = keys.detach().clone()
    train_step(model, tokens(3), 0)
    model.base_model.begin_step(1)
    assert torch.equal(keys, before)
    train_step(model, tokens(3), 1)
    model.base_model.begin_step(2)
    changed = (keys != before).any(dim=-1).nonzero().flatten()
    assert 0 < len(changed) <= 3
    assert changed.min() >= 5
    assert keys.requires_grad


def test_moving_prompts_does_not_count_as_an_optimizer_step(build, attach, tokens):
    model = attach(build(), reseed_every=1, prompt_length=1, **FIXED).train()
    layer = model.base_model.layer
    layer.listen_usage["default"][5:] = 0.0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):  # counted by the tuner itself
        for _ in range(2):
            model(input_ids=tokens(3), labels=supervised(tokens(3))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert int(layer.listen_step["default"]) == 2


# --------------------------------------------------------------------------------------------------------- exploration


def test_exploration_is_a_pure_function_that_ends():
    config = ListenConfig(pool_size=300, exploration=0.5, exploration_steps=10)
    first = exploration_noise(config, 0, 0, 40)
    assert first.shape == (40, 300)
    assert float(first.std()) == pytest.approx(0.5, rel=0.05)
    assert float(exploration_noise(config, 5, 0, 40).std()) == pytest.approx(0.25, rel=0.05)
    assert torch.equal(exploration_noise(config, 0, 0, 40), first)
    for other in ((1, 0, 40), (0, 1, 40)):
        assert not torch.equal(exploration_noise(config, *other), first)
    assert not torch.equal(exploration_noise(config, 0, 0, 40, rank=1), first)
    assert exploration_noise(config, 10, 0, 40) is None


def test_exploration_changes_choices_in_training_alone(build, attach, tokens):
    model = attach(build(), exploration=5.0, exploration_steps=100, **FIXED)
    plain = attach(build(), **FIXED)
    model(tokens(4)), plain(tokens(4))
    expected = plain.base_model.last_selection.indices
    assert torch.equal(model.base_model.last_selection.indices, expected)
    train_step(model.train(), tokens(4), 0)
    assert not torch.equal(model.base_model.last_selection.indices, expected)
    train_step(model, tokens(4), 100)
    plain(input_ids=tokens(4), labels=supervised(tokens(4)))
    assert torch.equal(model.base_model.last_selection.indices, plain.base_model.last_selection.indices)


# ------------------------------------------------------------------------------------------------------- query dropout


@given(seed=st.integers(0, 2**16), share=st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_dropped_positions_are_of_the_prompt_and_never_all_of_it(seed, share):
    positions = torch.rand(6, 9, generator=torch.Generator().manual_seed(seed)) < 0.5
    kept = drop_positions(positions, share, torch.Generator().manual_seed(seed))
    assert not (kept & ~positions).any()
    assert torch.equal(kept.any(dim=-1), positions.any(dim=-1))
    if share == 0:
        assert torch.equal(kept, positions)


def test_the_share_of_dropped_positions_is_the_one_that_is_asked_for():
    positions = torch.ones(100, 100, dtype=torch.bool)
    kept = drop_positions(positions, 0.3, torch.Generator().manual_seed(0))
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.01)


def test_the_query_of_a_training_step_is_the_mean_of_what_remains(build, attach, tokens):
    model = attach(build(), query_dropout=0.5, seed=3, **FIXED).train()
    plain = attach(build(), **FIXED)
    train_step(model, tokens(4), 7)
    positions = torch.zeros(4, 6, dtype=torch.bool)
    positions[:, :3] = True
    kept = drop_positions(positions, 0.5, step_generator("query dropout", 3, 7, 0))
    assert not torch.equal(kept, positions)
    expected = mean_query(model.get_input_embeddings()(tokens(4)), kept)
    torch.testing.assert_close(model.base_model.last_selection.query, expected, **CLOSE)
    train_step(model, tokens(4), 7)  # the second micro-batch of that step
    assert not torch.allclose(model.base_model.last_selection.query, expected)
    model.eval()(tokens(4)), plain(tokens(4))
    torch.testing.assert_close(model.base_model.last_selection.query, plain.base_model.last_selection.query, **CLOSE)


# ------------------------------------------------------------------------------------------------ standardised queries


def test_queries_are_standardised_by_those_of_earlier_steps(build, attach, tokens):
    model = attach(build(), center_queries=True, standardize_queries=True, query_mean_momentum=0.0, **FIXED).train()
    embed = model.get_input_embeddings()
    batches = [tokens(16, seed=seed) for seed in range(3)]
    queries = [embed(batch[:, :3]).mean(dim=1).detach() for batch in batches]
    for step in range(2):
        train_step(model, batches[step], step)
    model.base_model.begin_step(2)
    variance = (queries[1] - queries[0].mean(dim=0)).square().mean(dim=0)
    scale = (variance.mean() / (variance + 1e-3 * variance.mean())).sqrt()
    expected = (queries[2] - queries[1].mean(dim=0)) * scale
    torch.testing.assert_close(model.base_model.layer.matched_query("default", queries[2]), expected, **CLOSE)


# ---------------------------------------------------------------------------------------------------- the paper's form


def test_the_papers_form_turns_every_remedy_off(build, attach, tokens):
    remedies = {
        "center_queries": True,
        "standardize_queries": True,
        "query_pooling": "modality_mean",
        "query_ignored_token_ids": [5],
        "query_dropout": 0.5,
        "num_shared_prompts": 2,
        "usage_balance": 0.5,
        "reseed_every": 3,
        "exploration": 0.1,
        "exploration_steps": 3,
    }
    model = attach(build(), **remedies, paper_form=True).train()
    train_step(model, tokens(), 0)
    model.base_model.begin_step(None)
    layer = model.base_model.layer
    model.eval()(tokens())
    query = model.get_input_embeddings()(tokens()).mean(dim=1)
    torch.testing.assert_close(model.base_model.last_selection.query, query)
    assert torch.equal(layer.matched_query("default", query), query)
    assert len(layer.listen_shared_values) == len(layer.listen_usage) == len(layer.listen_query_variance) == 0
    assert model.peft_config["default"].key_loss_reduction == "sum"
