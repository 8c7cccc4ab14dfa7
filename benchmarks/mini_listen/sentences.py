"""A grammar of short English sentences with their Chinese translations, several thousand in all.

Every sentence fills the slots of one of five patterns, and questions can be asked about its parts:

- "counted": my sister found three flowers
- "coloured": the girl lost a red table
- "located": the horse is in the garden
- "acting": the boy sings in the park
- "timed": my uncle works every day

Each can also be asked: "did my sister find three flowers".

All words are understood by a small speech recognizer when eSpeak NG speaks them. Their Chinese translations are short,
because small English tokenizers need two or three tokens per character.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np


SPLITS = ("train", "validation", "test")
# Share of each pattern's sentences that belongs to each split.
SPLIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class Verb(NamedTuple):
    """A verb in the third person, its plain form, the auxiliary of its questions, and its translation."""

    form: str
    base: str
    auxiliary: str
    chinese: str


class Noun(NamedTuple):
    """A noun, its plural, its translation, and its Chinese measure word."""

    singular: str
    plural: str
    chinese: str
    measure: str


PEOPLE = {
    "my mother": "母亲",
    "my sister": "姐姐",
    "my brother": "弟弟",
    "my uncle": "叔叔",
    "the girl": "女孩",
    "the boy": "男孩",
    "the student": "学生",
    "the driver": "司机",
    "the woman": "女人",
    "the farmer": "农民",
}
TRANSITIVE_VERBS = (
    Verb("found", "find", "did", "找到"),
    Verb("painted", "paint", "did", "画了"),
    Verb("lost", "lose", "did", "丢了"),
    Verb("sold", "sell", "did", "卖了"),
    Verb("wants", "want", "does", "要"),
    Verb("needs", "need", "does", "需要"),
)
ACTIVITIES = (
    Verb("sleeps", "sleep", "does", "睡觉"),
    Verb("works", "work", "does", "工作"),
    Verb("sings", "sing", "does", "唱歌"),
    Verb("waits", "wait", "does", "等"),
    Verb("plays", "play", "does", "玩"),
)
NOUNS = (
    Noun("flower", "flowers", "花", "朵"),
    Noun("dog", "dogs", "狗", "只"),
    Noun("horse", "horses", "马", "匹"),
    Noun("table", "tables", "桌子", "张"),
    Noun("tree", "trees", "树", "棵"),
    Noun("boat", "boats", "船", "条"),
    Noun("fish", "fish", "鱼", "条"),
    Noun("book", "books", "书", "本"),
    Noun("box", "boxes", "盒子", "个"),
    Noun("egg", "eggs", "蛋", "个"),
    Noun("picture", "pictures", "画", "张"),
)
NUMBERS = {"two": "两", "three": "三", "four": "四", "five": "五", "six": "六", "seven": "七", "ten": "十"}
COLOURS = {"red": "红", "green": "绿", "yellow": "黄", "black": "黑", "white": "白"}
PLACES = {
    "house": "屋里",
    "garden": "花园",
    "school": "学校",
    "park": "公园",
    "market": "市场",
    "forest": "森林",
    "city": "城里",
}
TIMES = {"today": "今天", "tonight": "今晚", "at noon": "中午", "every day": "每天"}


@dataclass(frozen=True)
class Sentence:
    """
    One sentence and the words in its slots. A slot that its pattern lacks is empty.

    Attributes:
        pattern (`str`): `"counted"`, `"coloured"`, `"located"`, `"acting"` or `"timed"`.
        english (`str`): the words in lower case, without punctuation.
        chinese (`str`): the translation, without punctuation.
        subject (`str`): subject with its article or pronoun, such as "my sister"; in `"located"` also a thing, "the horse".
        verb ([`Verb`], *optional*): verb.
        noun ([`Noun`], *optional*): object of the verb.
        number, colour, place, time (`str`): words of the sentence, such as "three", "red", "garden" and "every day".
        is_question (`bool`): whether it is asked, see [`as_question`].
    """

    pattern: str
    english: str
    chinese: str
    subject: str
    verb: Verb | None = None
    noun: Noun | None = None
    number: str = ""
    colour: str = ""
    place: str = ""
    time: str = ""
    is_question: bool = False

    @property
    def spoken(self) -> str:
        """The sentence as written English, with a capital letter and a full stop or a question mark."""
        return f"{self.english[0].upper()}{self.english[1:]}{'?' if self.is_question else '.'}"

    def as_question(self) -> "Sentence":
        """The question that can be answered with yes or no: "did my sister find three flowers", with its translation."""
        if self.verb is None:
            rest = self.english.removeprefix(f"{self.subject} is ")
            english = f"is {self.subject} {rest}"
        else:
            rest = self.english.removeprefix(f"{self.subject} {self.verb.form} ")
            english = f"{self.verb.auxiliary} {self.subject} {self.verb.base} {rest}"
        return replace(self, english=english, chinese=f"{self.chinese}吗", is_question=True)


@cache
def _counted() -> tuple[Sentence, ...]:
    return tuple(
        Sentence(
            "counted",
            f"{subject} {verb.form} {number} {noun.plural}",
            f"{PEOPLE[subject]}{verb.chinese}{NUMBERS[number]}{noun.measure}{noun.chinese}",
            subject,
            verb=verb,
            noun=noun,
            number=number,
        )
        for subject, verb, number, noun in product(PEOPLE, TRANSITIVE_VERBS, NUMBERS, NOUNS)
    )


@cache
def _coloured() -> tuple[Sentence, ...]:
    return tuple(
        Sentence(
            "coloured",
            f"{subject} {verb.form} a {colour} {noun.singular}",
            f"{PEOPLE[subject]}{verb.chinese}{COLOURS[colour]}{noun.chinese}",
            subject,
            verb=verb,
            noun=noun,
            colour=colour,
        )
        for subject, verb, colour, noun in product(PEOPLE, TRANSITIVE_VERBS, COLOURS, NOUNS)
    )


@cache
def _located() -> tuple[Sentence, ...]:
    subjects = {**PEOPLE, **{f"the {noun.singular}": noun.chinese for noun in NOUNS}}
    return tuple(
        Sentence(
            "located", f"{subject} is in the {place}", f"{chinese}在{PLACES[place]}", subject=subject, place=place
        )
        for (subject, chinese), place in product(subjects.items(), PLACES)
    )


@cache
def _acting() -> tuple[Sentence, ...]:
    return tuple(
        Sentence(
            "acting",
            f"{subject} {verb.form} in the {place}",
            f"{PEOPLE[subject]}在{PLACES[place]}{verb.chinese}",
            subject,
            verb=verb,
            place=place,
        )
        for subject, verb, place in product(PEOPLE, ACTIVITIES, PLACES)
    )


@cache
def _timed() -> tuple[Sentence, ...]:
    return tuple(
        Sentence(
            "timed",
            f"{subject} {verb.form} {time}",
            f"{PEOPLE[subject]}{TIMES[time]}{verb.chinese}",
            subject,
            verb=verb,
            time=time,
        )
        for subject, verb, time in product(PEOPLE, ACTIVITIES, TIMES)
    )


PATTERNS: dict[str, Callable[[], tuple[Sentence, ...]]] = {
    "counted": _counted,
    "coloured": _coloured,
    "located": _located,
    "acting": _acting,
    "timed": _timed,
}


def sentences_of(pattern: str, split: str, seed: int = 0) -> list[Sentence]:
    """
    The sentences of one pattern and one split, in random order.

    The splits share words but no sentence: 70 % of each pattern are in training, 10 % in validation and 20 % in test.

    Args:
        pattern (`str`): one of `PATTERNS`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        seed (`int`, defaults to 0): seed of the partition and the order.

    Returns:
        `list[Sentence]`: the sentences.

    Raises:
        ValueError: for an unknown pattern or split, or a seed below 0.
    """
    for name, value, known in (("pattern", pattern, PATTERNS), ("split", split, SPLITS)):
        if value not in known:
            raise ValueError(f"There is no {name} {value!r}, expected one of {', '.join(known)}.")
    if seed < 0:
        raise ValueError(f"seed={seed}: expected 0 or more.")
    sentences = PATTERNS[pattern]()
    order = np.random.default_rng([seed, list(PATTERNS).index(pattern)]).permutation(len(sentences))
    ends = np.round(np.cumsum(list(SPLIT_SHARES.values())) * len(sentences)).astype(int)
    place = SPLITS.index(split)
    return [sentences[index] for index in order[ends[place - 1] if place else 0 : ends[place]]]
