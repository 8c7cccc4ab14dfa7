"""Rows with NaN or infinite values do not affect other rows or the running statistics."""

import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from peft_listen import ListenConfig, available_selectors
from peft_listen.tuners.listen.key_loss import batch_key_loss


BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def supervised(input_ids, prompt=3):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < prompt, -100)


def step(model, optimizer, embeds, labels):
    loss = model(inputs_embeds=embeds, labels=labels).loss
    loss.nan_to_num(0.0, 0.0, 0.0).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)  # like a training loop that replaces values that are not finite
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("rows", [[1], [0, 1]], ids=["one row", "all rows"])
@pytest.mark.parametrize("value", BAD)
def test_the_statistics_include_only_the_other_rows(value, rows, standardize, build, attach, tokens):
    settings = {"center_queries": True, "standardize_queries": standardize, "stochastic_prompt_length": False}
    model, plain = (attach(build(), **settings).train() for _ in range(2))
    optimizer, other = (torch.optim.SGD(m.base_model.layer.pool_of().parameters(), lr=0.0) for m in (model, plain))
    for number in range(3):
        input_ids = tokens(2, seed=number)
        embeds = model.get_input_embeddings()(input_ids).detach()
        bad = embeds.clone()
        bad[rows, 2, 5] = BAD[value]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step(model, optimizer, bad, supervised(input_ids))
        kept = [row for row in range(2) if row not in rows]
        if kept:
            step(plain, other, embeds[kept], supervised(input_ids[kept]))
    pool, expected = model.base_model.layer.pool_of(), plain.base_model.layer.pool_of()
    torch.testing.assert_close(pool.query_mean, expected.query_mean, atol=1e-6, rtol=1e-5)
    if standardize:
        torch.testing.assert_close(pool.query_variance, expected.query_variance, atol=1e-6, rtol=1e-5)
    assert pool._sums.num_skipped == 3 * len(rows)
    model.eval()(input_ids=tokens()), plain.eval()(input_ids=tokens())
    assert torch.equal(model.base_model.last_selection.indices, plain.base_model.last_selection.indices)


@pytest.mark.cpu_only("on other devices the warning follows later, because reading the count waits for them")
def test_skipped_rows_give_one_warning(build, attach, tokens):
    model = attach(build(), stochastic_prompt_length=False).train()
    embeds = model.get_input_embeddings()(tokens()).detach()
    embeds[1, 2] = torch.nan
    with pytest.warns(UserWarning, match=r"1 rows whose embeddings contain NaN or infinite values were excluded"):
        model(inputs_embeds=embeds, labels=supervised(tokens()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(inputs_embeds=embeds, labels=supervised(tokens()))


@pytest.mark.parametrize("selector", available_selectors())
def test_other_rows_of_the_batch_get_the_same_result_as_alone(selector, build, attach, tokens):
    model = attach(build(), selector=selector)
    embeds = model.get_input_embeddings()(tokens(3)).detach()
    expected = model(inputs_embeds=embeds[[0, 2]]).logits
    embeds[1, 2] = torch.nan
    torch.testing.assert_close(model(inputs_embeds=embeds).logits[[0, 2]], expected, atol=1e-5, rtol=1e-5)


def test_infinite_keys_do_not_reach_rows_that_do_not_select_them(build, attach, tokens):
    model = attach(build()).train()
    pool = model.base_model.layer.pool_of()
    expected = model.eval()(tokens()).logits
    free = next(i for i in range(12) if i not in set(model.last_selection.indices.flatten().tolist()))
    with torch.no_grad():
        pool.keys[free] = torch.tensor(3e38)  # its square, and the sum of all keys, are infinite
    logits = model.train()(input_ids=tokens(), labels=supervised(tokens())).logits
    assert logits.isfinite().all()
    assert expected.isfinite().all()


def test_gradient_scaling_skips_only_the_step_with_bad_rows(build, attach, tokens):
    model = attach(build(), center_queries=True, stochastic_prompt_length=False).train()
    optimizer = torch.optim.AdamW(model.base_model.layer.pool_of().parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    losses = []
    for number in range(4):
        embeds = model.get_input_embeddings()(tokens(seed=number)).detach()
        if number == 1:
            embeds[0, 1] = torch.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = model(inputs_embeds=embeds, labels=supervised(tokens(seed=number))).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(bool(loss.isfinite()))
    assert losses == [True, False, True, True]
    assert model.base_model.layer.pool_of().step == 3


TENSORS = ["keys", "values", "shared_values", "query_mean", "query_variance"]
SETTINGS = {"num_shared_prompts": 2, "center_queries": True, "standardize_queries": True}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", TENSORS)
def test_a_pool_that_is_not_finite_is_not_saved(name, value, build, attach, tmp_path):
    model = attach(build(), **SETTINGS)
    with torch.no_grad():
        getattr(model.base_model.layer.pool_of(), name).view(-1)[3] = BAD[value]
    with pytest.raises(ValueError, match=f"cannot be saved: `{name}` contains NaN or infinite values"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("load", ["PEFT", "transformers"])
@pytest.mark.parametrize("name", TENSORS)
def test_a_pool_that_is_not_finite_is_not_used(name, load, build, attach, tokens, tmp_path):
    attach(build(), **SETTINGS).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    (key,) = (key for key in tensors if key.endswith(f".{name}"))
    tensors[key].view(-1)[3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"cannot be (loaded|used): `{name}` contains NaN or infinite values"):
        if load == "PEFT":
            PeftModel.from_pretrained(build(), tmp_path)
        else:
            model = build()
            model.load_adapter(str(tmp_path))
            model(tokens())


def test_keys_from_queries_do_not_depend_on_their_order(build, attach):
    queries = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    queries = torch.cat([queries, queries[:7]])
    found = []
    for seed in range(3):
        model = attach(build(), center_queries=True)
        order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))
        model.init_keys_from(queries[order])
        found.append(model.base_model.layer.pool_of().keys.detach().clone())
    for keys in found[1:]:
        torch.testing.assert_close(keys, found[0])


def test_a_diverged_pool_can_be_loaded_over(build, attach, tokens, tmp_path):
    model = attach(build())
    expected = model(tokens()).logits
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.base_model.layer.pool_of().keys[0, 0] = torch.nan
    model.load_adapter(str(tmp_path), "default")
    torch.testing.assert_close(model.eval()(tokens()).logits, expected)


def test_another_diverged_pool_keeps_no_adapter_from_being_saved_and_loaded(build, attach, tmp_path):
    model = attach(build())
    model.add_adapter("bad", ListenConfig(pool_size=8, prompt_length=2))
    with torch.no_grad():
        model.base_model.layer.pool_of("bad").keys[0, 0] = torch.nan
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    model.load_adapter(str(tmp_path), "again")
    with pytest.raises(ValueError, match="cannot be saved: `keys` contains NaN"):
        model.save_pretrained(tmp_path, selected_adapters=["bad"])


@pytest.mark.parametrize("value", [3e20, 1e38])
def test_values_whose_sums_overflow_change_no_statistic(value, build, attach, tokens):
    settings = {"center_queries": True, "standardize_queries": True, "stochastic_prompt_length": False}
    model = attach(build(), **settings).train()
    pool = model.base_model.layer.pool_of()
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.0)
    for number in range(3):
        embeds = model.get_input_embeddings()(tokens(seed=number)).detach()
        embeds[:, 1] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step(model, optimizer, embeds, supervised(tokens(seed=number)))
    assert pool.query_mean.isfinite().all() and pool.query_variance.isfinite().all()


def test_a_batch_without_supervised_tokens_has_no_key_loss(build, attach, tokens):
    model = attach(build(), stochastic_prompt_length=False).train()
    for num_items in (0, torch.tensor(0)):
        labels = torch.full_like(tokens(), -100)
        model(input_ids=tokens(), labels=labels, num_items_in_batch=num_items)
        model.base_model.key_loss.backward()
        loss = batch_key_loss(torch.ones(2, requires_grad=True), labels, num_items)
        assert loss == 0
        loss.backward()


def test_a_state_dict_with_queries_is_loaded_strictly(build, attach):
    model, other = attach(build()), attach(build())
    model.base_model.layer.pool_of().remember_queries(torch.ones(3, 32), 10)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.base_model.layer.pool_of().recent_queries, torch.ones(3, 32))
    model.base_model.layer.pool_of().forget_queries()
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.base_model.layer.pool_of().recent_queries is None
