"""Questions about the sentences of the grammar. Their answers are one or two words of the sentence."""

from collections.abc import Callable
from dataclasses import dataclass

from .sentences import PEOPLE, Sentence


# Each kind of question, asked and embedded in a sentence.
QUESTIONS: dict[str, tuple[str, str]] = {
    "who": ("Who {action}", "who {action}"),
    "what": ("What {auxiliary} {subject} {base}", "what {subject} {verb}"),
    "how many": ("How many {things} are there", "how many {things} there are"),
    "colour": ("What colour is the {thing}", "what colour the {thing} is"),
    "where": ("Where {does_what}", "where {subject} {verb}"),
    "when": ("When {does_what}", "when {subject} {verb}"),
    "who or what is there": ("{interrogative} is in the {place}", "{interrogative_low} is in the {place}"),
    "doing": ("What does {subject} do", "what {subject} does"),
}

# What a question is embedded in; different in training, validation and test. {direct} is the question, {low} the same
# with a small letter, {indirect} its embedded form.
FRAMES: dict[str, list[str]] = {
    "train": [
        "{direct}?",
        "Tell me {indirect}.",
        "Listen: {low}?",
        "Answer briefly: {low}?",
        "From the recording, {low}?",
        "I want to know {indirect}.",
        "Can you tell me {indirect}?",
        "Please say {indirect}.",
        "After listening, tell me {indirect}.",
        "Find out {indirect}.",
        "{direct}, according to the speaker?",
        "In the sentence, {low}?",
        "Do you know {indirect}?",
        "Listen and answer: {low}?",
        "Quick question: {low}?",
        "Determine {indirect}.",
    ],
    "validation": ["According to the clip, {low}?", "Let me know {indirect}.", "Write down {indirect}."],
    "test": [
        "Say {indirect}.",
        "Could you say {indirect}?",
        "Going by the audio, {low}?",
        "{direct}, as you hear it?",
        "Judging from the speech, {low}?",
    ],
}

# The kinds of questions that fit the sentences of each pattern.
KINDS: dict[str, list[str]] = {
    "counted": ["who", "what", "how many"],
    "coloured": ["who", "what", "colour"],
    "located": ["where", "who or what is there"],
    "acting": ["who", "where", "doing"],
    "timed": ["who", "when", "doing"],
}

ANSWERS: dict[str, Callable[[Sentence], str]] = {
    "who": lambda sentence: sentence.subject,
    "what": lambda sentence: _thing(sentence),
    "how many": lambda sentence: sentence.number,
    "colour": lambda sentence: sentence.colour,
    "where": lambda sentence: f"the {sentence.place}",
    "when": lambda sentence: sentence.time,
    "who or what is there": lambda sentence: sentence.subject,
    "doing": lambda sentence: _activity(sentence),
}


@dataclass(frozen=True)
class Question:
    """
    A question about a sentence.

    Attributes:
        direct (`str`): the question with a capital letter and without a question mark, "What did my sister find".
        indirect (`str`): the same as a part of a sentence, "what my sister found".
        answer (`str`): one or two words of the sentence.
    """

    direct: str
    indirect: str
    answer: str


def ask(sentence: Sentence, kind: str) -> Question:
    """
    A question about a sentence.

    Args:
        sentence ([`Sentence`]): sentence that the question is about, as a statement or a question.
        kind (`str`): one of `KINDS[sentence.pattern]`.

    Returns:
        [`Question`]

    Raises:
        ValueError: if this kind of question does not fit the sentence.
    """
    if kind not in KINDS[sentence.pattern]:
        raise ValueError(
            f"{kind!r} cannot be asked about {sentence.english!r}, expected one of {', '.join(KINDS[sentence.pattern])}."
        )
    interrogative = "Who" if sentence.subject in PEOPLE else "What"
    fields = {
        "subject": sentence.subject,
        "place": sentence.place,
        "thing": sentence.noun.singular if sentence.noun else "",
        "things": sentence.noun.plural if sentence.noun else "",
        "verb": sentence.verb.form if sentence.verb else "is",
        "base": sentence.verb.base if sentence.verb else "",
        "auxiliary": sentence.verb.auxiliary if sentence.verb else "",
        "interrogative": interrogative,
        "interrogative_low": interrogative.lower(),
        "does_what": f"does {sentence.subject} {sentence.verb.base}" if sentence.verb else f"is {sentence.subject}",
    }
    circumstance = f"in the {sentence.place}" if sentence.place else sentence.time
    complement = f"the {_thing(sentence)}" if sentence.noun else circumstance
    direct, indirect = (
        wording.format(action=f"{fields['verb']} {complement}", **fields) for wording in QUESTIONS[kind]
    )
    return Question(direct, indirect, ANSWERS[kind](sentence))


def framed(direct: str, indirect: str, frame: str) -> str:
    """A question in one of `FRAMES`."""
    return frame.format(direct=direct, low=f"{direct[0].lower()}{direct[1:]}", indirect=indirect)


def _thing(sentence: Sentence) -> str:
    if sentence.noun is None:
        return ""
    return sentence.noun.plural if sentence.number else sentence.noun.singular


def _activity(sentence: Sentence) -> str:
    if sentence.verb is None:
        return ""
    return sentence.verb.base if sentence.is_question else sentence.verb.form
