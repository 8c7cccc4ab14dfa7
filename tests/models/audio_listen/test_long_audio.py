"""Audio of minutes and hours: nothing is truncated, and memory does not grow with the encoded length."""

import weakref

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from peft_listen import AudioListenForCausalLM


SAMPLING_RATE = 16_000


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor(sound=True)


def audio_of(inputs) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}


@torch.no_grad()
@pytest.mark.parametrize("kept", ["audio embeddings", "generated tokens"])
def test_at_most_two_batches_of_frames_are_in_memory(make_model, processor, clip, kept: str) -> None:
    model = make_model(sound=True, encoder_batch_size=2)
    inputs = processor(text="<|audio|>", audio=clip(7 * 30.0 + 2), sampling_rate=SAMPLING_RATE)
    assert len(inputs["input_features"]) == 8
    frames: list[weakref.ref] = []
    alive = []

    def watch(module, args, output) -> None:
        frames.append(weakref.ref(output.last_hidden_state))
        alive.append(sum(reference() is not None for reference in frames))

    for tower in (model.model.speech_tower, model.model.sound_tower):
        frames.clear()
        alive.clear()
        handle = tower.register_forward_hook(watch)
        if kept == "audio embeddings":
            model.get_audio_features(**audio_of(inputs))
        else:
            model.generate(**inputs, max_new_tokens=2)
        handle.remove()
        assert len(frames) >= 4
        assert max(alive) <= 2
        assert all(reference() is None for reference in frames)


def test_the_spectrum_of_one_chunk_is_in_memory(make_processor, clip) -> None:
    lengths = []

    class SpectraWatcher(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.stft:
                lengths.append(args[0].numel())
            return function(*args, **(kwargs or {}))

    with SpectraWatcher():
        make_processor()(audio=[clip(95.0), clip(3.0)], sampling_rate=SAMPLING_RATE)
    assert lengths == [30 * SAMPLING_RATE] * 5


@torch.no_grad()
def test_the_embeddings_of_a_chunk_do_not_depend_on_other_chunks(make_model, processor, clip) -> None:
    model = make_model(sound=True)
    audio = clip(95.0, seed=3)
    whole = model.get_audio_features(
        **audio_of(processor(text="<|audio|>", audio=audio, sampling_rate=SAMPLING_RATE))
    ).pooler_output
    chunks = [
        model.get_audio_features(
            **audio_of(processor(text="<|audio|>", audio=chunk, sampling_rate=SAMPLING_RATE))
        ).pooler_output
        for chunk in np.split(audio, range(30 * SAMPLING_RATE, len(audio), 30 * SAMPLING_RATE))
    ]
    # 88 windows in each of three full chunks, and 15 in the remaining 5 s.
    assert [len(chunk) for chunk in chunks] == [88, 88, 88, 15]
    torch.testing.assert_close(whole, torch.cat(chunks), atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_an_hour_of_audio_is_encoded_to_its_end(make_model, processor, clip) -> None:
    model: AudioListenForCausalLM = make_model(sound=True)
    audio = np.tile(clip(300.0, seed=1), 12)
    audio[-SAMPLING_RATE:] = clip(1.0, seed=2)
    inputs = processor(text="<|audio|>", audio=audio, sampling_rate=SAMPLING_RATE)
    assert inputs["input_ids"].shape[1] == 120 * 88
    embeddings = model.get_audio_features(**audio_of(inputs)).pooler_output
    assert embeddings.shape == (120 * 88, 32)
    last = processor(text="<|audio|>", audio=audio[-30 * SAMPLING_RATE :], sampling_rate=SAMPLING_RATE)
    torch.testing.assert_close(
        embeddings[-88:], model.get_audio_features(**audio_of(last)).pooler_output, atol=1e-5, rtol=0
    )
    output = model.generate(**inputs, max_new_tokens=1)
    assert output.shape[1] == 120 * 88 + 1
