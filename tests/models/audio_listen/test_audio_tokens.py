import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from peft_listen.models.audio_listen.audio_tokens import (
    add_audio_token,
    check_token_count,
    num_audio_windows,
    num_encoder_frames,
    window_reach,
)


MAX_FRAMES = 1500


@pytest.mark.parametrize(
    ("seconds", "windows"), [(0.0001, 1), (0.34, 1), (0.3401, 2), (1.0, 3), (29.0, 86), (29.9, 88), (30.0, 88)]
)
def test_a_clip_has_windows_of_340_milliseconds_up_to_salmonns_88(seconds: float, windows: int) -> None:
    mel_frames = torch.tensor([-(-round(seconds * 16000) // 160)])
    assert num_audio_windows(num_encoder_frames(mel_frames), 17, 17, MAX_FRAMES).tolist() == [windows]


@given(num_samples=st.integers(1, 480_000))
@settings(max_examples=200, deadline=None)
def test_frames_are_20_milliseconds_each_rounded_up(num_samples: int) -> None:
    mel_frames = torch.tensor(-(-num_samples // 160))
    assert int(num_encoder_frames(mel_frames)) == -(-num_samples // 320)


def test_mel_frames_of_whispers_mask_are_counted_as_the_formula_expects() -> None:
    extractor = WhisperFeatureExtractor()
    lengths = [1, 160, 161, 320, 321, 48_000, 479_999, 480_000]
    chunks = [np.ones(length, dtype=np.float32) for length in lengths]
    mask = extractor(chunks, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")["attention_mask"]
    assert mask.sum(-1).tolist() == [-(-length // 160) for length in lengths]


@given(
    num_frames=st.integers(1, MAX_FRAMES), window_length=st.integers(1, MAX_FRAMES), window_stride=st.integers(1, 60)
)
@settings(max_examples=300, deadline=None)
def test_windows_are_within_a_chunk_and_their_number_follows_from_the_frames_they_cover(
    num_frames: int, window_length: int, window_stride: int
) -> None:
    windows = num_audio_windows(torch.tensor(num_frames), window_length, window_stride, MAX_FRAMES)
    reach = window_reach(windows, window_length, window_stride)
    assert windows >= 1
    assert reach <= MAX_FRAMES
    # Frames after those covered are trimmed from the encoder outputs; the count stays the same.
    for kept in (int(reach), MAX_FRAMES):
        sounding = torch.tensor(min(num_frames, kept))
        assert num_audio_windows(sounding, window_length, window_stride, MAX_FRAMES) == windows
    # The last window starts in a frame that contains audio.
    assert reach - window_length < num_frames


def test_the_audio_token_is_added_once(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    assert add_audio_token(tokenizer) == size
    assert add_audio_token(tokenizer) == size
    assert len(tokenizer) == size + 1
    assert tokenizer("a<|audio|>b")["input_ids"].count(size) == 1
    assert "<|audio|>" not in tokenizer.decode([size], skip_special_tokens=True)


def test_a_count_mismatch_names_both_numbers() -> None:
    check_token_count(3, 3)
    with pytest.raises(ValueError, match="3 audio tokens in `input_ids`, 5 audio features"):
        check_token_count(3, 5)
    with pytest.raises(ValueError, match="0 audio tokens in `input_ids`, 5 audio features"):
        check_token_count(0, 5)
    with pytest.raises(ValueError, match="holds 3 audio tokens, but no audio was given"):
        check_token_count(3, 0)
