"""`limits`, the argument with which every entry point loads clips, and the clips that exceed them."""

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoProcessor, pipeline

from peft_listen import AudioListenForCausalLM, load_audio
from peft_listen.audio import AudioLimits, LimitError, set_default_limits
from peft_listen.data import check_examples
from peft_listen.training import AudioListenCollator, FeatureCache


SAMPLING_RATE = 16_000
TONE = (0.3 * np.sin(np.arange(SAMPLING_RATE) / 10)).astype("f4")  # 1 s
SHORT, LONG = AudioLimits(max_seconds=0.5), AudioLimits(max_seconds=1.0)


class AudioDecoder:
    """A decoder as that of torchcodec, without a declared length."""

    def get_all_samples(self):
        return type("Samples", (), {"data": torch.tensor(TONE)[None], "sample_rate": SAMPLING_RATE})


def wav_bytes():
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, SAMPLING_RATE, format="WAV")
    return buffer.getvalue()


# The same clip of one second in every form.
CLIPS = {
    "array": lambda: {"array": TONE, "sampling_rate": SAMPLING_RATE},
    "raw": lambda: {"raw": TONE, "sampling_rate": SAMPLING_RATE},
    "list": lambda: {"array": TONE.tolist(), "sampling_rate": SAMPLING_RATE},
    "tensor": lambda: {"array": torch.tensor(TONE), "sampling_rate": SAMPLING_RATE},
    "channels first": lambda: {"array": np.stack([TONE, TONE]), "sampling_rate": SAMPLING_RATE},
    "channels last": lambda: {"array": np.stack([TONE, TONE], axis=1), "sampling_rate": SAMPLING_RATE},
    "integers": lambda: {"array": (TONE * 32_767).astype("i2"), "sampling_rate": SAMPLING_RATE},
    "another rate": lambda: {"array": TONE[:11_025], "sampling_rate": 11_025},
    "decoder": AudioDecoder,
    "bytes": wav_bytes,
}


@pytest.fixture(scope="module")
def processor(composite_folder):
    return AutoProcessor.from_pretrained(composite_folder)


@pytest.fixture(scope="module")
def model(composite_folder):
    return AudioListenForCausalLM.from_pretrained(composite_folder).eval()


@pytest.fixture(scope="module")
def doors(model, processor, tmp_path_factory):
    """Functions that load a clip within limits, by each entry point; without the argument if they are `None`."""
    row = {"instruction": "What?", "answer": "a tone"}

    def argument(limits):
        return {} if limits is None else {"limits": limits}

    def chat(clip):
        return [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": "What?"}]}]

    def call_pipeline(clip, limits):
        pipe = pipeline("audio-text-to-text", model=model, processor=processor)
        pipe(clip, text="What?", max_new_tokens=1, **argument(limits))

    def build_pipeline(clip, limits):
        pipe = pipeline("audio-text-to-text", model=model, processor=processor, **argument(limits))
        pipe([clip, clip], text="What?", max_new_tokens=1, batch_size=2)

    def build_cache(clip, limits):
        cache = FeatureCache(tmp_path_factory.mktemp("features"), model, **argument(limits))
        cache.build(model, processor, [clip])
        AudioListenCollator(processor, feature_cache=cache)([row | {"audio": clip}])

    return {
        "load_audio": lambda clip, limits: load_audio(clip, **argument(limits)),
        "processor": lambda clip, limits: processor(text=processor.audio_token, audio=[clip], **argument(limits)),
        "audio_kwargs": lambda clip, limits: processor(
            text=processor.audio_token, audio=[clip], audio_kwargs=argument(limits)
        ),
        "chat template": lambda clip, limits: processor.apply_chat_template(
            chat(clip), tokenize=True, return_dict=True, processor_kwargs=argument(limits)
        ),
        "pipeline": call_pipeline,
        "pipeline's batch": build_pipeline,
        "collator": lambda clip, limits: AudioListenCollator(processor, **argument(limits))([row | {"audio": clip}]),
        "feature cache": build_cache,
    }


DOORS = (
    "load_audio",
    "processor",
    "audio_kwargs",
    "chat template",
    "pipeline",
    "pipeline's batch",
    "collator",
    "feature cache",
)


@pytest.fixture
def default_limits():
    """Sets the default limits, and restores them after the test."""
    before = set_default_limits(AudioLimits())
    yield set_default_limits
    set_default_limits(before)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", CLIPS)
def test_every_entry_point_takes_limits_for_clips_of_every_form(doors, form, door):
    with pytest.raises(LimitError, match=r"longer than the limit of 0.5 seconds.*`max_seconds` of `AudioLimits`"):
        doors[door](CLIPS[form](), SHORT)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", CLIPS)
def test_the_limits_of_a_call_replace_stricter_default_limits(doors, default_limits, form, door):
    default_limits(SHORT)
    with pytest.raises(LimitError, match="longer than the limit of 0.5 seconds"):
        doors[door](CLIPS[form](), None)
    doors[door](CLIPS[form](), LONG)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 96_000])
@pytest.mark.parametrize("seconds", [0.1234567, 0.25001])
def test_the_rounding_of_a_resampled_clip_does_not_exceed_the_limit(doors, rate, seconds):
    clip = {"array": np.resize(TONE, int(seconds * rate)), "sampling_rate": rate}
    for door in DOORS:
        doors[door](clip, AudioLimits(max_seconds=seconds))
        with pytest.raises(LimitError):
            doors[door](clip, AudioLimits(max_seconds=seconds - 2e-3))


def test_the_message_names_the_clip(processor):
    with pytest.raises(LimitError, match=r"Clip 1 of 2: .* clip of 1\.0 seconds is longer"):
        processor(
            text=processor.audio_token * 2, audio=[CLIPS["raw"]() | {"raw": TONE[:99]}, CLIPS["raw"]()], limits=SHORT
        )


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("limits", [{"max_seconds": 1}, 60, "60", True])
def test_limits_of_another_type_are_refused(doors, door, limits):
    with pytest.raises(TypeError, match="`limits` must be an `AudioLimits`, got a"):
        doors[door](CLIPS["array"](), limits)


def test_data_files_are_checked_within_limits(tmp_path):
    soundfile.write(tmp_path / "tone.wav", TONE, SAMPLING_RATE)
    row = {"audio": "tone.wav", "instruction": "What?", "answer": "a tone", "task": "sounds"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    (problem,) = check_examples(tmp_path / "data.jsonl", limits=SHORT)
    assert "longer than the limit of 0.5 seconds" in problem.message
    assert check_examples(tmp_path / "data.jsonl", limits=LONG) == []


def test_a_collator_takes_no_limits_beside_a_cache_that_has_its_own(model, processor, tmp_path):
    with pytest.raises(ValueError, match="Pass the limits to the cache"):
        AudioListenCollator(processor, feature_cache=FeatureCache(tmp_path, model), limits=SHORT)


def test_limits_are_not_saved_with_a_processor(processor, tmp_path):
    processor(text=processor.audio_token, audio=[CLIPS["array"]()], limits=LONG)
    processor.save_pretrained(tmp_path)
    assert "limits" not in (tmp_path / "processor_config.json").read_text()
