"""
Invalid input raises an error of the right type and message at every entry point; unusual but valid input (silence, one
sample, full scale, mixed types) is accepted.

The tests of each module cover its errors in detail; this is the list from a user's view.
"""

import json
import os
import pickle
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import peft
import pytest
import soundfile
import torch
from packaging.version import Version
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

from peft_listen import (
    AudioListenForCausalLM,
    AudioListenModel,
    AudioListenProcessor,
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
    BeatsModel,
    load_audio,
)
from peft_listen.data import check_examples
from peft_listen.models.beats.convert_beats_original_checkpoint import to_original_checkpoint
from peft_listen.training import AudioListenCollator, FeatureCache
from peft_listen_cli import main


SAMPLING_RATE = 16_000
TONE = (0.3 * np.sin(np.arange(8_000) / 10)).astype("f4")


def samples(array, sampling_rate=SAMPLING_RATE):
    return {"array": array, "sampling_rate": sampling_rate}


def with_one(value):
    return np.concatenate([TONE, np.array([value], "f4")])


# Description of the defect -> (clip, error type, pattern of the message). Strings are names of files, which `folder`
# creates, and URLs on a server for these files.
BAD_CLIPS = {
    "empty": (samples(np.zeros(0, "f4")), ValueError, r"the audio is empty \(0 samples\)"),
    "NaN": (samples(with_one(np.nan)), ValueError, "1 of 8001 audio samples are NaN or infinite"),
    "Inf": (samples(with_one(-np.inf)), ValueError, "1 of 8001 audio samples are NaN or infinite"),
    "16 bit in floats": (samples(TONE * 32768), ValueError, r"the largest sample is 9830.*divide them by their full"),
    "beyond float32": (samples(with_one(0).astype("f8") * 1e300), ValueError, "NaN or infinite"),
    "64 bit integers": (samples(np.arange(9)), ValueError, "samples of dtype int64 are not supported"),
    "unsigned 16 bit": (samples(np.zeros(9, "u2")), ValueError, "samples of dtype uint16 are not supported"),
    "complex numbers": (samples(TONE * 1j), ValueError, "samples of dtype complex"),
    "a gap in a list": (samples([0.1, None]), ValueError, "samples of dtype object are not supported"),
    "many channels": (samples(np.zeros((9, 10))), ValueError, r"samples of shape \(9, 10\) are not one clip"),
    "unknown rate": (samples(TONE, None), ValueError, "the sampling rate of these samples is unknown"),
    "rate of 0": (samples(TONE, 0), ValueError, "the sampling rate 0 is invalid. Expected .* between 1000"),
    "negative rate": (samples(TONE, -16_000), ValueError, "the sampling rate -16000 is invalid"),
    "rate in kHz": (samples(TONE, 16), ValueError, "the sampling rate 16 is invalid"),
    "rate as text": (samples(TONE, "16000"), ValueError, "the sampling rate '16000' is invalid"),
    "no audio in it": ({"path": None, "bytes": None}, ValueError, "contains no audio"),
    "empty file": ("empty.wav", OSError, r"empty\.wav is empty \(0 bytes\)"),
    "header alone": ("header.wav", ValueError, r"header\.wav: the audio is empty \(0 samples\)"),
    "file with NaN": ("nan.wav", ValueError, r"nan\.wav: 1 of 2 audio samples are NaN"),
    "truncated WAV": ("cut.wav", OSError, r"cut\.wav is truncated: \d+ bytes of audio .* are missing"),
    "truncated FLAC": ("cut.flac", OSError, r"cut\.flac is a damaged or truncated FLAC file"),
    "text named .wav": ("text.wav", OSError, r"text\.wav is not an audio file .*its container is text"),
    "missing file": ("missing.wav", FileNotFoundError, r"missing\.wav: no such audio file"),
    "directory": ("folder.wav", IsADirectoryError, r"folder\.wav is a directory; expected an audio file"),
    "HTTP 404": (
        "http://HOST/missing.wav",
        OSError,
        r"http://.*/missing\.wav: the server answered with HTTP status 404",
    ),
    "text from a URL": ("http://HOST/text.wav", OSError, r"http://.*/text\.wav is not an audio file"),
    "no server": ("http://127.0.0.1:1/a.wav", OSError, r"http://127\.0\.0\.1:1/a\.wav: .* could not be downloaded"),
}

# Unusual but valid clips.
GOOD_CLIPS = {
    "silence": samples(np.zeros(8_000, "f4")),
    "digital silence in 16 bit": samples(np.zeros(8_000, "i2")),
    "one sample": samples(np.array([0.1], "f4")),
    "one sample of another rate": samples(np.array([0.1], "f4"), 96_000),
    "full scale of 16 bit": samples(np.array([-(2**15), 2**15 - 1] * 4_000, "i2")),
    "full scale of 32 bit": samples(np.array([-(2**31), 2**31 - 1] * 4_000, "i4")),
    "full scale of 8 bit": samples(np.array([0, 255] * 4_000, "u1")),
    "overdriven": samples(TONE * 6),
    "half precision": samples(TONE.astype("f2")),
    "double precision": samples(TONE.astype("f8")),
    "a list of mixed numbers": samples([0, 0.5, np.float32(-0.5), 1]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of `BAD_CLIPS`."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "header.wav", np.zeros(0), SAMPLING_RATE)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), SAMPLING_RATE, subtype="FLOAT")
    for name in ("cut.wav", "cut.flac"):
        soundfile.write(folder / name, TONE, SAMPLING_RATE)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    (folder / "text.wav").write_text("These are notes, and not sound.\n" * 10)
    (folder / "folder.wav").mkdir()
    return folder


@pytest.fixture(scope="module")
def host(folder):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def processor(composite_folder):
    return AutoProcessor.from_pretrained(composite_folder)


@pytest.fixture(scope="module")
def model(composite_folder):
    return AudioListenForCausalLM.from_pretrained(composite_folder).eval()


@pytest.fixture(scope="module")
def entries(pipe, model, processor, tmp_path_factory):
    """Functions that pass a clip to each entry point."""
    collator = AudioListenCollator(processor)
    cache = FeatureCache(tmp_path_factory.mktemp("features"), model)
    example = {"instruction": "What?", "answer": "a tone", "task": "sounds"}
    chat = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(chat, tokenize=False)
    return {
        "load_audio": load_audio,
        "processor": lambda source: processor(text=text, audio=[source]),
        "chat template": lambda source: processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "audio", "audio": source}]}], tokenize=True, return_dict=True
        ),
        "pipeline": lambda source: pipe(source, text="What?", max_new_tokens=2),
        "pipeline's batch": lambda source: pipe([samples(TONE), source], text="What?", max_new_tokens=2, batch_size=2),
        "collator": lambda source: collator([example | {"audio": samples(TONE)}, example | {"audio": source}]),
        "feature cache": lambda source: cache.build(model, processor, [source]),
    }


ENTRIES = ("load_audio", "processor", "chat template", "pipeline", "pipeline's batch", "collator", "feature cache")


@pytest.fixture
def without_ffmpeg(monkeypatch, tmp_path):
    """Hides the `ffmpeg` command, so that the result does not depend on the machine."""
    monkeypatch.setenv("PATH", str(tmp_path))


def find(name, folder, host):
    if not isinstance(name, str):
        return name
    return name.replace("HOST", host) if name.startswith("http") else str(folder / name)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", BAD_CLIPS)
def test_every_entry_point_refuses_an_invalid_clip(entries, folder, host, without_ffmpeg, entry, case):
    source, kind, message = BAD_CLIPS[case]
    with pytest.raises(kind, match=message) as caught:
        entries[entry](find(source, folder, host))
    assert caught.type is kind


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", GOOD_CLIPS)
def test_every_entry_point_accepts_an_unusual_clip(entries, entry, case):
    entries[entry](GOOD_CLIPS[case])


@pytest.mark.parametrize("case", [name for name, (source, *_) in BAD_CLIPS.items() if isinstance(source, str)])
def test_commands_explain_an_invalid_file_without_a_traceback(folder, host, without_ffmpeg, tmp_path, capsys, case):
    source, _, message = BAD_CLIPS[case]
    path = find(source, folder, host)
    assert main(["ask", path, "What?", "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("peft-listen: error: ") and re.search(message, error)
    example = {"audio": path, "instruction": "What?", "answer": "a tone", "task": "sounds"}
    (tmp_path / "data.jsonl").write_text(json.dumps(example))
    (problem,) = check_examples(tmp_path / "data.jsonl")
    assert problem.line == 1 and re.search(message, problem.message)
    assert main(["data", "check", str(tmp_path / "data.jsonl")]) == 1


class TestFeatureExtractors:
    @pytest.mark.parametrize("sampling_rate", [8_000, 44_100])
    def test_another_rate_than_the_encoders_is_refused(self, processor, sampling_rate):
        for extractor in (BeatsFeatureExtractor(), processor.feature_extractor):
            with pytest.raises(ValueError, match=r"16000.*[Pp]lease|16000 Hz"):
                extractor(TONE, sampling_rate=sampling_rate)


class TestPlaceholders:
    """Text and audio that do not match."""

    @pytest.mark.parametrize(("placeholders", "clips"), [(2, 1), (1, 2), (0, 1), (3, 2)])
    def test_more_or_fewer_placeholders_than_clips(self, processor, placeholders, clips):
        text = processor.audio_token * placeholders + "What?"
        with pytest.raises(
            ValueError, match=rf"Found total {placeholders} <\|audio\|> tokens and {clips} audio inputs"
        ):
            processor(text=text, audio=[TONE] * clips, sampling_rate=SAMPLING_RATE)
        with pytest.raises(ValueError, match=rf"Prompt 0 has {placeholders} .* placeholders, but {clips} clips"):
            processor(text=[text], audio=[[TONE] * clips], sampling_rate=SAMPLING_RATE)

    def test_placeholders_without_audio(self, processor):
        with pytest.raises(ValueError, match=r"Found 1 <\|audio\|> tokens in the text but no audio inputs"):
            processor(text=processor.audio_token + "What?")

    def test_a_placeholder_in_a_question(self, pipe, processor):
        with pytest.raises(ValueError, match="The chat has 2 audio tokens .* for 1 clips"):
            pipe(samples(TONE), text=f"What is {processor.audio_token}?")
        example = {"audio": samples(TONE), "instruction": f"What is {processor.audio_token}?", "answer": "a tone"}
        with pytest.raises(ValueError, match=r"contains the audio token <\|audio\|>"):
            AudioListenCollator(processor)([example])

    @pytest.fixture
    def inputs(self, processor):
        return processor(text=processor.audio_token + "What?", audio=TONE, sampling_rate=SAMPLING_RATE)

    @pytest.fixture(params=["forward", "generate"])
    def call(self, request, model):
        return model if request.param == "forward" else partial(model.generate, max_new_tokens=2)

    def test_placeholders_without_features(self, call, inputs):
        count = int((inputs["input_ids"] == 300).sum())
        with pytest.raises(ValueError, match=f"holds {count} audio tokens, but no audio was given. Pass the audio"):
            call(input_ids=inputs["input_ids"])

    def test_features_without_placeholders(self, call, inputs):
        inputs["input_ids"][inputs["input_ids"] == 300] = 5
        with pytest.raises(ValueError, match=r"0 audio tokens in `input_ids`, \d+ audio features"):
            call(**inputs)

    def test_one_placeholder_too_many(self, call, inputs):
        count = int((inputs["input_ids"] == 300).sum())
        inputs["input_ids"][0, -1] = 300
        with pytest.raises(ValueError, match=f"{count + 1} audio tokens in `input_ids`, {count} audio features"):
            call(**inputs)

    @pytest.mark.parametrize(("bins", "frames"), [(128, 3000), (80, 1500), (80, 3001)])
    def test_features_of_another_size(self, call, inputs, bins, frames):
        inputs["input_features"] = torch.zeros(1, bins, frames)
        message = rf"`input_features` has the shape \(1, {bins}, {frames}\), but .* \(chunks, 80, 3000\)"
        with pytest.raises(ValueError, match=message):
            call(**inputs)

    def test_features_of_encoders_of_another_size(self, call, inputs):
        features = {"speech_features": torch.zeros(1, 51, 20), "audio_features_mask": torch.ones(1, 51)}
        with pytest.raises(
            ValueError, match=r"`speech_features` has the shape \(1, 51, 20\), but .*16\) was expected"
        ):
            call(input_ids=inputs["input_ids"], **features)

    def test_mixed_types_give_the_same_answer(self, model, processor, inputs):
        expected = model(**inputs).logits
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            mixed = dict(inputs, input_features=inputs["input_features"].to(dtype))
            mixed |= {name: inputs[name].bool() for name in ("attention_mask", "input_features_mask")}
            torch.testing.assert_close(model(**mixed).logits, expected, atol=5e-2, rtol=0)
        text = [processor.audio_token + "What?"] * 2
        integers = np.round(TONE * 32767).astype("i2")
        mixed = processor(text=text, audio=[TONE.astype("f8"), integers], sampling_rate=SAMPLING_RATE)
        floats = processor(text=text, audio=[TONE, integers / np.float32(32768)], sampling_rate=SAMPLING_RATE)
        torch.testing.assert_close(model(**mixed).logits, model(**floats).logits, atol=1e-5, rtol=0)

    def test_token_ids_that_are_not_integers(self, model, inputs):
        with pytest.raises(RuntimeError, match="FloatTensor"):
            model(**dict(inputs, input_ids=inputs["input_ids"].float()))


class TestCheckpoints:
    """Files and folders of another kind than expected."""

    @pytest.mark.parametrize("model_class", [AudioListenForCausalLM, AudioListenModel])
    def test_a_checkpoint_of_another_model(self, published_parts, model_class):
        for part, name in (("llm", "llama"), ("speech", "whisper"), ("sound", "beats")):
            with pytest.raises(ValueError, match=f"checkpoint of a '{name}' model, but AudioListenConfig needs"):
                model_class.from_pretrained(published_parts[part])

    @pytest.mark.parametrize("model_class", [BeatsModel, BeatsForAudioClassification])
    def test_a_checkpoint_that_is_not_beats(self, published_parts, model_class):
        with pytest.raises(ValueError, match="checkpoint of a 'llama' model, but BeatsConfig needs one of a 'beats'"):
            model_class.from_pretrained(published_parts["llm"])

    def test_swapped_parts(self, published_parts):
        speech, sound, llm = (published_parts[name] for name in ("speech", "sound", "llm"))
        build = AudioListenForCausalLM.from_sub_models_pretrained
        with pytest.raises(ValueError, match="`speech` must be a Whisper checkpoint, but .* holds a beats model"):
            build(speech=sound, llm=llm)
        with pytest.raises(ValueError, match="`sound` must be a BEATs checkpoint, but .* holds a whisper model"):
            build(speech=speech, sound=speech, llm=llm)
        with pytest.raises(ValueError, match="BeatsConfig.* for this kind of AutoModel: AutoModelForCausalLM"):
            build(speech=speech, llm=sound)

    def test_a_pipeline_of_another_model(self, published_parts):
        with pytest.raises(TypeError, match="you specified correct pipeline task for the model"):
            pipeline("audio-text-to-text", model=str(published_parts["llm"]))
        with pytest.raises(ValueError, match="Could not load model"):
            pipeline("audio-text-to-text", model=str(published_parts["sound"]))

    def test_a_processor_of_another_model(self, published_parts):
        with pytest.raises(OSError, match="feature extractor"):
            AudioListenProcessor.from_pretrained(published_parts["llm"])

    @pytest.mark.skipif(
        Version(peft.__version__) < Version("0.21"), reason="PEFT below 0.21 has no hook before it loads the weights"
    )
    def test_an_adapter_of_another_model(self, model, published_parts, make_adapted, tmp_path):
        make_adapted("listen").save_pretrained(tmp_path)
        llm = AutoModelForCausalLM.from_pretrained(published_parts["llm"])
        with pytest.raises(ValueError, match="The adapter was made for another architecture: its prompts are at"):
            PeftModel.from_pretrained(llm, tmp_path)

    @pytest.mark.parametrize("part", ["speech", "sound"])
    def test_an_encoder_with_missing_keys(self, published_parts, tmp_path, part):
        folder = tmp_path / part
        folder.mkdir()
        for file in published_parts[part].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = load_file(folder / "model.safetensors")
        missing = next(name for name in sorted(weights) if "encoder.layers.0.fc1.weight" in name)
        del weights[missing]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        message = rf"`{part}`: .*{part} lacks 1 of the encoder's weights: encoder\.layers\.0\.fc1\.weight\. Get"
        with pytest.raises(ValueError, match=message):
            AudioListenForCausalLM.from_sub_models_pretrained(**{**published_parts, part: folder})

    @pytest.fixture
    def original_beats(self, beats_config, tmp_path):
        """An original checkpoint as a dictionary, and a function that writes it and returns its path."""
        to_original_checkpoint(BeatsModel(beats_config()), tmp_path / "beats.pt")
        checkpoint = torch.load(tmp_path / "beats.pt", weights_only=True)

        def write():
            torch.save(checkpoint, tmp_path / "beats.pt")
            return tmp_path / "beats.pt"

        return checkpoint, write

    def assert_refused(self, path, published_parts, tmp_path, capsys, kind, message):
        with pytest.raises(kind, match=message):
            BeatsModel.from_original_checkpoint(path)
        with pytest.raises(kind, match=message):
            AudioListenForCausalLM.from_sub_models_pretrained(**{**published_parts, "sound": path})
        assert main(["convert-beats", str(path), str(tmp_path / "converted")]) == 2
        assert "Traceback" not in capsys.readouterr().err
        assert not (tmp_path / "converted").exists()

    def test_a_beats_checkpoint_with_missing_keys(self, original_beats, published_parts, tmp_path, capsys):
        checkpoint, write = original_beats
        del checkpoint["model"]["layer_norm.weight"]
        message = r"(?s)weights of the original checkpoint do not fit.*1 missing: layer_norm\.weight"
        self.assert_refused(write(), published_parts, tmp_path, capsys, ValueError, message)

    @pytest.mark.parametrize("key", ["cfg", "model"])
    def test_a_beats_checkpoint_without_configuration_or_weights(
        self, original_beats, published_parts, tmp_path, capsys, key
    ):
        checkpoint, write = original_beats
        del checkpoint[key]
        message = r"beats\.pt' is not an original BEATs checkpoint: expected a dict with the dicts `cfg` and `model`"
        self.assert_refused(write(), published_parts, tmp_path, capsys, ValueError, message)

    def test_a_pickle_that_contains_code(self, original_beats, published_parts, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        checkpoint, write = original_beats
        checkpoint["cfg"]["label"] = Payload()
        message = r"beats\.pt' cannot be read .* pickled code, which is never run here"
        self.assert_refused(write(), published_parts, tmp_path, capsys, OSError, message)
        assert not (tmp_path / "harm").exists()

    def test_an_adapter_that_contains_code(self, model, make_adapted, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        make_adapted("listen").save_pretrained(tmp_path)
        weights = load_file("adapter_model.safetensors")
        os.remove("adapter_model.safetensors")
        torch.save({**weights, "more": Payload()}, "adapter_model.bin")
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            PeftModel.from_pretrained(AudioListenForCausalLM(model.config), tmp_path)
        assert not (tmp_path / "harm").exists()


class Payload:
    """Creates a folder when Python's own pickle module unpickles it."""

    def __reduce__(self):
        return os.mkdir, ("harm",)
