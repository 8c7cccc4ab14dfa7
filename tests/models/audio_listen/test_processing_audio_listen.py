import json
import logging
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, AutoTokenizer, WhisperFeatureExtractor

from peft_listen import AudioListenProcessor, BeatsFeatureExtractor
from peft_listen.models.audio_listen.audio_tokens import num_audio_windows, num_encoder_frames


AUDIO = "<|audio|>"


@pytest.fixture(scope="module")
def processor(make_processor) -> AudioListenProcessor:
    return make_processor(sound=True)


@pytest.fixture(scope="module")
def wav(tmp_path_factory, clip) -> Path:
    """One second of 16-bit stereo at 8 kHz."""
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    samples = (clip(1.0)[::2] * 32767).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.repeat(samples, 2).tobytes())
    return path


def count(processor: AudioListenProcessor, inputs: dict) -> list[int]:
    return (inputs["input_ids"] == processor.audio_token_id).sum(-1).tolist()


def test_each_placeholder_is_repeated_once_per_embedding_of_its_clip(processor, clip) -> None:
    text = [f"{AUDIO}What is{AUDIO}said?", "the lazy dog", f"fox{AUDIO}"]
    inputs = processor(text=text, audio=[clip(1.0), clip(0.2), clip(2.0)], sampling_rate=16000)
    assert count(processor, inputs) == [3 + 1, 0, 6]
    row = inputs["input_ids"][0].tolist()
    audio = processor.audio_token_id
    words = [processor.tokenizer(part)["input_ids"] for part in ("What is", "said?")]
    assert row == [audio] * 3 + words[0] + [audio] + words[1]
    assert inputs["input_features"].shape == (3, 80, 3000)
    assert inputs["input_features_mask"].sum(-1).tolist() == [100, 20, 200]
    assert inputs["sound_input_values"].shape == (3, 198, 128)
    assert inputs["sound_attention_mask"].sum(-1).tolist() == [98, 18, 198]
    assert "num_audio_tokens" not in inputs


@pytest.mark.parametrize(
    ("seconds", "chunks", "tokens"),
    [(0.05, 1, 1), (29.0, 1, 86), (30.0, 1, 88), (30.01, 2, 89), (31.0, 2, 91), (60.0, 2, 176), (95.0, 4, 279)],
)
@torch.no_grad()
def test_long_audio_is_split_into_chunks_and_never_truncated(
    make_model, processor, clip, seconds: float, chunks: int, tokens: int
) -> None:
    inputs = processor(text=AUDIO, audio=clip(seconds), sampling_rate=16000)
    assert inputs["input_features"].shape[0] == chunks
    assert count(processor, inputs) == [tokens]
    assert inputs["input_features_mask"].sum() == -(-round(seconds * 16000) // 160)
    assert make_model(sound=True)(**inputs).audio_hidden_states.shape[0] == tokens


@pytest.mark.parametrize("windows", [{"num_queries": 3}, {"window_length": 20, "window_stride": 12}])
@torch.no_grad()
def test_processor_and_model_agree_on_other_windows(make_model, make_processor, clip, windows) -> None:
    processor, model = make_processor(**windows), make_model(**windows)
    inputs = processor(text=AUDIO * 2, audio=[clip(1.0), clip(31.0)], sampling_rate=16000)
    assert model(**inputs).audio_hidden_states.shape[0] == count(processor, inputs)[0]
    expected = {"num_queries": 3 * (3 + 91)}.get(next(iter(windows)), 5 + 124 + 5)
    assert count(processor, inputs) == [expected]


@given(num_samples=st.integers(800, 1_600_000))
@settings(max_examples=100, deadline=None)
def test_placeholders_equal_encoder_outputs_for_any_length(num_samples: int) -> None:
    """The number of audio tokens of a clip in the processor, and in the model from the mask of its chunks."""
    chunks = [min(480_000, num_samples - start) for start in range(0, num_samples, 480_000)]
    mask = torch.tensor([[-(-length // 160)] for length in chunks])
    windows = num_audio_windows(num_encoder_frames(mask), 17, 17, 1500)
    covered = sum(min(88, -(-length // (17 * 320))) for length in chunks)
    assert int(windows.sum()) == covered


@torch.no_grad()
def test_a_clips_features_do_not_depend_on_the_batch(processor, clip) -> None:
    clips = [clip(0.7, 1), clip(3.0, 2), clip(30.3, 3)]
    batch = processor(text=AUDIO * 3, audio=clips, sampling_rate=16000)
    alone = processor(text=AUDIO, audio=clips[:1], sampling_rate=16000)
    torch.testing.assert_close(batch["input_features"][:1], alone["input_features"], atol=1e-6, rtol=0)
    length = alone["sound_input_values"].shape[1]
    assert torch.equal(batch["sound_input_values"][0, :length], alone["sound_input_values"][0])
    assert batch["sound_attention_mask"][0].sum() == length
    padding = batch["sound_input_values"][0, length:]
    torch.testing.assert_close(padding, torch.full_like(padding, processor.sound_feature_extractor.padding_value))


@pytest.mark.parametrize("windows", [{}, {"window_length": 20, "window_stride": 12, "num_queries": 2}])
@torch.no_grad()
def test_the_tokens_of_a_clip_can_be_counted_from_its_stored_features(
    make_model, make_processor, clip, windows
) -> None:
    model, processor = make_model(**windows), make_processor(**windows)
    clips = [clip(0.7, 1), clip(30.4, 2)]
    assert [processor.num_chunks(len(samples)) for samples in clips] == [1, 2]
    features = model.get_encoder_features(**processor(audio=clips, sampling_rate=16000))
    counts = count(processor, processor(text=[AUDIO, AUDIO], audio=clips, sampling_rate=16000))
    for mask, expected in zip(features.audio_features_mask.split([1, 2]), counts, strict=True):
        assert processor.num_audio_tokens(mask.sum(-1)) == expected
    assert processor.num_frames_needed(features.audio_features_mask.sum(-1)) == features.speech_features.shape[1]


def test_padding_the_waveforms_of_a_batch_together_is_optional(make_processor, clip) -> None:
    clips = [clip(0.7, 1), clip(3.0, 2)]
    inputs = make_processor(sound=True, group_sound_by_length=False)(text=AUDIO * 2, audio=clips, sampling_rate=16000)
    expected = BeatsFeatureExtractor()(clips, sampling_rate=16000, return_tensors="pt")
    assert torch.equal(inputs["sound_input_values"], expected["input_values"])
    assert torch.equal(inputs["sound_attention_mask"], expected["attention_mask"])


def test_features_are_those_of_whisper_and_beats(processor, clip) -> None:
    audio = clip(1.3)
    inputs = processor(text=AUDIO, audio=audio, sampling_rate=16000)
    whisper = WhisperFeatureExtractor()(audio, sampling_rate=16000, return_tensors="pt")
    beats = BeatsFeatureExtractor()(audio, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(inputs["input_features"], whisper["input_features"])
    assert torch.equal(inputs["sound_input_values"], beats["input_values"])


def test_all_types_and_sampling_rates_of_audio_are_accepted(processor, wav, clip) -> None:
    samples = clip(1.0)
    with wave.open(str(wav)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16).reshape(-1, 2)
    sources = [str(wav), wav, wav.read_bytes(), {"path": str(wav)}, {"array": pcm, "sampling_rate": 8000}]
    expected = processor(text=AUDIO, audio=str(wav))["input_features"]
    for source in sources:
        inputs = processor(text=AUDIO, audio=[source])
        torch.testing.assert_close(inputs["input_features"], expected, atol=1e-3, rtol=0)
        assert count(processor, inputs) == [3]
    for bare in (samples, torch.from_numpy(samples), samples.tolist(), (samples * 32767).astype(np.int16)):
        inputs = processor(text=AUDIO, audio=bare, sampling_rate=16000)
        assert count(processor, inputs) == [3]


def test_clips_may_be_listed_per_prompt(processor, clip) -> None:
    text = [AUDIO * 2, "fox", AUDIO]
    clips = [clip(1.0, 1), clip(0.2, 2), clip(2.0, 3)]
    flat = processor(text=text, audio=clips, sampling_rate=16000)
    nested = processor(text=text, audio=[clips[:2], [], clips[2:]], sampling_rate=16000)
    for name, tensor in flat.items():
        assert torch.equal(nested[name], tensor)


def test_text_only_gives_no_audio_inputs(processor) -> None:
    for audio in (None, [], [[], []]):
        inputs = processor(text=["the lazy dog", "fox"], audio=audio)
        assert set(inputs) == {"input_ids", "attention_mask"}


def test_batches_are_padded_on_the_left_by_default(processor) -> None:
    text = ["the lazy dog jumps over the quick brown fox", "fox"]
    assert processor(text=text)["attention_mask"][1, 0] == 0
    assert processor(text=text, padding_side="right")["attention_mask"][1, 0] == 1
    assert processor(text=text, text_kwargs={"padding_side": "right"})["attention_mask"][1, 0] == 1
    assert processor(text=text)["attention_mask"][1, 0] == 0


def test_silence_is_encoded_as_audio(processor) -> None:
    inputs = processor(text=AUDIO, audio=np.zeros(16000, dtype=np.float32), sampling_rate=16000)
    assert count(processor, inputs) == [3]
    assert all(tensor.isfinite().all() for tensor in inputs.values() if tensor.is_floating_point())


def test_mismatched_counts_are_refused_with_both_numbers(processor, clip) -> None:
    clips = [clip(0.2), clip(0.2)]
    with pytest.raises(ValueError, match=r"Found total 1 <\|audio\|> tokens and 2 audio inputs"):
        processor(text=AUDIO, audio=clips, sampling_rate=16000)
    with pytest.raises(ValueError, match=r"Found total 3 <\|audio\|> tokens and 2 audio inputs"):
        processor(text=[AUDIO, AUDIO * 2], audio=clips, sampling_rate=16000)
    with pytest.raises(ValueError, match=r"Found total 0 <\|audio\|> tokens and 2 audio inputs"):
        processor(text="What is said?", audio=clips, sampling_rate=16000)
    with pytest.raises(ValueError, match=r"Found 1 <\|audio\|> tokens in the text but no audio inputs"):
        processor(text=AUDIO)
    with pytest.raises(ValueError, match=r"Prompt 1 has 2 <\|audio\|> placeholders, but 1 clips were given"):
        processor(text=[AUDIO, AUDIO * 2], audio=[clips[:1], clips[:1]], sampling_rate=16000)
    with pytest.raises(ValueError, match="Got 1 lists of clips for 2 prompts"):
        processor(text=[AUDIO, AUDIO], audio=[clips], sampling_rate=16000)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(0, dtype=np.float32), "empty"),
        (np.array([0.0, np.nan] * 800, dtype=np.float32), "NaN or infinite"),
        (np.array([0.0, np.inf] * 800, dtype=np.float32), "NaN or infinite"),
    ],
)
def test_empty_and_damaged_clips_are_refused_by_number(processor, clip, bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"Clip 1 of 2: .*{message}"):
        processor(text=[AUDIO, AUDIO], audio=[clip(0.2), bad], sampling_rate=16000)


def test_an_unknown_sampling_rate_is_refused(processor, clip) -> None:
    with pytest.raises(ValueError, match=r"Clip 0 of 1: .*sampling_rate"):
        processor(text=AUDIO, audio=clip(0.2))


def test_a_missing_file_is_refused(processor) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        processor(text=AUDIO, audio="nowhere.wav")


def test_other_modalities_and_tensor_types_are_refused(processor, clip) -> None:
    with pytest.raises(ValueError, match="takes text and audio only"):
        processor.prepare_inputs_layout(images=[1], text="a")
    with pytest.raises(ValueError, match=r"`return_tensors` must be 'pt' .* or 'np' .*, got 'tf'"):
        processor(text="a", return_tensors="tf")


def test_numpy_arrays_are_returned_on_request(processor, clip) -> None:
    inputs = processor(text=AUDIO, audio=clip(1.0), sampling_rate=16000)
    arrays = processor(text=AUDIO, audio=clip(1.0), sampling_rate=16000, return_tensors="np")
    assert arrays.keys() == inputs.keys()
    for name, array in arrays.items():
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, inputs[name].cpu().numpy())


def test_truncating_audio_tokens_is_refused(processor, clip) -> None:
    with pytest.raises(ValueError, match="Mismatch in `audio` token count"):
        processor(text=AUDIO + "fox", audio=clip(3.0), sampling_rate=16000, truncation=True, max_length=4)


def test_a_limit_on_the_length_warns_about_the_dropped_part(make_processor, clip, caplog) -> None:
    processor = make_processor(max_audio_seconds=2.0)
    logging.getLogger("peft_listen").propagate = True
    with caplog.at_level("WARNING"):
        inputs = processor(text=AUDIO * 2, audio=[clip(1.9), clip(3.5)], sampling_rate=16000)
    assert inputs["input_features_mask"].sum(-1).tolist() == [190, 200]
    assert [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()] == [
        "Clip 1 lasts 3.50 s: its last 1.50 s are dropped, because `max_audio_seconds` is 2."
    ]
    with pytest.raises(ValueError, match="`max_audio_seconds` must be positive, got -1"):
        make_processor(max_audio_seconds=-1)


@pytest.mark.parametrize("sound", [False, True])
def test_processors_survive_saving_and_loading(make_processor, clip, tmp_path, sound: bool) -> None:
    processor = make_processor(sound=sound, window_length=20, num_queries=2, max_audio_seconds=100.0)
    processor.save_pretrained(tmp_path)
    for loader in (AudioListenProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, AudioListenProcessor)
        assert (loaded.sound_feature_extractor is None) == (not sound)
        assert loaded.to_dict() == processor.to_dict()
        assert loaded.chat_template == processor.chat_template
        expected = processor(text=[AUDIO, "fox"], audio=clip(1.0), sampling_rate=16000)
        inputs = loaded(text=[AUDIO, "fox"], audio=clip(1.0), sampling_rate=16000)
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "processor_config.json").read_text())["window_length"] == 20


def test_model_input_names_are_the_names_of_the_outputs(processor, make_processor, clip) -> None:
    assert set(processor(text=AUDIO, audio=clip(0.2), sampling_rate=16000)) <= set(processor.model_input_names)
    assert "sound_input_values" not in make_processor().model_input_names


def test_tokens_are_decoded_by_the_tokenizer(processor) -> None:
    ids = processor(text="the lazy dog")["input_ids"]
    assert processor.batch_decode(ids) == ["the lazy dog"]
    assert processor.decode(ids[0]) == "the lazy dog"


def test_a_processor_and_a_model_that_do_not_fit_are_refused(make_model, make_processor, tmp_path) -> None:
    make_model().save_pretrained(tmp_path)
    make_processor(window_length=20).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its `window_length` is 20, the model's configuration says 17"):
        AudioListenProcessor.from_pretrained(tmp_path)
    processor = make_processor()
    processor.check_config(make_model().config)
    with pytest.raises(ValueError, match="the model has a sound encoder's part, the processor has none"):
        processor.check_config(make_model(sound=True).config)
    with pytest.raises(ValueError, match="the processor has a sound encoder's part, the model has none"):
        make_processor(sound=True).check_config(make_model().config)
    processor.audio_token_id += 1
    with pytest.raises(ValueError, match="its `audio_token_id` is 301, the model's configuration says 300"):
        processor.check_config(make_model().config)


def test_a_tokenizer_without_the_audio_token_is_refused(make_tokenizer) -> None:
    with pytest.raises(ValueError, match=r"does not know the audio token '<\|audio\|>'"):
        AudioListenProcessor(WhisperFeatureExtractor(), make_tokenizer())


def test_a_tokenizer_without_a_padding_token_pads_with_its_eos_token(make_tokenizer) -> None:
    tokenizer = make_tokenizer(pad_token=None)
    assert tokenizer.pad_token is None
    processor = AudioListenProcessor.from_sub_models_pretrained(speech=WhisperFeatureExtractor(), llm=tokenizer)
    assert processor.tokenizer.pad_token == "</s>"
    assert processor(text=["the lazy dog", "fox"])["attention_mask"][1, 0] == 0


def test_processors_are_built_from_the_parts_of_the_model(published_parts, clip) -> None:
    processor = AudioListenProcessor.from_sub_models_pretrained(**published_parts, num_queries=2)
    assert isinstance(processor.sound_feature_extractor, BeatsFeatureExtractor)
    assert processor.audio_token_id == len(AutoTokenizer.from_pretrained(published_parts["llm"]))
    inputs = processor(text=AUDIO, audio=clip(1.0), sampling_rate=16000)
    assert count(processor, inputs) == [6]
    parts = {name: part for name, part in published_parts.items() if name != "sound"}
    assert AudioListenProcessor.from_sub_models_pretrained(**parts).sound_feature_extractor is None
