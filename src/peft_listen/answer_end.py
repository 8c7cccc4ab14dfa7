"""
Where an answer ends: the token that a model is trained to write after an answer, and at which generation stops.

Four places must agree: the collator, which trains the token; the processor and the pipeline, which must not put it before
the answer; and the generation configuration, which stops at it. This module imports no model, as `chat.py`.
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


# Words that no template contains.
_QUESTION, _ANSWER = "Xquestionx", "Xanswerx"
# `<think></think>`, `[THINK]\n[/THINK]`, ...: a block that a template writes where an answer has no reasoning.
_EMPTY_BLOCK = re.compile(r"\s*(?:<([^<>/\s]+)>\s*</\1>|\[([^\[\]/\s]+)\]\s*\[/\2\])\s*")


@dataclass(frozen=True)
class AnswerEnd:
    """
    The end of an answer.

    Args:
        token (`str`): The end token.
        token_id (`int`): Its id.
        is_rendered (`bool`):
            Whether the chat template writes it. If not, it is the tokenizer's end-of-sequence token, which the collator
            adds.
        tail (`str`): Text that the chat template writes after the answer and the end token.
    """

    token: str
    token_id: int
    is_rendered: bool
    tail: str = ""


def find_answer_end(processor: Any, chat_template: str | None = None, **template_kwargs: Any) -> AnswerEnd | None:
    """
    Finds the end token of answers: the first special or added token that the chat template writes after an answer, or the
    tokenizer's end-of-sequence token if there is none.

    Args:
        processor ([`AudioListenProcessor`] or a tokenizer): Its chat template renders an answer.
        chat_template (`str`, *optional*): The template, if it is not the processor's own.
        template_kwargs: Variables for the chat template.

    Returns:
        [`AnswerEnd`], or `None` if there is neither token, or the template does not render a question and an answer.
    """
    if chat_template is None and getattr(processor, "chat_template", None) is None:
        return None
    if chat_template is not None:
        template_kwargs["chat_template"] = chat_template
    tokenizer = getattr(processor, "tokenizer", processor)
    text = _text_after_the_answer(processor, template_kwargs)
    if text is None:
        return None
    # Some tokenizers have runs of white space among their added tokens.
    added = {str(token) for token in tokenizer.get_added_vocab() if str(token).strip()}
    special = {*tokenizer.all_special_tokens, *added}
    found = [(text.find(token), -len(token), token) for token in special if token and token in text]
    if found:
        position, _, token = min(found)
        token_id = tokenizer.convert_tokens_to_ids(token)
        return AnswerEnd(token, token_id, is_rendered=True, tail=text[position + len(token) :])
    if tokenizer.eos_token is None:
        return None
    return AnswerEnd(str(tokenizer.eos_token), tokenizer.eos_token_id, is_rendered=False, tail=text)


def _text_after_the_answer(processor: Any, template_kwargs: dict[str, Any]) -> str | None:
    # Templates of text models take strings, those of multimodal models lists of parts, and many take both.
    for as_content in (str, _as_parts):
        chat: Any = [
            {"role": "user", "content": as_content(_QUESTION)},
            {"role": "assistant", "content": as_content(_ANSWER)},
        ]
        try:
            text = processor.apply_chat_template(chat, tokenize=False, **template_kwargs)
        except Exception:  # Templates raise errors of many types; rendering the examples tells the user.
            continue
        _, answer, after = str(text).rpartition(_ANSWER)
        if answer:
            return after
    return None


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def without_empty_reasoning(text: str, answer: str) -> str:
    """
    Removes an empty reasoning block (`<think>\\n\\n</think>`) that the chat template writes before an answer. The generation
    prompt does not contain it, so a model trained on it would learn to begin every answer with it.

    Args:
        text (`str`): What the template writes after the generation prompt.
        answer (`str`): The answer, which keeps a block of its own.
    """
    block = _EMPTY_BLOCK.match(text)
    return text[block.end() :] if block and not _EMPTY_BLOCK.match(answer) else text


def without_trailing_reasoning(prompt: str) -> str:
    """
    Removes an empty reasoning block from the end of a generation prompt, where a template may write it so that the model
    answers without reasoning.

    Args:
        prompt (`str`): The generation prompt.
    """
    for block in _EMPTY_BLOCK.finditer(prompt):
        if block.end() == len(prompt):
            # The white space before the block belongs to the role marker.
            return prompt[: block.end() - len(block.group().lstrip())]
    return prompt


def end_token_ids(generation_config: Any) -> list[int]:
    """The ids of the tokens at which generation stops."""
    ids = getattr(generation_config, "eos_token_id", None)
    if ids is None:
        return []
    return [int(token_id) for token_id in ids] if isinstance(ids, Iterable) else [int(ids)]


def warn_of_other_end(end: AnswerEnd | None, generation_config: Any, tokenizer: Any, remedy: str) -> bool:
    """
    Warns if generation does not stop at the end token of answers.

    Args:
        end ([`AnswerEnd`], *optional*): The end of answers, from [`find_answer_end`].
        generation_config ([`~transformers.GenerationConfig`]): Its `eos_token_id` is compared.
        tokenizer (`PreTrainedTokenizerBase`): Names the tokens of `generation_config`.
        remedy (`str`): What is done about it, or what the user should do; ends the message.

    Returns:
        `bool`: whether the two differ.
    """
    stops = end_token_ids(generation_config)
    if end is None or end.token_id in stops:
        return False
    names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(stops))) or "no token"
    source = "The chat template ends answers" if end.is_rendered else "The collator ends answers"
    warnings.warn(f"{source} with {end.token!r}, but generation stops at {names}. {remedy}", UserWarning, stacklevel=3)
    return True


def warn_of_unsupervised_end(labels: torch.Tensor, generation_config: Any) -> None:
    """
    Warns if a training batch teaches no token at which generation stops. A model sees token ids only, so the message names
    those.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Token ids to predict, -100 at positions without a loss.
        generation_config ([`~transformers.GenerationConfig`]): Its `eos_token_id` is searched for in the labels.
    """
    stops = end_token_ids(generation_config)
    supervised = labels[labels != -100]
    if not len(supervised) or bool(torch.isin(supervised, torch.tensor(stops, device=labels.device)).any()):
        return
    names = ", ".join(map(str, stops)) or "no token"
    warnings.warn(
        f"The last label of this batch is the token {int(supervised[-1])}, but generation stops at {names}, which is not "
        "among the labels, so the model will not learn to stop there. If the chat template was changed after the model was "
        "built, call `AudioListenCollator.check_generation(model)`, or set `generation_config.eos_token_id`.",
        UserWarning,
        stacklevel=3,
    )


def stop_at_answer_end(end: AnswerEnd | None, generation_config: Any, tokenizer: Any) -> None:
    """
    Adds the end token of answers to the tokens at which generation stops, with a warning that names both.

    Args:
        end ([`AnswerEnd`], *optional*): The end of answers, from [`find_answer_end`].
        generation_config ([`~transformers.GenerationConfig`]): Changed in place.
        tokenizer (`PreTrainedTokenizerBase`): Names the tokens of `generation_config`.
    """
    remedy = "It was added to `generation_config.eos_token_id`."
    if end is not None and warn_of_other_end(end, generation_config, tokenizer, remedy):
        stops = [*end_token_ids(generation_config), end.token_id]
        generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
