"""Finds the tokens that a chat template adds to every input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..chat_encoding import find_chat_encoder, make_chat_encoder


# Two messages without a common word: the tokens that both rendered messages contain come from the template.
_PROBES = ("apple", "seven")


def chat_template_token_ids(processor: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """
    Finds the tokens that a chat template adds to a user message: role markers, role names, line breaks, a default system
    prompt.

    They are the same in every input, so they carry no information in the mean that LiSTEN (arXiv 2505.18517) uses as its
    query. Pass them to `ListenConfig(query_ignored_token_ids=...)` to exclude them from the query (ours).

    Args:
        processor ([`AudioListenProcessor`] or a tokenizer): processor or tokenizer with a chat template.
        chat_template_kwargs (`Mapping`, *optional*): variables for the chat template, those of the training.

    Returns:
        `list[int]`: sorted token ids. Tokens of the template that also occur in instructions, such as a line break, are
        included.

    Raises:
        ValueError: if there is no chat template.

    Example:

    ```python
    config = ListenConfig(query_ignored_token_ids=chat_template_token_ids(processor))
    ```
    """
    variables = dict(chat_template_kwargs or {})
    return sorted(set.intersection(*(_token_ids(processor, probe, variables) for probe in _PROBES)))


def _token_ids(processor: Any, probe: str, variables: dict[str, Any]) -> set[int]:
    chat: Any = [{"role": "user", "content": probe}]
    if getattr(processor, "chat_template", None) is not None:
        tokenizer = getattr(processor, "tokenizer", processor)
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **variables)
        return set(tokenizer(text, add_special_tokens=False)["input_ids"])
    if find_chat_encoder(processor) is not None:
        ((prompt,), _) = make_chat_encoder(processor, variables).encode_prompts([(chat, [])])
        return set(prompt)
    raise ValueError(f"{type(processor).__name__} has no chat template. Set its `chat_template`.")
