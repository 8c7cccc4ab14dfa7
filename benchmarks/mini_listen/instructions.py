"""Wordings of the instructions. They differ between training, validation and test.

The instructions of "sqa" are the questions themselves: see `questions.WORDINGS`.
"""

from collections.abc import Iterable
from typing import Any


INSTRUCTIONS: dict[str, dict[str, list[str]]] = {
    "asr": {
        "train": [
            "Transcribe the speech.",
            "Write down what is said.",
            "What does the speaker say?",
            "Type the words you hear.",
            "Put the speech into text.",
        ],
        "validation": ["Give the transcript.", "Write out the spoken words."],
        "test": ["Write the words that are spoken.", "Transcribe what you hear.", "What is being said?"],
    },
    "en2zh": {
        "train": [
            "Translate the speech into Chinese.",
            "Say it in Chinese.",
            "What is this in Chinese?",
            "Write the sentence in Chinese.",
            "Give a Chinese translation.",
        ],
        "validation": ["Turn the speech into Chinese.", "How do you say this in Chinese?"],
        "test": ["Translate what you hear to Chinese.", "Put the sentence into Chinese.", "Express this in Chinese."],
    },
    "er": {
        "train": [
            "How does the speaker feel?",
            "Which emotion is in the voice?",
            "Name the speaker's emotion.",
            "What mood is the speaker in?",
            "Is it calm, happy, sad or angry?",
        ],
        "validation": ["What does the speaker feel?", "Name the mood of the voice."],
        "test": ["Which feeling does the voice show?", "What is the speaker's emotion?", "How does the voice sound?"],
    },
    "sv": {
        "train": [
            "Is it the same speaker twice?",
            "Are the two voices the same?",
            "Did one person say both sentences?",
            "Same speaker? Yes or no.",
            "Do both voices belong to one person?",
        ],
        "validation": ["Is the second speaker the first one?", "Is there only one speaker?"],
        "test": ["Do you hear the same person twice?", "Is it one speaker?", "Are both speakers the same person?"],
    },
    "acap": {
        "train": [
            "Describe the sounds.",
            "What do you hear?",
            "Write a caption for the audio.",
            "Which sounds are there?",
            "Tell me what can be heard.",
        ],
        "validation": ["Caption the sounds.", "What is there to hear?"],
        "test": ["Describe what you hear.", "Give a caption of the sounds.", "What can be heard?"],
    },
}


def reworded(examples: Iterable[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """
    Replaces the instructions of examples with those of another split, in rotation.

    Args:
        examples (`Iterable[dict]`): examples of any tasks.
        split (`str`): split whose wordings are used.

    Returns:
        `list[dict]`: the changed examples, without those of "sqa", whose instructions are questions about the clip.
    """
    turns = dict.fromkeys(INSTRUCTIONS, 0)
    rows = []
    for example in examples:
        task = example["task"]
        if task in INSTRUCTIONS:
            wordings = INSTRUCTIONS[task][split]
            rows.append({**example, "instruction": wordings[turns[task] % len(wordings)]})
            turns[task] += 1
    return rows
