"""Questions about the sentences of the grammar. Their answers are one or two words of the sentence."""

from collections.abc import Callable

from .sentences import PEOPLE, Sentence


# The wordings of each kind of question; they differ between training, validation and test.
WORDINGS: dict[str, dict[str, list[str]]] = {
    "who": {
        "train": ["Who {action}?", "Tell me who {action}."],
        "validation": ["Which person {action}?"],
        "test": ["Say who {action}.", "Who is it that {action}?"],
    },
    "what": {
        "train": ["What {auxiliary} {subject} {base}?", "Tell me what {subject} {verb}."],
        "validation": ["Which things {auxiliary} {subject} {base}?"],
        "test": ["Say what {subject} {verb}.", "What is it that {subject} {verb}?"],
    },
    "how many": {
        "train": ["How many {things} are there?", "Tell me how many {things} {subject} {verb}."],
        "validation": ["What is the number of {things}?"],
        "test": ["Say how many {things} there are.", "How many {things} {auxiliary} {subject} {base}?"],
    },
    "colour": {
        "train": ["What colour is the {thing}?", "Tell me the colour of the {thing}."],
        "validation": ["Which colour is the {thing}?"],
        "test": ["Say the colour of the {thing}.", "What is the colour of the {thing}?"],
    },
    "where": {
        "train": ["Where {does_what}?", "Tell me where {subject} {verb}."],
        "validation": ["In which place {does_what}?"],
        "test": ["Say where {subject} {verb}.", "Where is it that {subject} {verb}?"],
    },
    "when": {
        "train": ["When {does_what}?", "Tell me when {subject} {verb}."],
        "validation": ["At what time {does_what}?"],
        "test": ["Say when {subject} {verb}.", "When is it that {subject} {verb}?"],
    },
    "who or what is there": {
        "train": ["{interrogative} is in the {place}?", "Tell me {interrogative_low} is in the {place}."],
        "validation": ["{interrogative} can be found in the {place}?"],
        "test": ["Say {interrogative_low} is in the {place}.", "{interrogative} is it that is in the {place}?"],
    },
    "doing": {
        "train": ["What does {subject} do?", "Tell me what {subject} does."],
        "validation": ["What is it that {subject} does?"],
        "test": ["Say what {subject} does.", "What does {subject} do {circumstance}?"],
    },
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
    "doing": lambda sentence: sentence.verb.form if sentence.verb else "",
}


def ask(sentence: Sentence, kind: str, wording: str) -> tuple[str, str]:
    """
    A question about a sentence, and its answer.

    Args:
        sentence ([`Sentence`]): sentence that the question is about.
        kind (`str`): one of `KINDS[sentence.pattern]`.
        wording (`str`): one of `WORDINGS[kind]`, of any split.

    Returns:
        `tuple[str, str]`: question and answer.

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
        "circumstance": f"in the {sentence.place}" if sentence.place else sentence.time,
        "does_what": f"does {sentence.subject} {sentence.verb.base}" if sentence.verb else f"is {sentence.subject}",
    }
    complement = f"the {_thing(sentence)}" if sentence.noun else fields["circumstance"]
    return wording.format(action=f"{fields['verb']} {complement}", **fields), ANSWERS[kind](sentence)


def _thing(sentence: Sentence) -> str:
    if sentence.noun is None:
        return ""
    return sentence.noun.plural if sentence.number else sentence.noun.singular
