import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from peft_listen.serving.answer_text import AnswerText
from tests.small_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def sentencepiece_tokenizer():
    """A tokenizer as Llama 2's: a first word has no space, and unknown characters are written as bytes."""
    words = ["<unk>", "</s>", "▁", "▁▁", "▁the", "▁quick", "ly", "▁do", "n", "'t", ".", "\n"]
    vocab = {word: index for index, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


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


PIECES = ["▁the", "▁quick", "ly", "▁", "▁", "▁▁", "▁the", "</s>", "▁do", "n", "'t", ".", "\n", "▁the"]
BEAR = [f"<0x{byte:02X}>" for byte in "🐻".encode()]


@pytest.mark.parametrize(
    "tokens",
    [
        PIECES,
        PIECES[::-1],
        ["</s>", "</s>", "▁", "▁the", *BEAR, "▁quick", *BEAR, *BEAR, "ly"],
        ["▁the", *BEAR[:2], "▁quick", BEAR[3], *BEAR, *BEAR[:3]],
    ],
)
def test_spaces_and_bytes_are_written_as_in_the_whole_text(sentencepiece_tokenizer, tokens):
    token_ids = sentencepiece_tokenizer.convert_tokens_to_ids(tokens)
    answer = AnswerText(sentencepiece_tokenizer, [], len(token_ids), is_streamed=True)
    pieces = []
    for token_id in token_ids:
        answer.add(token_id)
        pieces.append(answer.take())
        assert answer.finish_reason or not pieces[-1].endswith("\N{REPLACEMENT CHARACTER}")
    expected = sentencepiece_tokenizer.decode(token_ids, skip_special_tokens=True)
    assert "".join(pieces) == answer.text == expected
    # It was not held back until the end.
    assert len("".join(pieces[:-1])) > len(expected) / 2


class CountingTokenizer:
    """Counts the tokens that are decoded."""

    def __init__(self, tokenizer):
        self.tokenizer, self.num_decoded = tokenizer, 0

    def decode(self, token_ids, **settings):
        self.num_decoded += len(token_ids)
        return self.tokenizer.decode(token_ids, **settings)


@pytest.mark.parametrize("settings", [{"is_streamed": True}, {"stop": ["never"]}, {}])
def test_the_tokens_that_are_decoded_grow_linearly(tokenizer, settings):
    text = "the quick brown fox 🐻 jumps\n" * 60
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    counting = CountingTokenizer(tokenizer)
    answer = AnswerText(counting, [1], 10_000, **settings)
    for token in [*token_ids, 1]:
        answer.add(token)
    assert answer.text == text
    assert counting.num_decoded <= 5 * len(token_ids)
