"""Initialization of a pool."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from peft_listen import ListenConfig
from peft_listen.tuners.listen.initialization import embedding_size, initial_pool
from peft_listen.tuners.listen.selectors.clustering import cluster_centers
from tests.device import place


class ModelConfig:
    bos_token_id, eos_token_id, pad_token_id = 1, [2, 3], 0
    initializer_range = 0.05


def vocabulary(size=40, width=6):
    embedding = nn.Embedding(size, width)
    with torch.no_grad():
        embedding.weight.copy_(torch.randn(size, width, generator=torch.Generator().manual_seed(0)) + 1)
    return place(embedding)


# The values of pools without shared prompts are not initialized with zeros.
WITHOUT_SHARED = {"shared_prompt_mode": "prepend"}


def rows_among(tensor, embedding):
    return [int((embedding.weight == row).all(dim=-1).nonzero()) for row in tensor]


@pytest.mark.parametrize("init_weights", [True, "vocab"])
def test_values_are_initialized_with_embeddings_of_ordinary_tokens(init_weights):
    embedding = vocabulary()
    keys, values, shared_values, mean = initial_pool(
        ListenConfig(pool_size=30, init_weights=init_weights, center_queries=False, **WITHOUT_SHARED),
        embedding,
        ModelConfig(),
    )
    assert keys.shape == values.shape == (30, 6)
    assert shared_values.shape == (0, 6)
    assert keys.dtype == values.dtype == mean.dtype == torch.float32
    assert torch.equal(mean, torch.zeros(6))
    for tensor in (keys, values):
        tokens = rows_among(tensor, embedding)
        assert not set(tokens) & {0, 1, 2, 3}
        assert len(set(tokens)) > 10
    assert not torch.equal(keys, values)


def test_centered_keys_are_initialized_around_their_mean():
    embedding = vocabulary()
    config = ListenConfig(pool_size=30, center_queries=True, **WITHOUT_SHARED)
    keys, values, _, mean = initial_pool(config, embedding, ModelConfig())
    torch.testing.assert_close(keys.mean(dim=0), torch.zeros(6), atol=1e-6, rtol=0)
    rows_among(values, embedding)
    plain = initial_pool(ListenConfig(pool_size=30, center_queries=False), embedding, ModelConfig())
    torch.testing.assert_close(keys + mean, plain.keys)


def test_unused_rows_of_a_vocabulary_are_skipped():
    embedding = vocabulary()
    with torch.no_grad():
        embedding.weight[20:] = 0.0
        embedding.weight[19] = torch.nan
    pool = initial_pool(ListenConfig(pool_size=30, **WITHOUT_SHARED), embedding, ModelConfig())
    assert all(4 <= token < 19 for token in rows_among(pool.values, embedding))
    assert all(
        4 <= token < 19
        for token in rows_among(initial_pool(ListenConfig(), embedding, ModelConfig()).shared_values, embedding)
    )


def test_normal_initialization_has_the_scale_of_the_embeddings():
    embedding = vocabulary(400, 32)
    with torch.no_grad():
        embedding.weight.mul_(3.0)
    pool = initial_pool(ListenConfig(init_weights="normal", **WITHOUT_SHARED), embedding, ModelConfig())
    for tensor in (pool.keys, pool.values):
        assert abs(float(tensor.std()) / float(embedding.weight.std()) - 1) < 0.05


@pytest.mark.parametrize("init_weights", [True, "normal", False])
def test_the_initialization_depends_only_on_the_seed(init_weights):
    embedding = vocabulary()
    pools = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed + len(pools))
        state = torch.get_rng_state()
        pools.append(
            initial_pool(ListenConfig(pool_size=30, init_weights=init_weights, seed=seed), embedding, ModelConfig())
        )
        assert torch.equal(torch.get_rng_state(), state)  # the global random state is unchanged
    first, second, other = pools
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_the_pool_includes_the_decoders_scaling_of_embeddings(build):
    model = get_peft_model(build("gemma3"), ListenConfig(pool_size=8, prompt_length=2, **WITHOUT_SHARED))
    embedding = model.get_input_embeddings()
    values = model.layer.listen_pools["default"].values
    norms = {round(float(row.norm()), 3) for row in embedding(torch.arange(61))}
    assert all(round(float(row.norm()), 3) in norms for row in values)


def test_sizes_come_from_the_configuration_not_from_a_shard():
    embedding = vocabulary(width=6)
    embedding.weight = nn.Parameter(torch.zeros(0))  # as under ZeRO-3
    assert embedding_size(embedding, ModelConfig()) == 6
    assert embedding_size(nn.Identity(), LlamaConfig(hidden_size=64)) == 64
    with pytest.raises(ValueError, match=r"Cannot determine the embedding size of Identity"):
        embedding_size(nn.Identity(), object())


def test_a_pool_can_be_attached_to_a_model_on_the_meta_device():
    with torch.device("meta"):
        config = LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        base = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(base, ListenConfig(pool_size=50, **WITHOUT_SHARED))
    for parameter in model.layer.pool_of().parameters():
        assert parameter.device.type == "cpu"
        assert abs(float(parameter.std()) / 0.02 - 1) < 0.1


def test_only_the_pool_is_trainable(build):
    model = get_peft_model(build(), ListenConfig(pool_size=40))
    assert model.get_nb_trainable_parameters()[0] == (2 * 40 + 10) * 32
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name.rsplit(".", 1)[1] for name in trained] == ["keys", "values", "shared_values"]


def test_clusters_of_points_are_found():
    corners = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]])
    noise = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0))
    centers = cluster_centers((corners[:, None] + 0.1 * noise).flatten(0, 1), 3, seed=0)
    distances = torch.cdist(corners, centers.to(corners.device))
    assert sorted(distances.argmin(dim=-1).tolist()) == [0, 1, 2]
    assert distances.min(dim=-1).values.max() < 0.1


def test_with_fewer_points_than_centers_the_additional_centers_are_near_the_points():
    points = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 10
    centers = cluster_centers(points, 12, seed=1)
    assert centers.shape == (12, 5)
    distances = torch.cdist(centers.to(points.device), points).min(dim=-1).values
    assert (distances[:4] < 1e-4).all()
    assert ((distances[4:] > 0) & (distances[4:] < 6)).all()
    assert len({tuple(row) for row in centers.tolist()}) == 12


@pytest.mark.parametrize("count", [1, 3])
def test_equal_points_give_different_centers(count):
    centers = cluster_centers(torch.ones(5, 4), count, seed=0)
    assert centers.isfinite().all()
    assert len({tuple(row) for row in centers.tolist()}) == count


def test_clustering_is_deterministic_under_a_seed():
    points = torch.randn(40, 5)
    assert torch.equal(cluster_centers(points, 7, seed=3), cluster_centers(points, 7, seed=3))


def test_keys_can_be_initialized_from_real_queries(build, attach, tokens):
    model = attach(build(), pool_size=6, prompt_length=1, center_queries=True)
    inputs = [tokens(4, 6, seed=seed) for seed in range(3)]
    with model.record_selections() as records:
        for input_ids in inputs:
            model(input_ids)
    assert len(records) == 3
    model.init_keys_from(record.query for record in records)
    queries = torch.cat([record.query for record in records])
    torch.testing.assert_close(model.layer.listen_pools["default"].query_mean, queries.mean(dim=0))
    with model.record_selections() as records:
        for input_ids in inputs:
            model(input_ids)
    assert len(torch.cat([record.indices for record in records]).unique()) == 6  # every key is selected


def test_invalid_queries_for_initializing_keys_raise(build, attach):
    model = attach(build())
    with pytest.raises(ValueError, match=r"shape \(num_queries, 32\) with at least one row, got \(4, 31\)"):
        model.init_keys_from(torch.zeros(4, 31))
    with pytest.raises(ValueError, match=r"at least one row, got \(0, 32\)"):
        model.init_keys_from(torch.zeros(0, 32))
    with pytest.raises(ValueError, match=r"contains NaN or infinite values"):
        model.init_keys_from(torch.full((2, 32), torch.nan))
