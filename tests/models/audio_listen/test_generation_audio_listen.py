from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from peft_listen import AudioListenForCausalLM


NEW_TOKENS = 6


@pytest.fixture(scope="module")
def model(make_model) -> AudioListenForCausalLM:
    model = make_model(sound=True)
    # Without an end-of-sequence token every row generates the requested number of tokens.
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor(sound=True)


@pytest.fixture(scope="module")
def inputs(processor, clip):
    text = ["<|audio|> What is <|audio|> said?", "the lazy dog", "<|audio|>brown"]
    clips = [clip(1.0, seed=1), clip(0.4, seed=2), clip(2.3, seed=3)]
    return processor(text=text, audio=clips, sampling_rate=16000)


def continue_by_hand(model: AudioListenForCausalLM, inputs: dict, steps: int = NEW_TOKENS) -> torch.Tensor:
    """Greedy decoding without a cache: the prompt and the audio are processed again for every token."""
    inputs = dict(inputs)
    audio_token_id = model.config.audio_token_id
    for _ in range(steps):
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(**inputs, position_ids=position_ids, use_cache=False).logits[:, -1]
        logits[:, audio_token_id] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax(-1, keepdim=True)], dim=-1)
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
    return inputs["input_ids"]


@contextmanager
def counting(model: AudioListenForCausalLM):
    """Counts the chunks that each audio module processes."""
    counts: Counter = Counter()
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: counts.update(
                {name: len(getattr(output, "last_hidden_state", output))}
            )
        )
        for name, module in (
            ("speech", model.model.speech_tower),
            ("sound", model.model.sound_tower),
            ("projected", model.model.multi_modal_projector),
        )
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 1, "num_return_sequences": 1, "do_sample": False},
    ],
    ids=str,
)
def test_greedy_decoding_equals_decoding_by_hand_without_a_cache(model, processor, clip, inputs, options) -> None:
    if "prompt_lookup_num_tokens" in options:
        # Assisted decoding supports one row.
        inputs = processor(text="<|audio|>brown<|audio|>", audio=[clip(0.4), clip(1.0)], sampling_rate=16000)
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
    assert output.tolist() == continue_by_hand(model, inputs).tolist()


@pytest.mark.parametrize("llm", ["qwen2", "mistral", "gemma2", "gpt2"])
def test_greedy_decoding_equals_decoding_by_hand_for_other_families(
    make_model, make_processor, clip, llm: str
) -> None:
    model = make_model(llm)
    model.generation_config.eos_token_id = None
    text = ["<|audio|> What is <|audio|> said?", "the lazy dog"]
    inputs = make_processor()(text=text, audio=[clip(1.0), clip(0.4)], sampling_rate=16000)
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    assert output.tolist() == continue_by_hand(model, inputs).tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 3}], ids=str)
def test_beams_of_a_batch_equal_those_of_each_row_alone(model, processor, clip, inputs, options) -> None:
    per_row = options.get("num_return_sequences", 1)
    batch = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
    prompts = [("<|audio|> What is <|audio|> said?", [clip(1.0, 1), clip(0.4, 2)]), ("the lazy dog", None)]
    prompts.append(("<|audio|>brown", [clip(2.3, 3)]))
    for row, (text, clips) in enumerate(prompts):
        alone = model.generate(
            **processor(text=text, audio=clips, sampling_rate=16000), max_new_tokens=NEW_TOKENS, **options
        )
        assert batch[row * per_row : (row + 1) * per_row, -NEW_TOKENS:].tolist() == alone[:, -NEW_TOKENS:].tolist()


def test_every_return_sequence_of_a_row_uses_the_clips_of_the_row(model, inputs) -> None:
    torch.manual_seed(0)
    repeated = model.generate(**inputs, max_new_tokens=1, do_sample=True, top_k=1, num_return_sequences=3)
    once = model.generate(**inputs, max_new_tokens=1)
    assert repeated.tolist() == once.repeat_interleave(3, dim=0).tolist()


def test_sampling_is_reproducible_under_a_seed(model, inputs) -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=True, num_return_sequences=2))
    assert outputs[0].tolist() == outputs[1].tolist()
    assert outputs[0].shape[0] == 6


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 4}, {"use_cache": False}],
    ids=str,
)
def test_each_clip_is_encoded_once_per_call(model, processor, clip, options) -> None:
    clips = [clip(1.0, 1), clip(31.0, 2)]
    inputs = processor(text=["<|audio|>a", "b<|audio|>"], audio=clips, sampling_rate=16000)
    num_audio_tokens = int((inputs["input_ids"] == model.config.audio_token_id).sum())
    with counting(model) as counts:
        model.generate(**inputs, max_new_tokens=4, **options)
    assert counts == {"speech": 3, "sound": 3, "projected": num_audio_tokens}


def test_encoders_do_not_run_when_a_batch_has_no_audio(model, processor) -> None:
    with counting(model) as counts:
        model.generate(**processor(text=["the lazy dog", "fox"]), max_new_tokens=2)
    assert counts == {}


def test_stored_encoder_features_generate_the_same(model, inputs) -> None:
    audio = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    features = model.get_encoder_features(**audio)
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=2)
    with counting(model) as counts:
        output = model.generate(**text, **features._asdict(), max_new_tokens=NEW_TOKENS, num_beams=2)
    assert output.tolist() == expected.tolist()
    assert set(counts) == {"projected"}


def test_embeddings_of_the_prompt_generate_the_same(model, inputs) -> None:
    audio = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    for options in ({}, {"num_beams": 2}):
        expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
        output = model.generate(
            inputs_embeds=embeddings,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            **audio,
            **options,
        )
        assert output.tolist() == expected[:, -NEW_TOKENS:].tolist()


@pytest.mark.parametrize("clips_in_second_turn", [0, 1])
def test_a_filled_cache_is_extended_by_a_new_turn_with_audio(
    model, processor, clip, clips_in_second_turn: int
) -> None:
    first = "the<|audio|>fox"
    second = first + "What<|audio|>is" * clips_in_second_turn + "again"
    clips = [clip(1.0, 1), clip(0.6, 2)]
    prefix = processor(text=first, audio=clips[:1], sampling_rate=16000)
    whole = processor(text=second, audio=clips[: 1 + clips_in_second_turn], sampling_rate=16000)
    assert whole["input_ids"][0, : prefix["input_ids"].shape[1]].tolist() == prefix["input_ids"][0].tolist()
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**prefix, past_key_values=cache, use_cache=True)
    output = model.generate(**whole, past_key_values=cache, max_new_tokens=NEW_TOKENS)
    assert output.tolist() == model.generate(**whole, max_new_tokens=NEW_TOKENS).tolist()


def test_tokens_are_streamed_one_by_one(model, processor, clip) -> None:
    class Recorder(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.pieces.extend(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    recorder = Recorder()
    inputs = processor(text="<|audio|>fox", audio=clip(1.0), sampling_rate=16000)
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, streamer=recorder)
    assert recorder.pieces == output[0].tolist()
    assert recorder.ended


def test_the_audio_token_is_never_generated(make_model, processor, make_processor, clip, tmp_path) -> None:
    model = make_model("phi")
    model.lm_head.bias.data[model.config.audio_token_id] = 1e3
    inputs = make_processor()(text="<|audio|>fox", audio=clip(1.0), sampling_rate=16000)
    model.save_pretrained(tmp_path)
    for candidate in (model, AudioListenForCausalLM.from_pretrained(tmp_path)):
        output = candidate.generate(**inputs, max_new_tokens=4)
        assert model.config.audio_token_id not in output[0, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_mismatches_are_refused_before_the_first_step(model, inputs, options) -> None:
    count = int((inputs["input_ids"] == model.config.audio_token_id).sum())
    with pytest.raises(ValueError, match=f"holds {count} audio tokens, but no audio was given"):
        model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=2, **options
        )
    text_only = {**inputs, "input_ids": inputs["input_ids"].clamp(max=100)}
    with pytest.raises(ValueError, match=f"0 audio tokens in `input_ids`, {count} audio features"):
        model.generate(**text_only, max_new_tokens=2, **options)


def test_misspelt_arguments_are_refused(model, inputs) -> None:
    with pytest.raises(ValueError, match="input_feature_mask"):
        model.generate(**inputs, input_feature_mask=inputs["input_features_mask"])
