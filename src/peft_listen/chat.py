"""
Rules about chats that the processor, the pipeline and the training collator share. This module imports no model, so that
it can be used with transformers versions that lack the audio model's parts.
"""

from collections.abc import Mapping
from typing import Any


# Placeholder for one clip in the text, unless a processor has another one.
AUDIO_TOKEN = "<|audio|>"

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


def as_prompts(texts: list[str], tokenizer: Any) -> tuple[list[str], bool]:
    """
    Prepares rendered chats for the tokenizer, so that it adds the beginning-of-sequence token if the chat template has not
    written it, and never an end token: an answer follows the prompt. transformers' `apply_chat_template` has the same rule
    for the beginning.

    Args:
        texts (`list[str]`): Rendered chats.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.

    Returns:
        `tuple[list[str], bool]`: the texts, and the argument `add_special_tokens` of the tokenizer.
    """
    if texts and tokenizer.bos_token and texts[0].startswith(str(tokenizer.bos_token)):
        return texts, False
    before, after = _added_token_ids(tokenizer)
    if not after:
        return texts, True
    beginning = "".join(tokenizer.convert_ids_to_tokens(before))
    return [beginning + text for text in texts], False


def _added_token_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer adds before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []
