"""
The audio token, the number of audio tokens of a clip, and the length at which its chunks are encoded. The processor and the
model share these functions, so their counts are always equal.
"""

from typing import Any

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ...chat import AUDIO_TOKEN


# Length of a chunk, and the rate of Whisper's frames.
CHUNK_SECONDS = 30
FRAMES_PER_SECOND = 50


def add_audio_token(tokenizer: PreTrainedTokenizerBase, audio_token: str = AUDIO_TOKEN) -> int:
    """
    Adds the placeholder for audio to a tokenizer as a special token, if it is missing.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Changed in place.
        audio_token (`str`, *optional*, defaults to `"<|audio|>"`): The placeholder.

    Returns:
        `int`: the id of the token.
    """
    if audio_token not in tokenizer.get_vocab():
        tokenizer.add_tokens([audio_token], special_tokens=True)
    return tokenizer.get_vocab()[audio_token]


def num_encoder_frames(num_mel_frames: torch.Tensor) -> torch.Tensor:
    """
    Number of frames of 20 ms that Whisper computes from `num_mel_frames` log-mel frames of 10 ms; its second convolution
    has stride 2.
    """
    return -(-num_mel_frames // 2)


def num_audio_windows(
    num_frames: torch.Tensor, window_length: int, window_stride: int, max_frames: int
) -> torch.Tensor:
    """
    Number of windows that cover the frames of each chunk that contain audio.

    A window starts every `window_stride` frames, up to the last frame that contains audio. A full chunk of 30 s has the
    same windows as in SALMONN (88 of 17 frames), a shorter one has fewer.

    Args:
        num_frames (`torch.LongTensor` of any shape): Frames of 20 ms in each chunk that contain audio (not padding).
        window_length (`int`): Frames per window.
        window_stride (`int`): Frames between the starts of two windows.
        max_frames (`int`): Frames of a full chunk. Windows that extend beyond them are dropped.

    Returns:
        `torch.LongTensor` of the shape of `num_frames`, at least 1 everywhere.
    """
    most = (max_frames - window_length) // window_stride + 1
    return (-(-num_frames // window_stride)).clamp(1, most)


def window_reach(num_windows: torch.Tensor, window_length: int, window_stride: int) -> torch.Tensor:
    """Number of frames from the start of the first of `num_windows` windows to the end of the last."""
    return (num_windows - 1) * window_stride + window_length


def check_chunk_multiple(seconds: Any) -> None:
    """Raises a `ValueError` unless `speech_chunk_multiple` is an integer from 1 to 30."""
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 1 <= seconds <= CHUNK_SECONDS:
        raise ValueError(
            f"`speech_chunk_multiple` must be an integer from 1 to {CHUNK_SECONDS} (seconds), got {seconds!r}. Use "
            f"{CHUNK_SECONDS} for Whisper's own form, in which every chunk is encoded as {CHUNK_SECONDS} s."
        )


def encoded_frames(num_needed: torch.Tensor, speech_chunk_multiple: int, max_frames: int) -> torch.Tensor:
    """
    Number of frames of 20 ms as which the speech encoder encodes each chunk.

    Args:
        num_needed (`torch.LongTensor` of any shape): Frames that the windows of each chunk cover, from [`window_reach`].
        speech_chunk_multiple (`int`): Seconds of which the length is a multiple.
        max_frames (`int`): Frames of a full chunk, the greatest length.

    Returns:
        `torch.LongTensor` of the shape of `num_needed`.
    """
    step = speech_chunk_multiple * FRAMES_PER_SECOND
    return (-(-num_needed // step) * step).clamp(max=max_frames)


def check_token_count(num_tokens: int, num_features: int) -> None:
    """Raises a `ValueError` unless there is one audio embedding per audio token."""
    if num_tokens == num_features:
        return
    if num_features == 0:
        raise ValueError(
            f"`input_ids` holds {num_tokens} audio tokens, but no audio was given. Pass the audio features that the "
            "processor returned along with `input_ids`."
        )
    raise ValueError(
        f"Audio features and audio tokens do not match: {num_tokens} audio tokens in `input_ids`, {num_features} audio "
        "features. Use the processor of this model, which has the same windows, and truncate neither `input_ids` nor the "
        "audio."
    )
