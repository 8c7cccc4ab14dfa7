from collections import Counter

import pytest
import torch
from transformers import DynamicCache
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import generic

from peft_listen import AudioListenForCausalLM, AudioListenModel, BeatsModel
from peft_listen.models.audio_listen import AudioFeatures
from peft_listen.models.audio_listen.forward_arguments import CACHE
from tests.device import place


TOLERANCE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def model(make_model) -> AudioListenForCausalLM:
    return make_model(sound=True)


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor(sound=True)


def audio_of(inputs) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def inputs(processor, clip):
    text = ["<|audio|> What is said? <|audio|>", "<|audio|>brown"]
    clips = [clip(1.0, seed=1), clip(0.4, seed=2), clip(2.3, seed=3)]
    return processor(text=text, audio=clips, sampling_rate=16000)


@torch.no_grad()
def test_audio_embeddings_replace_the_audio_tokens(model, inputs) -> None:
    seen = {}
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    try:
        output = model(**inputs)
    finally:
        handle.remove()
    is_audio = inputs["input_ids"] == model.config.audio_token_id
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(seen["inputs_embeds"][is_audio], output.audio_hidden_states)
    torch.testing.assert_close(seen["inputs_embeds"][~is_audio], embeddings[~is_audio])
    torch.testing.assert_close(output.audio_hidden_states, model.get_audio_features(**audio_of(inputs)).pooler_output)
    assert output.audio_hidden_states.std(0).mean() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("sound", [False, True])
def test_clips_of_different_length_give_the_same_in_a_batch_and_alone(
    make_model, make_processor, clip, sound: bool
) -> None:
    model, processor = make_model(sound=sound), make_processor(sound=sound)
    prompts = ["<|audio|> What is said?", "the<|audio|>quick<|audio|>fox", "no recording", "<|audio|>again"]
    clips = [[clip(0.9, 1)], [clip(31.5, 2), clip(0.05, 3)], [], [clip(2.0, 4)]]
    batch = processor(text=prompts, audio=clips, sampling_rate=16000)
    logits = model(**batch).logits
    for row, (prompt, row_clips) in enumerate(zip(prompts, clips, strict=True)):
        alone = processor(text=prompt, audio=row_clips or None, sampling_rate=16000)
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(logits[row, -length:], model(**alone).logits[0], **TOLERANCE)


@torch.no_grad()
def test_padding_a_batch_as_the_original_does_is_optional_and_changes_a_clip(make_model, make_processor, clip) -> None:
    model = make_model(sound=True, group_sound_by_length=False)
    processor = make_processor(sound=True, group_sound_by_length=False)
    short, long = clip(1.0, 1), clip(3.0, 2)
    alone = model.get_encoder_features(**audio_of(processor(text="<|audio|>", audio=[short], sampling_rate=16000)))
    batch = model.get_encoder_features(
        **audio_of(processor(text="<|audio|><|audio|>", audio=[short, long], sampling_rate=16000))
    )
    length = alone.sound_features.shape[1]
    assert (batch.sound_features[0, :length] - alone.sound_features[0]).abs().max() > 1e-3
    torch.testing.assert_close(
        batch.speech_features[0, : alone.speech_features.shape[1]], alone.speech_features[0], **TOLERANCE
    )


@torch.no_grad()
@pytest.mark.parametrize("encoder_batch_size", [1, 2, 100])
def test_the_encoders_batch_size_does_not_change_the_logits(
    model, inputs, monkeypatch, encoder_batch_size: int
) -> None:
    expected = model(**inputs).logits
    sizes = Counter()
    monkeypatch.setattr(model.config, "encoder_batch_size", encoder_batch_size)
    handle = model.model.speech_tower.register_forward_hook(
        lambda module, args, output: sizes.update([len(output.last_hidden_state)])
    )
    try:
        torch.testing.assert_close(model(**inputs).logits, expected, **TOLERANCE)
    finally:
        handle.remove()
    assert max(sizes) <= encoder_batch_size
    assert sum(size * count for size, count in sizes.items()) == 3


@torch.no_grad()
@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("windows", [{}, {"window_length": 20, "window_stride": 12}, {"num_queries": 3}])
def test_stored_encoder_features_give_the_same_as_the_audio(make_model, make_processor, clip, sound, windows) -> None:
    model = make_model(sound=sound, **windows)
    processor = make_processor(sound=sound, **windows)
    clips = [clip(1.0, 1), clip(0.4, 2), clip(30.7, 3)]
    inputs = processor(text=["<|audio|>a<|audio|>", "b<|audio|>"], audio=clips, sampling_rate=16000)
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    expected = model(**inputs).logits
    features = model.get_encoder_features(**audio_of(inputs))
    torch.testing.assert_close(model(**text, **features._asdict()).logits, expected, **TOLERANCE)

    # One chunk at a time, trimmed to the frames that its windows cover, then padded to one batch.
    chunks = []
    for index in range(4):
        length = processor.num_frames_needed(features.audio_features_mask[index].sum(-1, keepdim=True))
        chunks.append([None if tensor is None else tensor[index, :length] for tensor in features])
    padded = [
        None if column[0] is None else torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True)
        for column in zip(*chunks, strict=True)
    ]
    again = AudioFeatures(*padded)._asdict()
    torch.testing.assert_close(model(**text, **again).logits, expected, **TOLERANCE)


@torch.no_grad()
def test_encoder_features_are_trimmed_to_the_windows(model, processor, clip) -> None:
    inputs = audio_of(processor(text="<|audio|><|audio|>", audio=[clip(0.5), clip(1.0)], sampling_rate=16000))
    features = model.get_encoder_features(**inputs)
    # 1 s is covered by 3 windows of 17 frames, 0.5 s by 2.
    assert features.speech_features.shape == (2, 51, 16)
    assert features.sound_features.shape == (2, 48, 16)
    assert features.audio_features_mask.sum(-1).tolist() == [25, 50]


@torch.no_grad()
def test_labels_give_the_next_token_loss(model, inputs) -> None:
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.audio_token_id, -100)
    output = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_logits_can_be_restricted_to_some_positions(model, inputs) -> None:
    logits = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([1, 3])).logits, logits[:, [1, 3]])


@torch.no_grad()
def test_a_tuple_is_returned_on_request(model, inputs) -> None:
    torch.testing.assert_close(model(**inputs, return_dict=False)[0], model(**inputs).logits)
    assert isinstance(model.get_audio_features(**audio_of(inputs), return_dict=False), tuple)


def test_only_the_projector_gets_gradients(make_model, inputs) -> None:
    model = make_model(sound=True).train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in learning} == {"multi_modal_projector"}
    assert learning == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert model.model.multi_modal_projector.query_tokens.grad.abs().max() > 0


def test_the_language_model_is_trained_if_it_is_not_frozen(plain_config) -> None:
    frozen, free = (AudioListenForCausalLM(plain_config(freeze_language_model=value)) for value in (True, False))
    assert not any(weight.requires_grad for weight in frozen.model.language_model.parameters())
    assert not frozen.lm_head.weight.requires_grad
    assert all(weight.requires_grad for weight in free.model.language_model.parameters())
    assert free.lm_head.weight.requires_grad
    for model in (frozen, free):
        assert not any(weight.requires_grad for weight in model.model.speech_tower.parameters())
        assert all(weight.requires_grad for weight in model.model.multi_modal_projector.parameters())


def test_frozen_encoders_stay_in_evaluation_mode(plain_config) -> None:
    model = AudioListenForCausalLM(plain_config(sound=True))
    for _ in range(2):
        assert model.training
        assert model.model.language_model.training
        assert not any(module.training for module in model.model.speech_tower.modules())
        assert not any(module.training for module in model.model.sound_tower.modules())
        model.eval()
        assert not model.model.multi_modal_projector.training
        model.train()


def test_an_unfrozen_encoder_is_trained(make_model, inputs) -> None:
    model = make_model(sound=True)
    model.model.speech_tower.requires_grad_(True)
    model.train()
    assert model.model.speech_tower.training
    assert not model.model.sound_tower.training
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.speech_tower.conv1.weight.grad.abs().max() > 0
    assert all(weight.grad is None for weight in model.model.sound_tower.parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, inputs, use_reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(sound=True, qformer_config=_without_dropout())
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_gradient_checkpointing_gives_no_warning_about_the_cache(make_model, inputs, monkeypatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(generic.logger, "warning_once", messages.append)
    model = make_model(sound=True).train()
    model.activation_checkpointing_enable()
    assert model(**inputs, labels=inputs["input_ids"]).past_key_values is None
    assert not [message for message in messages if "use_cache" in message]
    # A caller who asks for the cache is told that it is turned off.
    model(**inputs, labels=inputs["input_ids"], use_cache=True)
    assert any("use_cache" in message for message in messages)


def _without_dropout() -> dict[str, float]:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    return {**sizes, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@torch.no_grad()
@pytest.mark.parametrize("llm", ["llama", "qwen2", "mistral", "gemma", "gemma2", "gpt2", "cohere", "granite", "phi"])
def test_without_audio_the_logits_equal_those_of_the_language_model(make_model, make_llm, llm: str) -> None:
    model, language_model = make_model(llm), make_llm(llm)
    input_ids = torch.randint(3, 299, (2, 12), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :4] = 0
    expected = language_model(input_ids=input_ids, attention_mask=attention_mask).logits
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected)
    assert expected.std() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("llm", ["llama_tied", "gpt2", "phi"])
def test_weights_survive_saving_and_loading(make_model, make_processor, clip, tmp_path, llm: str) -> None:
    model = make_model(llm)
    inputs = make_processor()(text="<|audio|>fox", audio=clip(1.0), sampling_rate=16000)
    model.save_pretrained(tmp_path)
    loaded, info = AudioListenForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == (llm in ("llama_tied", "gpt2"))
    trainable = {name.split(".")[1] for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert trainable == {"multi_modal_projector"}

    base = AudioListenModel.from_pretrained(tmp_path)
    torch.testing.assert_close(base(**inputs).audio_hidden_states, model(**inputs).audio_hidden_states)
    assert not any(weight.requires_grad for weight in base.speech_tower.parameters())


@torch.no_grad()
def test_the_vocabulary_can_be_resized(make_model, make_processor, clip) -> None:
    model = make_model("phi")
    inputs = make_processor()(text="<|audio|>fox", audio=clip(1.0), sampling_rate=16000)
    expected = model(**inputs).logits
    model.resize_token_embeddings(320, mean_resizing=False)
    logits = model(**inputs).logits
    assert logits.shape[-1] == model.config.text_config.vocab_size == 320
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_projector_stays_in_float32_in_a_model_in_half_precision(
    make_model, inputs, tmp_path, dtype: torch.dtype
) -> None:
    reference = make_model(sound=True)
    reference.save_pretrained(tmp_path)
    model = AudioListenForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {weight.dtype for weight in model.model.multi_modal_projector.parameters()} == {torch.float32}
    for part in (model.model.speech_tower, model.model.language_model, model.lm_head):
        assert {weight.dtype for weight in part.parameters()} == {dtype}
    output = model(**inputs)
    assert output.logits.dtype == dtype
    expected = reference(**inputs).logits
    assert (output.logits.float() - expected).abs().mean() < 0.1 * expected.std()


def test_quantizers_skip_the_projector(model) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            is_projector = "multi_modal_projector" in name
            assert should_convert_module(name, list(model._keep_in_fp32_modules)) != is_projector


@torch.no_grad()
def test_the_whole_model_can_be_cast(make_model, inputs) -> None:
    model = make_model(sound=True).to(torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model(**inputs).logits.isfinite().all()


@torch.no_grad()
def test_attention_implementations_agree_and_reach_all_parts(make_model, inputs, tmp_path) -> None:
    make_model(sound=True).save_pretrained(tmp_path)
    logits = []
    for implementation in ("eager", "sdpa"):
        model = AudioListenForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation)
        parts = ("speech_config", "sound_config", "qformer_config", "text_config")
        assert {getattr(model.config, part)._attn_implementation for part in parts} == {implementation}
        logits.append(model(**inputs).logits[inputs["attention_mask"].bool()])
    torch.testing.assert_close(*logits, **TOLERANCE)


def test_parts_without_flash_attention_use_sdpa(plain_config) -> None:
    config = plain_config(sound=True)
    config._attn_implementation = {"sound_config": "flash_attention_2", "qformer_config": "flash_attention_2"}
    model = AudioListenForCausalLM(config)
    assert model.model.sound_tower.config._attn_implementation == "sdpa"
    assert model.model.multi_modal_projector.qformer.config._attn_implementation == "sdpa"


@torch.no_grad()
@pytest.mark.cpu_only("it chooses the device")
def test_a_device_map_is_accepted(make_model, inputs, tmp_path) -> None:
    expected = make_model(sound=True)
    expected.save_pretrained(tmp_path)
    model = AudioListenForCausalLM.from_pretrained(tmp_path, device_map="auto")
    torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits)
    assert "WindowQFormerProjector" in model._no_split_modules
    assert {"LlamaDecoderLayer", "WhisperEncoderLayer"} <= set(model._no_split_modules)


def test_the_text_backbone_is_the_decoder(model) -> None:
    assert model.get_decoder() is model.model.language_model
    assert model.get_input_embeddings() is model.model.language_model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    assert model.base_model is model.model


def test_encoders_run_without_a_graph(model, inputs) -> None:
    features = model.get_encoder_features(**audio_of(inputs))
    assert not features.speech_features.requires_grad
    assert not features.sound_features.requires_grad
    assert model.get_audio_features(**audio_of(inputs)).pooler_output.requires_grad


def test_tokens_without_audio_and_audio_without_tokens_are_refused(model, inputs) -> None:
    input_ids, audio = inputs["input_ids"], audio_of(inputs)
    count = int((input_ids == model.config.audio_token_id).sum())
    with pytest.raises(ValueError, match=f"holds {count} audio tokens, but no audio was given"):
        model(input_ids=input_ids)
    with pytest.raises(ValueError, match=f"0 audio tokens in `input_ids`, {count} audio features"):
        model(input_ids=input_ids.clamp(max=100), **audio)
    position = int((input_ids[1] == model.config.audio_token_id).nonzero()[0])
    fewer = input_ids.clone()
    fewer[1, position] = 5
    with pytest.raises(ValueError, match=f"{count - 1} audio tokens in `input_ids`, {count} audio features"):
        model(input_ids=fewer, **audio)


def test_an_audio_token_in_a_decoding_step_requires_no_audio(model) -> None:
    cache = DynamicCache(config=model.config.text_config)
    model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)
    output = model(input_ids=torch.tensor([[model.config.audio_token_id]]), past_key_values=cache, use_cache=True)
    assert output.logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_has_the_name_of_either_version_of_transformers(model, name: str) -> None:
    cache = DynamicCache(config=model.config.text_config)
    first = model(input_ids=torch.tensor([[5, 6]]), use_cache=True, **{name: cache})
    assert first[CACHE] is cache
    assert first.past_key_values is cache
    second = model(input_ids=torch.tensor([[7]]), use_cache=True, **{name: cache})
    assert cache.get_seq_length() == 3
    expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(second.logits[:, -1], expected[:, -1])


@torch.no_grad()
def test_embeddings_may_replace_ids(model, inputs) -> None:
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["attention_mask"]
    by_embeddings = model(inputs_embeds=embeddings, attention_mask=mask, **audio_of(inputs)).logits
    torch.testing.assert_close(by_embeddings, model(**inputs).logits)
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model(input_ids=inputs["input_ids"], inputs_embeds=embeddings)
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model(attention_mask=mask)


def test_features_of_the_wrong_size_are_refused(model, inputs) -> None:
    audio = audio_of(inputs)
    with pytest.raises(ValueError, match=r"`input_features` has the shape \(3, 128, 3000\).*\(chunks, 80, 3000\)"):
        model.get_audio_features(**{**audio, "input_features": torch.zeros(3, 128, 3000)})
    with pytest.raises(ValueError, match=r"`input_features` has the shape \(3, 80, 2000\)"):
        model.get_audio_features(**{**audio, "input_features": torch.zeros(3, 80, 2000)})
    with pytest.raises(ValueError, match="`sound_input_values` is missing"):
        model.get_audio_features(audio["input_features"], audio["input_features_mask"])
    features = model.get_encoder_features(**audio)
    with pytest.raises(ValueError, match=r"`speech_features` has the shape .*, 15\), but \(chunks, frames, 16\)"):
        model.get_audio_features(**features._replace(speech_features=features.speech_features[..., 1:])._asdict())
    with pytest.raises(ValueError, match=r"`sound_features` has the shape .*, 15\), but \(chunks, frames, 16\)"):
        model.get_audio_features(**features._replace(sound_features=features.sound_features[..., 1:])._asdict())
    with pytest.raises(ValueError, match="no sound features were given"):
        model.get_audio_features(**features._replace(sound_features=None)._asdict())


def test_audio_and_features_exclude_one_another(model, inputs) -> None:
    features = model.get_encoder_features(**audio_of(inputs))
    with pytest.raises(ValueError, match="got both"):
        model(**inputs, **features._asdict())
    with pytest.raises(ValueError, match="`speech_features` was given without `audio_features_mask`"):
        model.get_audio_features(**features._replace(audio_features_mask=None)._asdict())
    with pytest.raises(ValueError, match="got neither"):
        model.get_audio_features()


def test_sound_for_a_model_without_a_sound_encoder_is_refused(make_model, inputs) -> None:
    with pytest.raises(ValueError, match="the model has no sound encoder"):
        make_model(sound=False)(**inputs)


def test_audio_without_a_known_audio_token_is_refused(make_model, inputs) -> None:
    model = make_model(sound=True)
    model.config.audio_token_id = None
    with pytest.raises(ValueError, match=r"`config\.audio_token_id` is not set"):
        model(**inputs)


def test_a_model_built_from_its_configuration_accepts_audio(plain_config) -> None:
    """transformers' tests build models from a configuration only."""
    model = place(AudioListenForCausalLM(plain_config(sound=True)).eval())
    assert isinstance(model.model.sound_tower, BeatsModel)
    projector, scale = model.model.multi_modal_projector, model.config.qformer_config.hidden_size**-0.5
    assert 0.8 < projector.linear.weight.std() / scale < 1.2
    assert 0.5 < projector.query_tokens.std() / scale < 1.5
    assert 0.8 < projector.qformer.encoder.layer[0].attention.attention.query.weight.std() / scale < 1.2
    input_ids = torch.tensor([[4, 299, 299, 5]])
    audio = {"input_features": torch.zeros(1, 80, 3000), "input_features_mask": torch.arange(3000)[None] < 60}
    output = model(input_ids, **audio, sound_input_values=torch.zeros(1, 60, 128))
    assert output.logits.shape == (1, 4, 300)
