"""Instructions of each task, in several wordings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


QUESTION = "{question}"
"""Part of a wording that a row's question replaces."""

MAX_WORDINGS_BYTES = 1 << 20

WORDINGS: dict[str, tuple[str, ...]] = {
    "asr": (
        "Transcribe the speech.",
        "Write down what is said in the recording.",
        "What does the speaker say? Give the exact words.",
        "Convert this speech to text.",
        "Please provide a transcript of the audio.",
        "Type the words that you hear.",
    ),
    "en2zh": (
        "Translate the speech into Chinese.",
        "Listen to the English speech and give its Chinese translation.",
        "What is this in Chinese?",
        "Please translate what the speaker says into Chinese.",
        "Write what is said in Chinese.",
        "How would you say this sentence in Chinese?",
    ),
    "er": (
        "Which emotion does the speaker express: angry, happy, neutral or sad? Answer in one word.",
        "Is the speaker angry, happy, neutral or sad?",
        "Name the speaker's emotion: angry, happy, neutral or sad.",
        "How does the speaker feel? Choose one of angry, happy, neutral and sad.",
        "Recognize the emotion of the voice: angry, happy, neutral or sad.",
    ),
    "sv": (
        "There are two utterances with a pause between them. Are they from the same speaker? Answer Yes or No.",
        "Is it the same speaker before and after the pause? Answer Yes or No.",
        "Do both voices in the recording belong to one person? Answer Yes or No.",
        "Were the two parts of the recording spoken by the same person? Yes or No?",
        "Do you hear one and the same speaker twice? Answer Yes or No.",
    ),
    "sqa": (
        QUESTION,
        f"Answer the question about the speech: {QUESTION}",
        f"Listen to the speech and answer: {QUESTION}",
        f"According to the recording: {QUESTION}",
        f"{QUESTION} Answer by what is said in the audio.",
    ),
    "acap": (
        "Describe the audio.",
        "Write a caption for the sounds that you hear.",
        "What can be heard in the recording? Describe it in one sentence.",
        "Give a short description of the audio clip.",
        "What is happening in this recording?",
        "Summarize the sounds in one sentence.",
    ),
}
"""Wordings by task: automatic speech recognition, English to Chinese translation, emotion recognition, speaker verification,
spoken question answering and audio captioning. The first one of a task is used if a single wording is asked for."""


def choose_wordings(wordings: tuple[str, ...], choice: str) -> tuple[str, ...]:
    """
    Returns the wordings to draw from.

    Args:
        wordings (`tuple[str, ...]`): those of the recipe.
        choice (`str`): `"all"`, `"first"`, or the path of a text file in UTF-8 with one wording per line.

    Returns:
        `tuple[str, ...]`: at least one.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file has no wordings, or, for questions, one of them does not contain `{question}`.
    """
    if choice == "all":
        return wordings
    if choice == "first":
        return wordings[:1]
    try:
        with open(choice, "rb") as file:
            content = file.read(MAX_WORDINGS_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, ValueError) as error:
        raise ValueError(
            f'The wordings {choice!r} are neither "all" nor "first" nor a text file in UTF-8 ({error}).'
        ) from None
    if len(content) > MAX_WORDINGS_BYTES:
        raise ValueError(f"{choice}: the file of wordings is larger than {MAX_WORDINGS_BYTES} bytes.")
    own = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not own:
        raise ValueError(f"{choice} contains no wordings; expected one per line.")
    if QUESTION in wordings[0] and (without := [each for each in own if QUESTION not in each]):
        raise ValueError(
            f"{choice}: the wording {without[0]!r} does not contain {QUESTION}, which is replaced by the row's question."
        )
    return own


def draw_wording(wordings: Sequence[str], *names: object) -> str:
    """
    Draws a wording by a generator whose seed is made of names, so that it depends on no other row.

    Args:
        wordings (`Sequence[str]`): at least one.
        *names (`object`): the seed, the recipe, the split and the row.

    Returns:
        `str`: one of the wordings.
    """
    return wordings[draw_number(*names) % len(wordings)]


def draw_number(*names: object) -> int:
    """An integer from 0 to 2**64 - 1 that is drawn by these names: the same in each process and Python version."""
    text = "\0".join(map(str, names)).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
