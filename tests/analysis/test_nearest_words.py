"""The nearest tokens of prompts: exact neighbors, what is left out, and the similarities to compare with."""

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import pipeline

from peft_listen import ListenConfig
from peft_listen.analysis import SelectionRecords, nearest_words
from peft_listen.tuners.listen import find_listen_layer


PREPENDED = {"shared_prompt_mode": "prepend", "num_shared_prompts": 0}


@pytest.fixture
def make_text_adapter(make_llm):
    def make(kind="llama", **options):
        model = get_peft_model(make_llm(kind), ListenConfig(**{"pool_size": 6, "prompt_length": 2, **options})).eval()
        return model, find_listen_layer(model).pool_of()

    return make


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer()


def ordinary_ids(tokenizer, embedding):
    return [
        index for index in range(min(len(tokenizer), len(embedding.weight))) if index not in tokenizer.all_special_ids
    ]


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_the_nearest_tokens_are_those_of_the_whole_similarity_matrix(make_text_adapter, tokenizer, kind) -> None:
    model, pool = make_text_adapter(kind, init_weights=False, **PREPENDED)
    embedding = model.get_input_embeddings()
    ids = ordinary_ids(tokenizer, embedding)
    cosine = F.normalize(pool.values, dim=-1) @ F.normalize(embedding.weight[ids].float(), dim=-1).T
    expected, order = cosine.detach().topk(4, dim=-1)
    # Blocks smaller than `top`, blocks that do not divide the vocabulary, and one block.
    for block_size in (3, 64, 4096):
        found = nearest_words(model, tokenizer=tokenizer, top=4, block_size=block_size).prompts
        assert list(found) == list(range(6))
        for prompt, words in found.items():
            assert [word.token_id for word in words] == [ids[place] for place in order[prompt]]
            torch.testing.assert_close(torch.tensor([word.similarity for word in words]), expected[prompt])


def test_a_prompt_that_is_a_word_is_near_it_and_a_random_one_is_near_none(make_text_adapter, tokenizer) -> None:
    model, pool = make_text_adapter(**PREPENDED)
    ids = ordinary_ids(tokenizer, model.get_input_embeddings())
    word = next(index for index in ids if tokenizer.decode([index]).strip().isalpha())
    with torch.no_grad():
        pool.values[0] = -model.get_input_embeddings().weight[word]
        pool.values[1] = 7.0 * model.get_input_embeddings().weight[word]
        pool.values[2] = 0.0
        pool.values[3] = -model.get_input_embeddings().weight[ids].mean(dim=0)
    found = nearest_words(model, tokenizer=tokenizer, top=2)
    assert found.prompts[1][0].token_id == word
    assert found.prompts[1][0].text == tokenizer.decode([word])
    assert found.prompts[1][0].similarity == pytest.approx(1.0, abs=1e-5)
    assert found.is_near(1)
    assert found.prompts[0][0].token_id != word
    assert found.prompts[2] == [] and not found.is_near(2)
    assert not found.is_near(3)
    with pytest.raises(KeyError):
        found.is_near(17)
    assert 0 < found.chance_similarity < 1
    assert found.num_near == sum(found.is_near(prompt) for prompt in range(6))


def test_the_similarity_of_chance_is_that_of_random_directions(make_text_adapter, tokenizer) -> None:
    model, _ = make_text_adapter(pool_size=400, init_weights=False, **PREPENDED)
    found = nearest_words(model, tokenizer=tokenizer, top=1)
    # 400 random values: 5 % are expected above the quantile that 128 others give.
    assert 0 <= found.num_near <= 0.15 * 400
    again = nearest_words(model, tokenizer=tokenizer, top=1)
    assert found == again


def test_special_unused_and_missing_tokens_are_left_out(make_text_adapter, tokenizer) -> None:
    model, pool = make_text_adapter(**PREPENDED)
    weight = model.get_input_embeddings().weight
    special = tokenizer.all_special_ids[0]
    ids = ordinary_ids(tokenizer, model.get_input_embeddings())
    with torch.no_grad():
        pool.values[0] = weight[special]
        weight[ids[5]] = 0.0
        weight[ids[6]] = torch.nan
        pool.values[1] = 1.0
    found = nearest_words(model, tokenizer=tokenizer, top=10_000)
    listed = [word.token_id for word in found.prompts[0]]
    assert sorted(listed) == sorted(set(ids) - {ids[5], ids[6]})
    assert found.prompts[0][0].similarity < 0.999
    assert all(-1 - 1e-5 <= word.similarity <= 1 + 1e-5 for word in found.prompts[1])


def test_the_shared_prompt_of_the_usual_position_is_added(make_text_adapter, tokenizer) -> None:
    model, pool = make_text_adapter(init_weights=False)
    assert pool.config.adds_shared_prompts
    weight = model.get_input_embeddings().weight
    first, second = ordinary_ids(tokenizer, model.get_input_embeddings())[10:12]
    with torch.no_grad():
        pool.shared_values[0] = weight[first]
        pool.shared_values[1] = weight[second]
        pool.values.zero_()
    assert nearest_words(model, tokenizer=tokenizer, top=1).prompts[4][0].token_id == first
    records = SelectionRecords(
        indices=torch.tensor([[0, 4], [0, 4], [4, 2]]),
        scores=torch.zeros(3, 2),
        queries=torch.randn(3, 32),
        keys=torch.randn(6, 32),
        tasks=["a", "b", "b"],
    )
    found = nearest_words(model, records, tokenizer=tokenizer, top=1)
    assert {prompt: words[0].token_id for prompt, words in found.prompts.items()} == {0: first, 2: second, 4: second}


def test_a_pipeline_brings_its_tokenizer(make_text_adapter, tokenizer) -> None:
    model, _ = make_text_adapter()
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert nearest_words(pipe, top=3) == nearest_words(model, tokenizer=tokenizer, top=3)


def test_invalid_arguments_raise(make_text_adapter, tokenizer, make_llm, make_records) -> None:
    model, _ = make_text_adapter()
    with pytest.raises(ValueError, match="`top` must be at least 1, got 0"):
        nearest_words(model, tokenizer=tokenizer, top=0)
    with pytest.raises(ValueError, match="`block_size` must be at least 1, got -1"):
        nearest_words(model, tokenizer=tokenizer, block_size=-1)
    with pytest.raises(ValueError, match="Pass `tokenizer=`"):
        nearest_words(model)
    with pytest.raises(ValueError, match="There is no LiSTEN adapter in LlamaForCausalLM"):
        nearest_words(make_llm("llama"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="for a pool of 48 prompts, but the active adapter has 6"):
        nearest_words(model, make_records(), tokenizer=tokenizer)


def test_a_model_without_an_embedding_matrix_is_refused(make_text_adapter, tokenizer) -> None:
    model, _ = make_text_adapter()
    backbone = find_listen_layer(model).hooks.backbone
    backbone.set_input_embeddings(torch.nn.Identity())
    with pytest.raises(
        ValueError, match="The input embedding of the language model, Identity, has no matrix `weight`"
    ):
        nearest_words(model, tokenizer=tokenizer)
