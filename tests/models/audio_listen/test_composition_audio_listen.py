import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperModel,
)

from peft_listen import AudioListenForCausalLM, AudioListenModel, AudioListenProcessor, BeatsModel


QFORMER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def model(published_parts) -> AudioListenForCausalLM:
    torch.manual_seed(3)
    return AudioListenForCausalLM.from_sub_models_pretrained(**published_parts, qformer_config=QFORMER)


@pytest.fixture(scope="module")
def processor(published_parts) -> AudioListenProcessor:
    return AudioListenProcessor.from_sub_models_pretrained(**published_parts)


@pytest.fixture(scope="module")
def inputs(processor, clip):
    text = ["<|audio|> What is said?", "the<|audio|>quick<|audio|>fox"]
    return processor(text=text, audio=[clip(1.0, 1), clip(0.4, 2), clip(1.5, 3)], sampling_rate=16000)


def test_the_parts_have_the_weights_of_their_checkpoints(model, published_parts) -> None:
    whisper = WhisperModel.from_pretrained(published_parts["speech"]).encoder
    beats = BeatsModel.from_pretrained(published_parts["sound"])
    llm = AutoModelForCausalLM.from_pretrained(published_parts["llm"])
    for part, expected in (
        (model.model.speech_tower, whisper),
        (model.model.sound_tower, beats),
        (model.model.language_model.layers, llm.model.layers),
    ):
        weights = part.state_dict()
        assert weights.keys() == expected.state_dict().keys()
        assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
    assert model.generation_config.eos_token_id == llm.generation_config.eos_token_id
    assert not model.training


def test_the_vocabulary_grows_by_the_audio_token_only(model, processor, published_parts) -> None:
    llm = AutoModelForCausalLM.from_pretrained(published_parts["llm"])
    size = llm.config.vocab_size
    assert model.config.audio_token_id == processor.audio_token_id == size
    assert model.config.text_config.vocab_size == size + 1
    for enlarged, original in (
        (model.get_input_embeddings().weight, llm.get_input_embeddings().weight),
        (model.lm_head.weight, llm.lm_head.weight),
    ):
        torch.testing.assert_close(enlarged[:size], original)
        torch.testing.assert_close(enlarged[size], original.mean(0))
    processor.check_config(model.config)


@pytest.mark.parametrize("audio_scale", [1.0, 8.0])
def test_the_embeddings_of_a_new_projector_have_the_scale_that_is_asked_for(published_parts, audio_scale) -> None:
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        **published_parts, qformer_config=QFORMER, audio_scale=audio_scale
    )
    frames = torch.randn(64, 51, model.config.speech_config.hidden_size, generator=torch.Generator().manual_seed(0))
    sound = torch.randn(64, 51, model.config.sound_config.hidden_size, generator=torch.Generator().manual_seed(1))
    embeddings = model.model.multi_modal_projector(frames, sound)
    text = model.get_input_embeddings().weight.detach()
    assert float(embeddings.detach().pow(2).mean() / text.pow(2).mean()) == pytest.approx(audio_scale**2, rel=0.5)


@pytest.mark.parametrize("audio_scale", [0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(published_parts, audio_scale) -> None:
    with pytest.raises(ValueError, match="`audio_scale` must be a positive number"):
        AudioListenForCausalLM.from_sub_models_pretrained(**published_parts, audio_scale=audio_scale)


def test_a_vocabulary_with_spare_rows_is_not_enlarged(published_parts, make_llm, make_tokenizer) -> None:
    llm = make_llm("llama")
    llm.resize_token_embeddings(320, mean_resizing=False)
    parts = {**published_parts, "llm": llm}
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        **parts, tokenizer=make_tokenizer(), qformer_config=QFORMER, audio_token="<sound>"
    )
    assert model.config.text_config.vocab_size == 320
    assert model.config.audio_token_id == 300


@torch.no_grad()
def test_parts_may_be_models(published_parts, make_tokenizer, model, inputs) -> None:
    torch.manual_seed(3)
    tokenizer = make_tokenizer()
    again = AudioListenForCausalLM.from_sub_models_pretrained(
        speech=WhisperModel.from_pretrained(published_parts["speech"]).encoder,
        sound=BeatsModel.from_pretrained(published_parts["sound"]),
        llm=AutoModelForCausalLM.from_pretrained(published_parts["llm"]),
        tokenizer=tokenizer,
        qformer_config=QFORMER,
    )
    assert tokenizer.convert_tokens_to_ids("<|audio|>") == again.config.audio_token_id
    again.model.multi_modal_projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_the_sound_encoder_may_be_an_original_checkpoint(published_parts, clip) -> None:
    checkpoint = Path(__file__).parents[2] / "fixtures" / "beats" / "iter3plus.pt"
    parts = {**published_parts, "sound": checkpoint}
    model = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)
    processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
    inputs = processor(text="<|audio|>fox", audio=clip(1.0), sampling_rate=16000)
    expected = BeatsModel.from_original_checkpoint(checkpoint)(inputs["sound_input_values"]).last_hidden_state
    audio = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model.get_encoder_features(**audio).sound_features, expected[:, :51])


def test_data_types_and_attention_are_passed_to_the_parts(published_parts) -> None:
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        **published_parts,
        qformer_config=QFORMER,
        dtype=torch.bfloat16,
        speech_kwargs={"dtype": torch.float32},
        llm_kwargs={"attn_implementation": "eager"},
    )
    assert {weight.dtype for weight in model.model.language_model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.model.sound_tower.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.model.speech_tower.parameters()} == {torch.float32}
    assert {weight.dtype for weight in model.model.multi_modal_projector.parameters()} == {torch.float32}
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.model.speech_tower.config._attn_implementation == "sdpa"
    assert model.config.text_config is model.model.language_model.config


@torch.no_grad()
def test_a_checkpoint_without_the_frozen_parts_loads_them_by_reference(
    model, inputs, published_parts, tmp_path
) -> None:
    model.save_pretrained(tmp_path, save_frozen=False)
    weights = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[1] for name in weights} == {"multi_modal_projector"}
    references = json.loads((tmp_path / "config.json").read_text())["frozen_references"]
    assert {part: reference["name_or_path"] for part, reference in references.items()} == {
        "speech_tower": str(published_parts["speech"]),
        "sound_tower": str(published_parts["sound"]),
        "language_model": str(published_parts["llm"]),
    }
    assert model.config.frozen_references is None

    for loader in (AudioListenForCausalLM, AutoModelForCausalLM):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, AudioListenForCausalLM)
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
        assert {name.split(".")[1] for name, weight in loaded.named_parameters() if weight.requires_grad} == {
            "multi_modal_projector"
        }
    assert loaded.generation_config.suppress_tokens == [model.config.audio_token_id]
    assert loaded.generate(**inputs, max_new_tokens=4).tolist() == model.generate(**inputs, max_new_tokens=4).tolist()
    base = AudioListenModel.from_pretrained(tmp_path)
    assert isinstance(base, AudioListenModel)
    torch.testing.assert_close(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)

    loaded.save_pretrained(tmp_path / "again", save_frozen=False)
    again = AudioListenForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    loaded.save_pretrained(tmp_path / "whole")
    whole = AudioListenForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(whole(**inputs).logits, model(**inputs).logits)


def test_loading_by_reference_supports_the_usual_arguments(model, tmp_path) -> None:
    model.save_pretrained(tmp_path, save_frozen=False)
    loaded, info = AudioListenForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert {weight.dtype for weight in loaded.model.language_model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in loaded.model.multi_modal_projector.parameters()} == {torch.float32}
    assert loaded.config.text_config._attn_implementation == "eager"


@torch.no_grad()
def test_a_trained_part_is_saved_with_its_weights(published_parts, clip, processor, tmp_path) -> None:
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        **published_parts, qformer_config=QFORMER, freeze_language_model=False
    )
    model.lm_head.weight.add_(1.0)
    model.save_pretrained(tmp_path, save_frozen=False)
    assert set(json.loads((tmp_path / "config.json").read_text())["frozen_references"]) == {
        "speech_tower",
        "sound_tower",
    }
    loaded = AudioListenForCausalLM.from_pretrained(tmp_path)
    inputs = processor(text="<|audio|>fox", audio=clip(1.0), sampling_rate=16000)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_parts_can_be_loaded_from_a_new_location(model, inputs, published_parts, tmp_path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(published_parts["llm"], tmp_path / "llm")
    parts = {**published_parts, "llm": tmp_path / "llm"}
    other = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)
    other.save_pretrained(tmp_path / "saved", save_frozen=False)
    (tmp_path / "llm").rename(moved)
    with pytest.raises(OSError, match=r"saved without its `language_model`.*from_pretrained\(\.\.\., llm=\.\.\.\)"):
        AudioListenForCausalLM.from_pretrained(tmp_path / "saved")
    for llm in (moved, AutoModelForCausalLM.from_pretrained(moved)):
        loaded = AudioListenForCausalLM.from_pretrained(tmp_path / "saved", llm=llm)
        torch.testing.assert_close(loaded(**inputs).logits, other(**inputs).logits)
    loaded.save_pretrained(tmp_path / "saved again", save_frozen=False)
    AudioListenForCausalLM.from_pretrained(tmp_path / "saved again")


def test_a_part_that_differs_from_the_saved_one_is_refused(model, make_llm, tmp_path) -> None:
    model.save_pretrained(tmp_path, save_frozen=False)
    with pytest.raises(ValueError, match=r"`language_model`.*its `model_type` is gpt2, not llama"):
        AudioListenForCausalLM.from_pretrained(tmp_path, llm=make_llm("gpt2"))


def test_missing_weights_are_refused(model, tmp_path) -> None:
    weights = {name: weight for name, weight in model.state_dict().items() if "query_tokens" not in name}
    model.save_pretrained(tmp_path, save_frozen=False, state_dict=weights)
    with pytest.raises(ValueError, match=r"missing \['model\.multi_modal_projector\.query_tokens'\], unexpected \[\]"):
        AudioListenForCausalLM.from_pretrained(tmp_path)


def test_parts_without_a_checkpoint_cannot_be_left_out(make_model, tmp_path) -> None:
    with pytest.raises(ValueError, match="leaves out `speech_tower`, but it was not loaded from a checkpoint"):
        make_model().save_pretrained(tmp_path, save_frozen=False)


def test_a_model_with_a_quantized_language_model_is_saved_only_by_reference(published_parts, tmp_path) -> None:
    model = AudioListenForCausalLM.from_sub_models_pretrained(**published_parts, qformer_config=QFORMER)
    quantizer = model.hf_quantizer = object()
    with pytest.raises(ValueError, match="Save it with `save_frozen=False`"):
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, save_frozen=False)
    assert model.hf_quantizer is quantizer
    AudioListenForCausalLM.from_pretrained(tmp_path)


def test_parts_of_a_complete_checkpoint_cannot_be_replaced(model, published_parts, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="contains all parts"):
        AudioListenForCausalLM.from_pretrained(tmp_path, llm=published_parts["llm"])


def test_parts_of_the_wrong_kind_are_refused(published_parts, make_tokenizer) -> None:
    build = AudioListenForCausalLM.from_sub_models_pretrained
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ValueError, match=r"`speech` must be a Whisper checkpoint, but .* holds a llama model"):
        build(speech=published_parts["llm"], llm=published_parts["llm"])
    with pytest.raises(ValueError, match="`speech` must be a Whisper model, got a BertModel"):
        build(speech=bert, llm=published_parts["llm"])
    with pytest.raises(ValueError, match="`sound` must be a BEATs model, got a BertModel"):
        build(speech=published_parts["speech"], sound=bert, llm=published_parts["llm"])
    with pytest.raises(ValueError, match="`llm` must be a model of transformers, got a Linear"):
        build(speech=published_parts["speech"], llm=torch.nn.Linear(1, 1), tokenizer=make_tokenizer())
    with pytest.raises(ValueError, match="T5Config is of an encoder-decoder model"):
        t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))
        build(speech=published_parts["speech"], llm=t5, tokenizer=make_tokenizer())
    with pytest.raises(ValueError, match="`tokenizer` is needed if `llm` is a model"):
        build(speech=published_parts["speech"], llm=AutoModelForCausalLM.from_pretrained(published_parts["llm"]))
    with pytest.raises(OSError, match="`llm` cannot be loaded from 'nowhere/to-be-found'"):
        build(speech=published_parts["speech"], llm="nowhere/to-be-found")


def test_the_tokenizer_is_loaded_from_the_language_models_checkpoint(published_parts, processor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published_parts["llm"])
    assert len(tokenizer) == processor.audio_token_id
