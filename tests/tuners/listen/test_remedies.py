"""The remedies for collapse: their effects, saving them with the adapter, and the paper's form without them."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_listen import ListenConfig
from peft_listen.tuners.listen.query import mean_query


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


def test_a_row_with_only_ignored_tokens_uses_them(build, attach):
    model = attach(build(), query_ignored_token_ids=[57, 58])
    input_ids = torch.tensor([[57, 58, 57], [57, 5, 58]])
    model(input_ids=input_ids)
    embeds = model.get_input_embeddings()(input_ids)
    expected = torch.stack([embeds[0].mean(dim=0), embeds[1, 1]])
    torch.testing.assert_close(model.base_model.last_selection.query, expected)


# ------------------------------------------------------------------------------------------------ means by modality


@pytest.mark.parametrize("settings", [None, {}, {"cache_implementation": "static", "disable_compile": True}])
def test_images_and_text_are_averaged_separately(settings, build, attach):
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


def test_the_scale_of_a_modality_has_no_effect():
    embeds = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.ones(2, 7, dtype=torch.bool)
    audio = torch.arange(7).expand(2, -1) < 4
    louder = torch.where(audio.unsqueeze(-1), 30 * embeds, embeds)
    torch.testing.assert_close(mean_query(louder, positions, audio), mean_query(embeds, positions, audio))
    assert not torch.allclose(mean_query(louder, positions), mean_query(embeds, positions))
    # A row with only audio or only text has a plain mean.
    for alone in (audio, ~audio):
        torch.testing.assert_close(mean_query(embeds, positions & alone, audio), mean_query(embeds, alone))


def test_a_row_with_only_text_has_one_mean(build, attach, tokens):
    base = build("llava")
    model = attach(base, query_pooling="modality_mean")
    model(input_ids=tokens())
    expected = base.get_input_embeddings()(tokens()).mean(dim=1)
    torch.testing.assert_close(model.base_model.last_selection.query, expected)


# --------------------------------------------------------------------------------------------------- shared prompts


@pytest.mark.parametrize("side", ["left", "right"])
def test_shared_prompts_come_before_the_selected_ones(side, build, attach, by_hand, padded, tokens):
    base = build()
    model = attach(base, num_shared_prompts=2)
    rows = [tokens(1, 4, seed=1)[0], tokens(1, 7, seed=2)[0]]
    batch = padded(rows, side)
    logits = model(**batch).logits
    sequences = None
    if side == "left":
        sequences = model.generate(**batch, max_new_tokens=3, do_sample=False)
    reference = by_hand(base, model)
    shared = model.base_model.layer.listen_pools["default"].shared_values
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
    assert model.base_model.layer.listen_pools["default"].shared_values.grad.abs().min() > 0
    loaded = reload(model.eval(), build, tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_added_shared_prompts_initially_equal_one_soft_prompt_of_the_same_length(build, attach, by_hand, tokens):
    base = build()
    settings = {"num_shared_prompts": 4, "shared_prompt_mode": "add", "prompt_length": 3, "max_train_prompt_length": 4}
    model = attach(base, **settings, init_weights="vocab")
    layer = model.base_model.layer
    shared, values = layer.listen_pools["default"].shared_values, layer.listen_pools["default"].values
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


def test_values_beyond_the_shared_prompts_are_unchanged(build, attach, by_hand, tokens):
    base = build()
    settings = {"num_shared_prompts": 2, "shared_prompt_mode": "add", "prompt_length": 2}
    model = attach(base, **settings, stochastic_prompt_length=False)
    layer = model.base_model.layer
    ids = tokens(1, 5)
    with model.base_model.use_prompt_length(3):
        logits = model(ids).logits
        prompts = layer.listen_pools["default"].values[model.base_model.last_selection.indices].clone()
    prompts[:, :2] += layer.listen_pools["default"].shared_values
    torch.testing.assert_close(logits, by_hand(base, model)(ids, prompts).logits[:, 3:], **CLOSE)


# ------------------------------------------------------------------------------------------------ running statistics


def test_running_statistics_are_saved_with_the_adapter(build, attach, tokens, tmp_path):
    settings = {"center_queries": True, "standardize_queries": True}
    model = attach(build(), **settings).train()
    for step in range(3):
        train_step(model, tokens(4, seed=step), step)
    model.base_model.begin_step(None)
    loaded = reload(model.eval(), build, tmp_path)
    for name in ("query_mean", "query_variance"):
        saved = getattr(model.base_model.layer.pool_of(), name)
        assert saved.std() > 0
        assert torch.equal(getattr(loaded.base_model.layer.pool_of(), name), saved)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


# ------------------------------------------------------------------------------------------------ standardized queries


def test_queries_are_standardized_by_those_of_earlier_steps(build, attach, tokens):
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
    torch.testing.assert_close(model.base_model.layer.pool_of().normalize_query(queries[2]), expected, **CLOSE)


# ---------------------------------------------------------------------------------------------------- the paper's form


def test_the_form_of_the_paper_has_no_remedies(build, attach, tokens):
    config = ListenConfig.paper(pool_size=12, prompt_length=4, init_weights=False)
    model = get_peft_model(build(), config).train()
    train_step(model, tokens(), 0)
    model.base_model.begin_step(None)
    pool = model.base_model.layer.pool_of()
    model.eval()(tokens())
    query = model.get_input_embeddings()(tokens()).mean(dim=1)
    torch.testing.assert_close(model.base_model.last_selection.query, query)
    assert torch.equal(pool.normalize_query(query), query)
    assert pool.shared_values is None and pool.query_variance is None
    assert model.peft_config["default"].key_loss_reduction == "sum"


def test_the_form_of_the_paper_accepts_other_values():
    config = ListenConfig.paper(prompt_length=160, center_queries=True)
    assert (config.prompt_length, config.center_queries, config.query_pooling) == (160, True, "mean")
