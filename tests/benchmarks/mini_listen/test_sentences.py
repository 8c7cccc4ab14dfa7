from collections import Counter
from itertools import combinations

import pytest

from benchmarks.mini_listen.questions import FRAMES, KINDS, Question, ask, framed
from benchmarks.mini_listen.sentences import (
    NOUNS,
    PATTERNS,
    PEOPLE,
    SPLIT_SHARES,
    SPLITS,
    TRANSITIVE_VERBS,
    Sentence,
    sentences_of,
)


def all_sentences() -> list[Sentence]:
    return [sentence for make in PATTERNS.values() for sentence in make()]


def test_there_are_several_thousand_sentences_of_3_to_6_words_and_no_two_are_equal() -> None:
    sentences = all_sentences()
    assert len({sentence.english for sentence in sentences}) == len(sentences) > 8000
    assert {len(sentence.english.split()) for sentence in sentences} <= {3, 4, 5, 6}
    assert max(len(sentence.chinese) for sentence in sentences) <= 10


def test_different_sentences_have_different_translations() -> None:
    translations = Counter(sentence.chinese for sentence in all_sentences())
    assert max(translations.values()) == 1


def test_a_translation_says_what_the_sentence_says() -> None:
    by_english = {sentence.english: sentence.chinese for sentence in all_sentences()}
    assert by_english["my sister found two flowers"] == "姐姐找到两朵花"
    assert by_english["the girl lost a red table"] == "女孩丢了红桌子"
    assert by_english["the horse is in the garden"] == "马在花园"
    assert by_english["the boy sings in the park"] == "男孩在公园唱歌"
    assert by_english["my uncle works every day"] == "叔叔每天工作"


def test_the_spoken_form_is_a_written_sentence() -> None:
    assert PATTERNS["located"]()[0].spoken == "My mother is in the house."
    assert PATTERNS["located"]()[0].as_question().spoken == "Is my mother in the house?"


@pytest.mark.parametrize(
    ("english", "question", "chinese"),
    [
        ("my sister found two flowers", "did my sister find two flowers", "姐姐找到两朵花吗"),
        ("the boy needs a red fish", "does the boy need a red fish", "男孩需要红鱼吗"),
        ("the horse is in the garden", "is the horse in the garden", "马在花园吗"),
        ("my uncle works every day", "does my uncle work every day", "叔叔每天工作吗"),
    ],
)
def test_every_sentence_can_be_asked(english: str, question: str, chinese: str) -> None:
    asked = sentence(english).as_question()
    assert (asked.english, asked.chinese, asked.is_question) == (question, chinese, True)


def test_questions_have_3_to_7_words() -> None:
    questions = [candidate.as_question().english for candidate in all_sentences()]
    assert len(set(questions)) == len(questions)
    assert {len(question.split()) for question in questions} <= {4, 5, 6, 7}
    assert all(question.split()[0] in ("is", "did", "does") for question in questions)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_splits_share_words_but_no_sentence_and_leave_none_out(pattern: str) -> None:
    splits = {split: {sentence.english for sentence in sentences_of(pattern, split)} for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        assert splits[first].isdisjoint(splits[second])
    assert set().union(*splits.values()) == {sentence.english for sentence in PATTERNS[pattern]()}
    for split, share in SPLIT_SHARES.items():
        assert len(splits[split]) == pytest.approx(share * len(PATTERNS[pattern]()), abs=1)
    words = {split: {word for sentence in splits[split] for word in sentence.split()} for split in SPLITS}
    assert words["test"] <= words["train"]


def test_the_partition_follows_from_the_seed() -> None:
    assert sentences_of("timed", "test", 1) == sentences_of("timed", "test", 1)
    assert set(sentences_of("timed", "test", 1)) != set(sentences_of("timed", "test", 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sung", "test"), "no pattern 'sung', expected one of counted, coloured, located, acting, timed"),
        (("timed", "dev"), "no split 'dev', expected one of train, validation, test"),
        (("timed", "test", -1), "seed=-1: expected 0 or more"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sentences_of(*arguments)


def sentence(english: str) -> Sentence:
    return next(candidate for candidate in all_sentences() if candidate.english == english)


@pytest.mark.parametrize(
    ("english", "kind", "direct", "indirect", "answer"),
    [
        ("my sister found three flowers", "who", "Who found the flowers", "who found the flowers", "my sister"),
        ("my sister found three flowers", "what", "What did my sister find", "what my sister found", "flowers"),
        (
            "my sister found three flowers",
            *("how many", "How many flowers are there", "how many flowers there are", "three"),
        ),
        ("the boy needs a red fish", "who", "Who needs the fish", "who needs the fish", "the boy"),
        ("the boy needs a red fish", "what", "What does the boy need", "what the boy needs", "fish"),
        ("the boy needs a red fish", "colour", "What colour is the fish", "what colour the fish is", "red"),
        ("the horse is in the garden", "where", "Where is the horse", "where the horse is", "the garden"),
        (
            "the horse is in the garden",
            *("who or what is there", "What is in the garden", "what is in the garden", "the horse"),
        ),
        (
            "the girl is in the garden",
            *("who or what is there", "Who is in the garden", "who is in the garden", "the girl"),
        ),
        ("the boy sings in the park", "who", "Who sings in the park", "who sings in the park", "the boy"),
        ("the boy sings in the park", "where", "Where does the boy sing", "where the boy sings", "the park"),
        ("the boy sings in the park", "doing", "What does the boy do", "what the boy does", "sings"),
        ("my uncle works every day", "when", "When does my uncle work", "when my uncle works", "every day"),
    ],
)
def test_questions_and_answers(english: str, kind: str, direct: str, indirect: str, answer: str) -> None:
    assert ask(sentence(english), kind) == Question(direct, indirect, answer)


def test_a_question_about_an_asked_sentence_is_answered_with_its_words() -> None:
    asked = sentence("the boy sings in the park").as_question()
    assert ask(asked, "doing").answer == "sing"
    assert ask(asked, "where") == ask(sentence("the boy sings in the park"), "where")


def test_every_answer_has_one_or_two_words_that_are_said_and_not_in_the_question() -> None:
    for make in PATTERNS.values():
        for statement in make()[::13]:
            for candidate in (statement, statement.as_question()):
                for kind in KINDS[candidate.pattern]:
                    question = ask(candidate, kind)
                    assert 1 <= len(question.answer.split()) <= 2
                    assert f" {question.answer} " in f" {candidate.english} "
                    for frame in (frame for frames in FRAMES.values() for frame in frames):
                        text = framed(question.direct, question.indirect, frame)
                        words = "".join(c if c.isalpha() or c == " " else " " for c in text.lower()).split()
                        assert f" {question.answer} " not in f" {' '.join(words)} "
                        assert "{" not in text and "  " not in text
                        assert text[0].isupper() and text[-1] in "?."


def test_no_question_is_asked_in_the_same_words_in_two_splits() -> None:
    asked: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for candidate in (sentence("my sister found three flowers"), sentence("the boy sings in the park")):
            for kind in KINDS[candidate.pattern]:
                question = ask(candidate, kind)
                asked[split] |= {framed(question.direct, question.indirect, frame) for frame in FRAMES[split]}
    for first, second in combinations(SPLITS, 2):
        assert asked[first].isdisjoint(asked[second])


def test_a_question_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'colour' cannot be asked about .*, expected one of who, where, doing"):
        ask(sentence("the boy sings in the park"), "colour")


def test_the_vocabulary_has_no_word_twice() -> None:
    for words in (list(PEOPLE), [noun.singular for noun in NOUNS], [verb.form for verb in TRANSITIVE_VERBS]):
        assert len(set(words)) == len(words)
    assert len(set(PEOPLE.values())) == len(PEOPLE)
