"""What a chat template puts into every input, whatever is asked."""

from __future__ import annotations

from typing import Any


# Two messages with no word in common: what the template renders for both is the template's own.
_PROBES = ("apple", "seven")


def chat_template_token_ids(processor: Any) -> list[int]:
    """
    Tokens that a chat template adds to a user's message: role markers, role names, line breaks, a default system prompt.

    They are the same in every input, so in the mean that LiSTEN (arXiv 2505.18517) takes as its query they tell nothing.
    Give them to `ListenConfig(query_ignored_token_ids=...)` to leave them out (ours).

    Args:
        processor ([`AudioListenProcessor`] or a tokenizer): with a chat template.

    Returns:
        `list[int]`: sorted ids. Tokens that also occur in instructions, such as a line break, are among them if the
        template has them.

    Raises:
        ValueError: if there is no chat template.

    Example:

    ```python
    config = ListenConfig(query_ignored_token_ids=chat_template_token_ids(processor))
    ```
    """
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"{type(processor).__name__} has no chat template. Set its `chat_template`.")
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = []
    for probe in _PROBES:
        chat: Any = [{"role": "user", "content": probe}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        tokens.append(set(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return sorted(set.intersection(*tokens))
