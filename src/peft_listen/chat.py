"""
Rules about chats that the processor, the pipeline and the training collator share. This module imports no model, so that
it can be used with transformers versions that lack the audio model's parts.
"""

from collections.abc import Mapping
from typing import Any


# Keys of an audio part that may hold its clip. The first one that is set is used, in the order of transformers.
AUDIO_PART_KEYS = ("audio", "url", "path")


def clip_of(audio_part: Mapping[str, Any]) -> Any:
    """
    Returns the clip of an audio part of a message.

    Args:
        audio_part (`dict`): A part such as `{"type": "audio", "audio": clip}`, with one of [`AUDIO_PART_KEYS`].

    Returns:
        The clip, or `None` if no key is set.
    """
    return next((audio_part[key] for key in AUDIO_PART_KEYS if audio_part.get(key) is not None), None)


def starts_with_bos(prompt: str, bos_token: str | None) -> bool:
    """
    Tells whether the chat template has already written the beginning-of-sequence token. The tokenizer must not add it
    again then; transformers' `apply_chat_template` follows the same rule.

    Args:
        prompt (`str`): A rendered chat.
        bos_token (`str`, *optional*): The tokenizer's beginning-of-sequence token, if it has one.
    """
    return bool(bos_token) and prompt.startswith(str(bos_token))
