import pytest

from peft_listen.serving.answer_text import AnswerText
from tests.small_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def stream(tokenizer, text, length=1000, **settings):
    """The pieces of a text that is added token by token, and the answer."""
    answer = AnswerText(tokenizer, [1], length, is_streamed=True, **settings)
    pieces = []
    for token in [*tokenizer(text, add_special_tokens=False).input_ids, 1, 7]:
        answer.add(token)
        pieces.append(answer.take())
    return [piece for piece in pieces if piece], answer


@pytest.mark.parametrize("text", ["the quick brown fox", "ein Bär 🐻 und 熊", " ", "", "a\n\nb "])
def test_the_pieces_are_the_text(tokenizer, text):
    pieces, answer = stream(tokenizer, text)
    assert "".join(pieces) == answer.text == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert answer.finish_reason == "stop"
    assert answer.num_tokens == len(tokenizer(text, add_special_tokens=False).input_ids) + 1


def test_an_incomplete_character_at_the_end_is_not_lost(tokenizer):
    (*first, _) = tokenizer("a🐻", add_special_tokens=False).input_ids
    answer = AnswerText(tokenizer, [1], len(first), is_streamed=True)
    pieces = []
    for token in first:
        answer.add(token)
        pieces.append(answer.take())
    assert answer.finish_reason == "length"
    assert "".join(pieces) == answer.text == tokenizer.decode(first)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["brown"], "the quick "),
        (["ck br"], "the qui"),
        (["own", "quick"], "the "),
        (["k", "quick"], "the "),
        (["the"], ""),
        (["fox jumps", "x!"], "the quick brown fox"),
        (["x"], "the quick brown fo"),
    ],
)
def test_a_stop_string_is_never_shown(tokenizer, stop, expected):
    pieces, answer = stream(tokenizer, "the quick brown fox", stop=stop)
    assert "".join(pieces) == answer.text == expected
    assert answer.finish_reason == "stop"


def test_the_length_ends_an_answer(tokenizer):
    tokens = tokenizer("the quick brown fox", add_special_tokens=False).input_ids
    pieces, answer = stream(tokenizer, "the quick brown fox", length=2)
    assert "".join(pieces) == answer.text == tokenizer.decode(tokens[:2])
    assert (answer.finish_reason, answer.num_tokens) == ("length", 2)
    assert answer.add(tokens[2]) and answer.num_tokens == 2
