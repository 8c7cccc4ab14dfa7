"""Loss and gradients of a training step, and their invariances."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_listen import available_selectors
from peft_listen.tuners.listen.prompt_length import train_prompt_length


CLOSE = {"atol": 1e-6, "rtol": 1e-5}
FIXED = {"stochastic_prompt_length": False}


def supervised(input_ids, prompt=3):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < prompt, -100)


def key_losses(model, input_ids, prompt=3, reduction="mean"):
    """Each row's key loss, by hand, with its graph."""
    layer, losses = model.base_model.layer, []
    keys, mean = layer.listen_pools["default"].keys, layer.listen_pools["default"].query_mean
    k = train_prompt_length(layer.pool_of().config, layer.pool_of().step)
    for row in input_ids:
        query = model.get_input_embeddings()(row[:prompt]).mean(dim=0).detach() - mean
        similarity = torch.nn.functional.cosine_similarity(query[None], keys, dim=-1)
        distances = torch.stack([(query - keys[i]).norm() for i in similarity.topk(k).indices])
        losses.append(distances.mean() if reduction == "mean" else distances.sum())
    return torch.stack(losses)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("center_queries", [False, True])
def test_the_loss_includes_the_key_loss_only_in_training(reduction, center_queries, build, attach, tokens):
    model = attach(build(), **FIXED, key_loss_weight=0.3, key_loss_reduction=reduction, center_queries=center_queries)
    input_ids = tokens(3)
    labels = supervised(input_ids)
    expected = key_losses(model, input_ids, reduction=reduction).mean()
    evaluated = model(input_ids=input_ids, labels=labels).loss
    assert model.base_model.key_loss is None
    trained = model.train()(input_ids=input_ids, labels=labels).loss
    torch.testing.assert_close(model.base_model.key_loss, expected, **CLOSE)
    torch.testing.assert_close(trained, evaluated + 0.3 * expected, **CLOSE)


def test_with_the_number_of_items_rows_are_weighted_by_their_supervised_tokens(build, attach, tokens):
    model = attach(build(), **FIXED, key_loss_weight=0.3)
    input_ids = tokens(2)
    labels = supervised(input_ids)
    labels[1, 3:5] = -100  # three supervised tokens and one
    per_row = torch.cat([key_losses(model, input_ids[:1], 3), key_losses(model, input_ids[1:], 5)])
    evaluated = model(input_ids=input_ids, labels=labels, num_items_in_batch=8).loss
    for num_items in (8, torch.tensor(8)):
        trained = model.train()(input_ids=input_ids, labels=labels, num_items_in_batch=num_items).loss
        torch.testing.assert_close(trained, evaluated + 0.3 * (3 * per_row[0] + per_row[1]) / 8, **CLOSE)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_gradient_of_the_keys_does_not_depend_on_micro_batches(parts, build, attach, tokens):
    model = attach(build(), max_train_prompt_length=6, center_queries=True).train()
    keys = model.base_model.layer.listen_pools["default"].keys
    input_ids = tokens(4)
    labels = supervised(input_ids)
    labels[0, 3:5] = -100  # the rows have different numbers of supervised tokens
    count = (labels[:, 1:] != -100).sum(dim=-1)
    per_row = torch.cat([key_losses(model, input_ids[:1], 5), key_losses(model, input_ids[1:], 3)])
    (expected,) = torch.autograd.grad(0.1 * (per_row * count).sum() / count.sum(), keys)
    for part in zip(input_ids.chunk(parts), labels.chunk(parts), strict=True):
        model(input_ids=part[0], labels=part[1], num_items_in_batch=count.sum()).loss.backward()
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(keys.grad, expected, atol=1e-7, rtol=1e-6)


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("selector", available_selectors())
def test_the_answer_does_not_change_the_selection(selector, data, build, attach, tokens):
    model = attach(build(), **FIXED, selector=selector).train()
    input_ids = tokens(4, 8)
    prompt = data.draw(st.integers(1, 7))
    other = input_ids.clone()
    answer = data.draw(st.lists(st.integers(3, 55), min_size=8 - prompt, max_size=8 - prompt))
    other[:, prompt:] = torch.tensor(answer)
    records = []
    for rows in (input_ids, other):
        model(input_ids=rows, labels=supervised(rows, prompt))
        records.append(model.base_model.last_selection)
    assert torch.equal(records[0].indices, records[1].indices)
    assert torch.equal(records[0].scores, records[1].scores)


def test_shifted_labels_end_the_query_like_labels(build, attach, tokens):
    model = attach(build(), **FIXED).train()
    input_ids = tokens()
    labels = supervised(input_ids)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    expected = model(input_ids=input_ids, labels=labels)
    output = model(input_ids=input_ids, labels=labels, shift_labels=shifted)
    torch.testing.assert_close(output.loss, expected.loss, **CLOSE)
    with_labels = model.base_model.last_selection
    model(input_ids=input_ids, shift_labels=shifted)
    assert torch.equal(model.base_model.last_selection.query, with_labels.query)


def test_a_fully_supervised_row_uses_its_first_token_and_gives_one_warning(build, attach, tokens):
    model = attach(build(), **FIXED).train()
    input_ids = tokens()
    with pytest.warns(UserWarning, match=r"first token of a row is supervised.*set the labels of the prompt to -100"):
        model(input_ids=input_ids, labels=input_ids)
    torch.testing.assert_close(model.base_model.last_selection.query, model.get_input_embeddings()(input_ids[:, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=input_ids, labels=input_ids)


def test_training_without_labels_warns_once(build, attach, tokens):
    model = attach(build(), **FIXED).train()
    with pytest.warns(UserWarning, match=r"in training mode got no `labels`.*`listen_query_mask`"):
        model(input_ids=tokens())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=tokens())
        model(input_ids=tokens(), listen_query_mask=torch.ones(2, 6))


def test_a_custom_loss_can_add_the_key_loss(build, attach, tokens):
    model = attach(build(), **FIXED).train()
    input_ids = tokens()
    logits = model(input_ids=input_ids, listen_query_mask=torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)).logits
    own = torch.nn.functional.cross_entropy(logits[:, 2:-1].flatten(0, 1), input_ids[:, 3:].flatten())
    torch.testing.assert_close(
        own + 0.1 * model.base_model.key_loss, model(input_ids=input_ids, labels=supervised(input_ids)).loss, **CLOSE
    )


def test_keys_are_trained_by_the_key_loss_only_unless_weights_propagate_the_loss(build, attach, tokens):
    input_ids = tokens()
    for selector in available_selectors():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = attach(build(), **FIXED, selector=selector, key_loss_weight=0.0).train()
        model(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
        moved = bool(model.base_model.layer.listen_pools["default"].keys.grad.abs().max() > 0)
        assert moved == (selector in ("attention", "hybrid"))


@pytest.mark.parametrize("selector", available_selectors())
def test_keys_that_are_not_trained_give_a_warning(selector, build, attach):
    base = build()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach(base, selector=selector, key_loss_weight=0.0)
        attach(base, selector=selector, key_loss_weight=0.0, inference_mode=True)
    messages = [str(w.message) for w in caught if "are not trained and keep" in str(w.message)]
    assert len(messages) == (0 if selector in ("attention", "hybrid") else 1)


def test_the_gradient_of_the_key_loss_is_finite_at_distance_zero(build, attach, tokens):
    model = attach(build(), **FIXED).train()
    input_ids = tokens(1)
    layer = model.base_model.layer
    with torch.no_grad():
        layer.listen_pools["default"].keys[5] = model.get_input_embeddings()(input_ids[0, :3]).mean(dim=0)
    model(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
    assert model.base_model.last_selection.indices[0, 0] == 5
    assert layer.listen_pools["default"].keys.grad.isfinite().all()
    assert layer.listen_pools["default"].values.grad.isfinite().all()


def test_the_gradient_of_the_key_loss_stops_at_the_query(build, attach, tokens):
    model = attach(build(), **FIXED).train()
    embeds = model.get_input_embeddings()(tokens()).detach().requires_grad_()
    model(inputs_embeds=embeds, listen_query_mask=torch.ones(2, 6))
    model.base_model.key_loss.backward()
    assert embeds.grad is None
    assert model.base_model.layer.pool_of().keys.grad.abs().max() > 0


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("input_require_grads", [False, True])
def test_gradient_checkpointing_does_not_change_gradients(
    architecture, use_reentrant, input_require_grads, build, attach, tokens
):
    model = attach(build(architecture), max_train_prompt_length=6).train()
    input_ids = tokens()
    layer = model.base_model.layer

    def gradients():
        model.zero_grad()
        model(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
        return [parameter.grad.clone() for parameter in layer.pool_of().parameters()]

    expected = gradients()
    if input_require_grads:
        model.enable_input_require_grads()
    settings = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    for checkpointed, plain in zip(gradients(), expected, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(checkpointed, plain, **CLOSE)


def test_the_prompt_length_is_constant_within_a_step_and_drawn_for_each_step(build, attach, tokens):
    model = attach(build()).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    input_ids = tokens()
    lengths = []
    for _ in range(8):
        within = []
        for part in input_ids.chunk(2):  # two micro-batches
            model(input_ids=part, labels=supervised(part)).loss.backward()
            within.append(model.base_model.last_selection.indices.shape[1])
        assert len(set(within)) == 1
        lengths.append(within[0])
        optimizer.step()
        optimizer.zero_grad()
        model.eval()(input_ids=input_ids)  # an evaluation in between does not draw a length
        assert model.base_model.last_selection.indices.shape[1] == 4
        model.train()
    config = model.peft_config["default"]
    assert lengths == [train_prompt_length(config, step) for step in range(8)]
    assert len(set(lengths)) > 3


def test_a_given_step_draws_the_same_length_again(build, attach, tokens):
    model = attach(build()).train()
    input_ids = tokens()

    def length(step):
        model.base_model.begin_step(step)
        model(input_ids=input_ids, labels=supervised(input_ids))
        return model.base_model.last_selection.indices.shape[1]

    first = [length(step) for step in range(6)]
    assert [length(step) for step in (4, 2, 5)] == [first[4], first[2], first[5]]


def test_the_query_mean_is_constant_within_a_step_and_updated_after_it(build, attach, tokens):
    model = attach(build(), center_queries=True, query_mean_momentum=0.5).train()
    layer = model.base_model.layer
    embed = model.get_input_embeddings()
    expected = torch.zeros(32)
    for step in range(3):
        model.base_model.begin_step(step)
        torch.testing.assert_close(layer.listen_pools["default"].query_mean, expected, **CLOSE)
        queries = []
        for seed in (0, 1):
            input_ids = tokens(2, seed=10 * step + seed)
            model(input_ids=input_ids, labels=supervised(input_ids))
            queries.append(embed(input_ids[:, :3]).mean(dim=1).detach())
            torch.testing.assert_close(layer.listen_pools["default"].query_mean, expected, **CLOSE)
        rate = max(1 / (step + 1), 0.5)
        expected = torch.lerp(expected, torch.cat(queries).mean(dim=0), rate)


def test_evaluation_does_not_change_the_query_mean(build, attach, tokens):
    model = attach(build(), center_queries=True)
    before = model.base_model.layer.listen_pools["default"].query_mean.clone()
    for step in range(3):
        model.base_model.begin_step(step)
        model(input_ids=tokens(), labels=tokens())
    assert torch.equal(model.base_model.layer.listen_pools["default"].query_mean, before)


def test_training_lowers_the_loss_and_moves_keys_toward_queries(build, attach, tokens):
    torch.manual_seed(0)
    model = attach(build(), **FIXED, key_loss_weight=1.0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    input_ids = tokens(4, 8)
    history = []
    for _ in range(40):
        loss = model(input_ids=input_ids, labels=supervised(input_ids)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append((float(loss), float(model.base_model.key_loss)))
    assert history[-1][0] < 0.7 * history[0][0]
    assert history[-1][1] < 0.7 * history[0][1]
