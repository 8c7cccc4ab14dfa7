"""Wordings of the instructions. They differ between training, validation and test.

In training, every clip gets a wording drawn anew each time it comes up; in validation and test it has one of its own. The
instructions of "sqa" are questions about the clip, in the frames of `questions.FRAMES`.
"""

import random
from collections.abc import Iterable, Mapping
from typing import Any

from .questions import FRAMES, framed


INSTRUCTIONS: dict[str, dict[str, list[str]]] = {
    "asr": {
        "train": [
            "Transcribe the speech.",
            "Write down what is said.",
            "What does the speaker say?",
            "Type the words you hear.",
            "Put the speech into text.",
            "Give me the text of the recording.",
            "Turn the audio into words.",
            "Which words are spoken?",
            "Note the sentence as it is spoken.",
            "Please make a transcript.",
            "Copy out the spoken sentence.",
            "Repeat what was said.",
            "Take dictation.",
            "Tell me the exact words of the speaker.",
            "Speech to text, please.",
            "Read back the sentence.",
        ],
        "validation": ["Give the transcript.", "Write out the spoken words.", "Can you transcribe this?"],
        "test": [
            "Write the words that are spoken.",
            "Transcribe what you hear.",
            "What is being said?",
            "Produce a transcription of the clip.",
            "I need the sentence in writing.",
        ],
    },
    "en2zh": {
        "train": [
            "Translate the speech into Chinese.",
            "Say it in Chinese.",
            "What is this in Chinese?",
            "Write the sentence in Chinese.",
            "Give a Chinese translation.",
            "Please translate to Chinese.",
            "Chinese version of the speech, please.",
            "Interpret the speaker for a Chinese listener.",
            "Tell me in Chinese what is said.",
            "Render the recording in Chinese.",
            "Transfer the English sentence to Chinese.",
            "How would a Chinese speaker say this?",
            "Answer with the Chinese translation.",
            "English to Chinese, please.",
            "Repeat the sentence, but in Chinese.",
            "Make Chinese subtitles for the clip.",
        ],
        "validation": [
            "Turn the speech into Chinese.",
            "How do you say this in Chinese?",
            "Convert what is said to Chinese.",
        ],
        "test": [
            "Translate what you hear to Chinese.",
            "Put the sentence into Chinese.",
            "Express this in Chinese.",
            "I need the words in Chinese.",
            "Which Chinese sentence means the same?",
        ],
    },
    "first_word": {
        "train": [
            "What is the first word?",
            "Name the first word.",
            "Which word comes first?",
            "Tell me the first word of the sentence.",
            "Which word does the speaker start with?",
            "Write only the first word.",
            "Begin and end your answer with the first word.",
            "How does the sentence begin? One word.",
            "Give the opening word.",
            "The first spoken word, please.",
            "Which word is said at the start?",
            "Repeat the first word.",
            "What word opens the sentence?",
            "Note the word at the beginning.",
            "Answer with the first word you hear.",
            "The sentence starts with which word?",
        ],
        "validation": ["Say the first word.", "Which is the opening word?", "What does the speaker say first?"],
        "test": [
            "Give the first word that is spoken.",
            "What is the word at the beginning?",
            "Which word begins the sentence?",
            "Type the initial word.",
            "With which word does it start?",
        ],
    },
    "last_word": {
        "train": [
            "What is the last word?",
            "Name the last word.",
            "Which word comes last?",
            "Tell me the last word of the sentence.",
            "Which word does the speaker end with?",
            "Write only the last word.",
            "Begin and end your answer with the last word.",
            "How does the sentence end? One word.",
            "Give the closing word.",
            "The last spoken word, please.",
            "Which word is said at the end?",
            "Repeat the last word.",
            "What word closes the sentence?",
            "Note the word at the end.",
            "Answer with the last word you hear.",
            "The sentence stops with which word?",
        ],
        "validation": ["Say the last word.", "Which is the closing word?", "What does the speaker say last?"],
        "test": [
            "Give the last word that is spoken.",
            "What is the word at the end?",
            "Which word ends the sentence?",
            "Type the final word.",
            "With which word does it stop?",
        ],
    },
    "word_count": {
        "train": [
            "How many words are spoken?",
            "Count the words.",
            "What is the number of words?",
            "How many words does the sentence have?",
            "Tell me how many words you hear.",
            "How long is the sentence, in words?",
            "Give the word count.",
            "The number of words, please.",
            "Say how many words the speaker uses.",
            "How many words are in the recording?",
            "Count how many words are said.",
            "Of how many words is the sentence made?",
            "Write the number of spoken words.",
            "Word count?",
            "Find the number of words in the speech.",
            "Listen and count the words.",
        ],
        "validation": [
            "How many words are there?",
            "Count the spoken words.",
            "Tell me the length of the sentence in words.",
        ],
        "test": [
            "How many words do you hear?",
            "Give the number of words that are said.",
            "What is the word count of the clip?",
            "Number of words?",
            "How many words make up the sentence?",
        ],
    },
    "gender": {
        "train": [
            "Is the speaker a man or a woman?",
            "Who speaks, a woman or a man?",
            "Man or woman?",
            "What is the gender of the speaker?",
            "Name the speaker's gender.",
            "Does a man speak, or a woman?",
            "Is it a woman's or a man's voice?",
            "Tell me whether the speaker is a man or a woman.",
            "Whose voice is it, a man's or a woman's?",
            "Which gender does the voice have?",
            "The speaker's gender, please.",
            "Is this person a woman or a man?",
            "Is the voice that of a man or of a woman?",
            "Decide: man or woman.",
            "Identify the gender of the voice.",
            "Are you listening to a man or to a woman?",
        ],
        "validation": ["Woman or man?", "Give the gender of the speaker.", "Do you hear a man or a woman?"],
        "test": [
            "Is a man or a woman speaking?",
            "Which gender is the speaker?",
            "Say whether it is a woman or a man.",
            "What gender does the voice sound like?",
            "Is the person who talks a man or a woman?",
        ],
    },
    "tempo": {
        "train": [
            "Is the speech fast or slow?",
            "Does the speaker talk fast or slowly?",
            "Fast or slow?",
            "How fast is the speech?",
            "Name the tempo of the speech.",
            "What is the speaking rate?",
            "Is it spoken slowly or fast?",
            "Tell me whether the sentence is spoken fast or slowly.",
            "At which tempo does the person talk?",
            "The speed of the speech, please.",
            "Is the speaker quick or slow?",
            "Slow speech or fast speech?",
            "Judge the speed: fast or slow.",
            "How quickly are the words spoken?",
            "Does the voice go fast or slow?",
            "Rate the pace of the speaker.",
        ],
        "validation": ["Slow or fast?", "What is the pace of the speech?", "How quickly does the person speak?"],
        "test": [
            "Is the speaker slow or fast?",
            "What is the tempo of the voice?",
            "Say how fast the speaker is.",
            "At what speed is the sentence read?",
            "Is the talking fast or slow?",
        ],
    },
    "sentence_type": {
        "train": [
            "Is it a question or a statement?",
            "Question or statement?",
            "Does the speaker ask something or state something?",
            "Is the sentence a statement or a question?",
            "Which type of sentence is it?",
            "Name the type of the sentence.",
            "Tell me whether this is a question or a statement.",
            "Is something asked or stated?",
            "Is the sentence asked or stated?",
            "The kind of sentence, please: question or statement.",
            "What do you hear, a question or a statement?",
            "Does it end with a question mark? Answer question or statement.",
            "Classify the sentence: statement or question.",
            "Which punctuation would fit, that of a question or that of a statement?",
            "Do we hear a statement, or a question?",
            "Decide if it is a question or a statement.",
        ],
        "validation": [
            "Statement or question?",
            "Is the speaker asking or stating?",
            "What kind of sentence do you hear?",
        ],
        "test": [
            "Is this a question, or is it a statement?",
            "Give the type of the spoken sentence.",
            "Say whether it is a statement or a question.",
            "Is the person asking a question or making a statement?",
            "Which kind of sentence is said?",
        ],
    },
    "er": {
        "train": [
            "How does the speaker feel?",
            "Which emotion is in the voice?",
            "Name the speaker's emotion.",
            "What mood is the speaker in?",
            "Is it calm, happy, sad or angry?",
            "Tell me the emotion you hear.",
            "Which feeling is expressed?",
            "The emotion of the voice, please.",
            "Does the person sound calm, happy, sad or angry?",
            "Recognize the emotion.",
            "In which mood is this said?",
            "Describe the feeling of the speaker in one word.",
            "How is the speaker's mood?",
            "What emotion does the person show?",
            "Judge the speaker's feelings.",
            "With which emotion is the sentence spoken?",
        ],
        "validation": ["What does the speaker feel?", "Name the mood of the voice.", "Which emotion do you hear?"],
        "test": [
            "Which feeling does the voice show?",
            "What is the speaker's emotion?",
            "How does the voice sound?",
            "Say which emotion the speaker has.",
            "What are the feelings of this person?",
        ],
    },
    "sv": {
        "train": [
            "Is it the same speaker twice?",
            "Are the two voices the same?",
            "Did one person say both sentences?",
            "Same speaker? Yes or no.",
            "Do both voices belong to one person?",
            "Does the same person speak again?",
            "Is one person speaking both times?",
            "Compare the voices: is it one speaker?",
            "Are both sentences from one speaker?",
            "Do you hear one speaker only? Yes or no.",
            "Yes or no: is the speaker the same?",
            "Does the second voice match the first?",
            "Is the voice the same in both sentences?",
            "Would you say both voices are from one person?",
            "Did the same speaker talk twice?",
            "Tell me if both sentences have the same speaker.",
        ],
        "validation": [
            "Is the second speaker the first one?",
            "Is there only one speaker?",
            "Are the speakers identical?",
        ],
        "test": [
            "Do you hear the same person twice?",
            "Is it one speaker?",
            "Are both speakers the same person?",
            "Do the two sentences share a speaker?",
            "Is the first voice also the second?",
        ],
    },
    "acap": {
        "train": [
            "Describe the sounds.",
            "What do you hear?",
            "Write a caption for the audio.",
            "Which sounds are there?",
            "Tell me what can be heard.",
            "List the sounds in order.",
            "What makes these sounds?",
            "Give a description of the recording.",
            "Name every sound and how loud it is.",
            "What is the recording of?",
            "Summarize what is heard.",
            "The sounds of the clip, please.",
            "Explain what is audible.",
            "Which noises are in the audio?",
            "Write one line about the sounds.",
            "What sounds come, and in which order?",
        ],
        "validation": ["Caption the sounds.", "What is there to hear?", "Describe the noises."],
        "test": [
            "Describe what you hear.",
            "Give a caption of the sounds.",
            "What can be heard?",
            "Say which sounds there are.",
            "What noises do you notice?",
        ],
    },
}


def wordings_of(example: Mapping[str, Any], split: str) -> list[str]:
    """
    All instructions with which the task of an example can be asked.

    Args:
        example (`Mapping`): row of the data; one of "sqa" has the fields `direct` and `indirect`.
        split (`str`): `"train"`, `"validation"` or `"test"`: the split whose wordings are used.

    Returns:
        `list[str]`: the instructions.
    """
    if example["task"] == "sqa":
        return [framed(example["direct"], example["indirect"], frame) for frame in FRAMES[split]]
    return INSTRUCTIONS[example["task"]][split]


def with_drawn_wordings(examples: Iterable[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """
    Gives each row of a training stream a training wording, drawn by seed and place in the stream.

    A clip gets a new wording each time it comes up, and all methods with the same seed get the same ones.

    Args:
        examples (`Iterable[dict]`): the rows of all steps in order.
        seed (`int`): seed of the run.

    Returns:
        `list[dict]`: the rows with their instructions.
    """
    return [
        {**example, "instruction": random.Random(f"wording:{seed}:{place}").choice(wordings_of(example, "train"))}
        for place, example in enumerate(examples)
    ]


def reworded(examples: Iterable[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """
    Replaces the instructions of examples with those of another split, in rotation within each task.

    Args:
        examples (`Iterable[dict]`): examples of any tasks.
        split (`str`): split whose wordings are used.

    Returns:
        `list[dict]`: the changed examples.
    """
    turns: dict[str, int] = {}
    rows = []
    for example in examples:
        wordings = wordings_of(example, split)
        turn = turns.setdefault(example["task"], 0)
        rows.append({**example, "instruction": wordings[turn % len(wordings)]})
        turns[example["task"]] += 1
    return rows
