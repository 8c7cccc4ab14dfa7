"""Scores answers to questions that name their options, such as "Is the speaker a man or a woman?"."""

import re
from collections.abc import Iterable, Mapping, Sequence

from peft_listen.metrics.text_normalization import get_normalizer


# The rule of `is_right`, for the output of the demo.
RULE = "an answer is right if it names the right option and none of the others"

_normalize = get_normalizer("basic")


def options_of(examples: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """
    Finds the options of each task: the different answers of its examples.

    Args:
        examples (`Iterable[Mapping[str, str]]`): rows with `task` and `answer`.

    Returns:
        `dict[str, list[str]]`: sorted options by task, in the order in which the tasks occur.
    """
    options: dict[str, set[str]] = {}
    for example in examples:
        options.setdefault(example["task"], set()).add(example["answer"])
    return {task: sorted(answers) for task, answers in options.items()}


def is_right(generated: str, answer: str, options: Sequence[str]) -> bool:
    """
    Whether an answer names the right option and none of the others. It may be a sentence.

    An option is named by its words. Case, punctuation, the option's article, and a final "s" of a word, which marks a plural,
    are ignored. So an untrained model that answers in sentences is scored by the same rule as a trained one.

    Args:
        generated (`str`): the model's answer.
        answer (`str`): the right option.
        options (`Sequence[str]`): all options, with the right one.

    Returns:
        `bool`

    ```python
    >>> from demo.scoring import is_right
    >>> options = ["a siren", "a bell", "rain", "birds"]
    >>> is_right("I hear the bell.", "a bell", options), is_right("A bell or a siren.", "a bell", options)
    (True, False)

    ```
    """
    words = f" {' '.join(_words(generated))} "
    named = {option for option in options if f" {' '.join(_words(option))} " in words}
    return named == {answer}


def _words(text: str) -> list[str]:
    without_article = re.sub(r"^(a|an|the) ", "", _normalize(text))
    return [word.removesuffix("s") for word in without_article.split()]
