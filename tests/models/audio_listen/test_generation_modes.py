"""The checks of transformers' `GenerationTesterMixin`, which none of its distributions contains, with audio."""

import copy

import pytest
import torch
from transformers import CompileConfig, DynamicCache, GenerationMixin

from peft_listen import AudioListenForCausalLM
from tests.device import place


NEW_TOKENS = 4
LLM_LAYERS, HIDDEN_SIZE, HEADS = 2, 32, 2


@pytest.fixture(scope="module")
def model(make_model) -> AudioListenForCausalLM:
    model = make_model(sound=True)
    # Without an end-of-sequence token every row generates the requested number of tokens.
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def inputs(make_processor, clip):
    clips = [clip(1.0, seed=1), clip(0.4, seed=2)]
    return make_processor(sound=True)(
        text=["<|audio|> What is said?", "fox<|audio|>"], audio=clips, sampling_rate=16000
    )


@pytest.fixture(scope="module")
def one_row(make_processor, clip):
    return make_processor(sound=True)(text="the<|audio|>fox", audio=clip(0.6, seed=3), sampling_rate=16000)


@pytest.fixture(scope="module")
def greedy(model, inputs) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS)


def audio_of(inputs) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name != "input_ids"}


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_decoding_returns_the_requested_outputs_of_every_step(model, inputs, greedy, use_cache: bool) -> None:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    output = eager.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert output.sequences.tolist() == greedy.tolist()
    vocab_size, audio_token_id = model.config.text_config.vocab_size, model.config.audio_token_id
    length = inputs["input_ids"].shape[1]
    for step in range(NEW_TOKENS):
        assert output.logits[step].shape == output.scores[step].shape == (2, vocab_size)
        assert output.scores[step].argmax(-1).tolist() == greedy[:, length + step].tolist()
        assert (output.scores[step][:, audio_token_id] == -torch.inf).all()
        assert output.logits[step].isfinite().all()
        num_keys = length + step
        num_queries = num_keys if step == 0 or not use_cache else 1
        assert [layer.shape for layer in output.hidden_states[step]] == [(2, num_queries, HIDDEN_SIZE)] * (
            LLM_LAYERS + 1
        )
        assert [layer.shape for layer in output.attentions[step]] == [(2, HEADS, num_queries, num_keys)] * LLM_LAYERS
    assert (output.past_key_values is not None) == use_cache


def test_sampling_at_a_low_temperature_is_greedy_and_returns_scores(model, inputs, greedy) -> None:
    output = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        temperature=1e-4,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert output.sequences.tolist() == greedy.tolist()
    assert len(output.scores) == NEW_TOKENS


def test_the_scores_of_beams_are_the_log_probabilities_of_their_tokens(model, inputs) -> None:
    options = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    beams = model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=4, num_return_sequences=2, **options)
    scores = beams.sequences_scores.view(2, 2)
    assert (scores[:, 0] >= scores[:, 1]).all()
    for index in range(2):
        expected = log_probability(model, inputs, beams.sequences[index::2])
        torch.testing.assert_close(scores[:, index], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_beams_of_one_token_are_the_likeliest_tokens(model, inputs) -> None:
    logits = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_scores=True).scores[0]
    beams = model.generate(**inputs, max_new_tokens=1, num_beams=4, num_return_sequences=4)
    assert beams[:, -1].view(2, 4).tolist() == logits.topk(4).indices.tolist()


@torch.no_grad()
def log_probability(model: AudioListenForCausalLM, inputs, sequences: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the new tokens of each row, computed in one forward pass over the row."""
    length = inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, sequences.shape[1] - length), value=1)
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    audio = {**audio_of(inputs), "attention_mask": mask}
    logits = model(input_ids=sequences, position_ids=position_ids, **audio).logits[:, length - 1 : -1]
    new_tokens = sequences[:, length:, None]
    return logits.log_softmax(-1).gather(-1, new_tokens)[..., 0].sum(-1)


def test_beams_can_be_sampled(model, inputs) -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        options = {"num_beams": 3, "do_sample": True, "num_return_sequences": 2}
        outputs.append(model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options))
    assert outputs[0].tolist() == outputs[1].tolist()
    assert outputs[0].shape == (4, inputs["input_ids"].shape[1] + NEW_TOKENS)


@pytest.mark.parametrize("do_sample", [False, True])
def test_an_assistant_model_with_audio_does_not_change_the_output(model, make_model, one_row, do_sample: bool) -> None:
    drafts = make_model(sound=True)
    drafts.generation_config.eos_token_id = None
    for weight in drafts.model.language_model.parameters():
        weight.data += 0.02
    # Sampling with a single candidate, so that its result is known.
    options = {"do_sample": True, "top_k": 1} if do_sample else {}
    expected = model.generate(**one_row, max_new_tokens=8)
    for assistant in (drafts, model):
        heard = []
        handle = assistant.model.register_forward_pre_hook(
            lambda module, args, kwargs, heard=heard: heard.append(bool(kwargs["mm_encoder_outputs"])),
            with_kwargs=True,
        )
        output = model.generate(**one_row, max_new_tokens=8, assistant_model=assistant, **options)
        handle.remove()
        assert output.tolist() == expected.tolist()
        assert heard[0]


def test_a_text_only_language_model_can_be_the_assistant(model, make_llm, one_row) -> None:
    assistant = make_llm("llama", seed=5)
    assistant.resize_token_embeddings(model.config.text_config.vocab_size, mean_resizing=False)
    assistant.generation_config.eos_token_id = None
    expected = model.generate(**one_row, max_new_tokens=8)
    assert model.generate(**one_row, max_new_tokens=8, assistant_model=assistant).tolist() == expected.tolist()


def test_an_assistant_of_another_width_is_refused(model, plain_config, one_row) -> None:
    config = plain_config(sound=True)
    config.text_config.hidden_size = 16
    config.audio_token_id = model.config.audio_token_id
    assistant = place(AudioListenForCausalLM(config).eval())
    assistant.resize_token_embeddings(model.config.text_config.vocab_size, mean_resizing=False)
    with pytest.raises(ValueError, match=r"audio embeddings are 32 wide, but those of this language model 16"):
        model.generate(**one_row, max_new_tokens=4, assistant_model=assistant)


def test_prompt_lookup_drafts_stop_at_the_end_of_the_text(model, one_row) -> None:
    answer = model.generate(**one_row, max_new_tokens=NEW_TOKENS)[0, one_row["input_ids"].shape[1] :].tolist()
    end = answer[2]
    stopped = model.generate(**one_row, max_new_tokens=NEW_TOKENS, eos_token_id=end, prompt_lookup_num_tokens=2)
    assert stopped[0, one_row["input_ids"].shape[1] :].tolist() == answer[: answer.index(end) + 1]


def test_a_finished_row_is_padded(model, inputs, greedy) -> None:
    length = inputs["input_ids"].shape[1]
    end = int(greedy[0, length + 1])
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=2)
    for row, answer in zip(output[:, length:].tolist(), greedy[:, length:].tolist(), strict=True):
        kept = answer.index(end) + 1 if end in answer else NEW_TOKENS
        assert row[:kept] == answer[:kept]
        assert set(row[kept:]) <= {2}


@torch.no_grad()
def test_padding_on_the_left_changes_no_logits(model, make_processor, clip) -> None:
    processor = make_processor(sound=True)
    text = {"text": "<|audio|>quick<|audio|>", "audio": [clip(0.5, 1), clip(1.2, 2)], "sampling_rate": 16000}
    plain = processor(**text)
    padded = processor(**text, padding="max_length", max_length=plain["input_ids"].shape[1] + 6)
    assert padded["attention_mask"][0, :6].tolist() == [0] * 6
    position_ids = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model(**plain).logits
    torch.testing.assert_close(model(**padded, position_ids=position_ids).logits[:, 6:], expected, atol=1e-5, rtol=0)
    output = model.generate(**padded, max_new_tokens=NEW_TOKENS)
    expected = model.generate(**plain, max_new_tokens=NEW_TOKENS)
    assert output[:, -NEW_TOKENS:].tolist() == expected[:, -NEW_TOKENS:].tolist()


def test_the_cache_contains_keys_and_values_of_every_layer(model, inputs) -> None:
    cache = model.generate(**inputs, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True).past_key_values
    length = inputs["input_ids"].shape[1] + NEW_TOKENS - 1
    assert isinstance(cache, DynamicCache)
    assert len(cache.layers) == LLM_LAYERS
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (2, HEADS, length, HIDDEN_SIZE // HEADS)


def test_generation_can_be_continued(model, inputs) -> None:
    expected = model.generate(**inputs, max_new_tokens=6)
    half = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    resumed = model.generate(
        input_ids=half.sequences, attention_mask=mask, past_key_values=half.past_key_values, max_new_tokens=3
    )
    assert resumed.tolist() == expected.tolist()


def test_generation_can_be_continued_from_embeddings(model, inputs) -> None:
    embed = model.get_input_embeddings()
    expected = model.generate(**inputs, max_new_tokens=6)[:, -6:]
    prompt = embed(inputs["input_ids"])
    half = model.generate(inputs_embeds=prompt, **audio_of(inputs), max_new_tokens=3, return_dict_in_generate=True)
    assert half.sequences.tolist() == expected[:, :3].tolist()
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    resumed = model.generate(
        inputs_embeds=torch.cat([prompt, embed(half.sequences)], dim=1),
        attention_mask=mask,
        past_key_values=half.past_key_values,
        max_new_tokens=3,
    )
    assert resumed.tolist() == expected[:, 3:].tolist()


def test_embeddings_can_fill_a_static_cache(model, inputs, greedy) -> None:
    output = model.generate(
        inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]),
        **audio_of(inputs),
        max_new_tokens=NEW_TOKENS,
        cache_implementation="static",
    )
    assert output.tolist() == greedy[:, -NEW_TOKENS:].tolist()


def test_different_embeddings_give_a_different_answer(model, inputs, greedy) -> None:
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    is_audio = (inputs["input_ids"] == model.config.audio_token_id)[..., None]
    random = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    output = model.generate(
        inputs_embeds=torch.where(is_audio, embeddings, random), **audio_of(inputs), max_new_tokens=NEW_TOKENS
    )
    assert output.tolist() != greedy[:, -NEW_TOKENS:].tolist()


def test_generation_without_input_starts_with_the_bos_token(model) -> None:
    output = model.generate(max_new_tokens=2)
    assert output.shape == (1, 3)
    assert output[0, 0] == model.generation_config.bos_token_id


def test_attention_implementations_generate_the_same(model, inputs, greedy) -> None:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert eager.generate(**inputs, max_new_tokens=NEW_TOKENS).tolist() == greedy.tolist()


def test_logits_are_computed_only_for_the_last_position(model, inputs, monkeypatch) -> None:
    lengths = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    model.generate(**inputs, max_new_tokens=3)
    handle.remove()
    assert lengths == [1, 1, 1]


def test_transformers_recognizes_that_the_model_generates(model) -> None:
    assert isinstance(model, GenerationMixin)
    assert model.can_generate()
    assert not model.model.can_generate()


@pytest.mark.parametrize("family", ["gemma", "mistral", "gpt2"])
def test_beams_and_static_caches_agree_with_greedy_decoding_in_other_families(
    make_model, make_processor, clip, family: str
) -> None:
    model = make_model(family)
    model.generation_config.eos_token_id = None
    inputs = make_processor()(
        text=["<|audio|> What?", "fox<|audio|>"], audio=[clip(0.5), clip(0.3)], sampling_rate=16000
    )
    expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS).tolist()
    assert model.generate(**inputs, max_new_tokens=NEW_TOKENS, use_cache=False).tolist() == expected
    assert model.generate(**inputs, max_new_tokens=NEW_TOKENS, cache_implementation="static").tolist() == expected
    beams = model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=2, num_return_sequences=2)
    assert beams.shape == (4, len(expected[0]))


@pytest.mark.slow
def test_decoding_steps_compile_into_one_graph(model, inputs, greedy) -> None:
    config = CompileConfig(backend="aot_eager", fullgraph=True, mode="default")
    # By default transformers compiles only on accelerators.
    config._compile_all_devices = True
    compiled = copy.deepcopy(model)
    output = compiled.generate(
        **inputs, max_new_tokens=NEW_TOKENS, cache_implementation="static", compile_config=config
    )
    assert hasattr(compiled, "_compiled_call")
    assert output.tolist() == greedy.tolist()
