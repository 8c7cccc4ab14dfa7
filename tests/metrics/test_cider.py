"""CIDEr-D, compared with values by hand, and its words."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.metrics import get_metric
from peft_listen.metrics.cider import tokenize_caption


def cider(predictions, references) -> float:
    return get_metric("cider").compute(predictions=predictions, references=references)["cider"]


def test_a_row_of_one_word_by_hand() -> None:
    # Row 1: only the unigram is there, so one of four cosines is 1 and the others 0. Row 2: nothing in common.
    assert cider(["dog", "rain"], ["dog", "wind"]) == pytest.approx((10 / 4 + 0) / 2)


def test_another_length_is_penalized_and_repetition_clipped_by_hand() -> None:
    # Unigrams "dog dog" and "dog" have the vectors 2w and w, clipped to w, so the cosine is 1/2; the lengths differ by one.
    expected = 10 / 4 * (1 / 2) * math.exp(-1 / 72)
    assert cider(["dog dog", "x"], ["dog", "wind"]) == pytest.approx(expected / 2)


def test_words_of_every_row_do_not_count() -> None:
    assert cider(["a", "a"], ["a", "a"]) == 0.0
    assert cider(["a dog", "a car"], ["a dog", "a car"]) == pytest.approx(10 * 2 / 4)


def test_several_references_are_averaged() -> None:
    one = cider(["dog barks", "rain"], [["dog barks"], "wind"])
    both = cider(["dog barks", "rain"], [["dog barks", "cat sleeps"], "wind"])
    assert both == pytest.approx(one / 2)


def test_a_single_row_raises_because_all_weights_are_0() -> None:
    metric = get_metric("cider")
    with pytest.raises(ValueError, match="cannot be computed for one row. Pass a whole test set"):
        metric.compute(predictions=["a dog"], references=["a dog"])
    assert metric.compute(predictions=["a dog", "rain"], references=["a dog", "wind"])["cider"] > 0


@pytest.mark.parametrize("reference", ["", " \n", "...", "?!"])
def test_a_reference_without_words_raises_and_an_empty_prediction_is_wrong(reference) -> None:
    with pytest.raises(ValueError, match=r"`references\[1\]\[0\]` contains no word.*Leave the row out"):
        cider(["a", "b"], ["a", [reference]])
    assert cider(["", ""], ["a dog", "rain"]) == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man speaks.", "a man speaks"),
        ("Rain falls, and a man speaks; then: silence!", "rain falls and a man speaks then silence"),
        ("The dog's high-pitched bark doesn't stop", "the dog 's high-pitched bark does n't stop"),
        ("They're talking loudly; then silence... and a beep!", "they 're talking loudly then silence and a beep"),
        ("2 birds at 3.5 kHz and 1,000 others", "2 birds at 3.5 khz and 1,000 others"),
        ("It's 10:30 and the clock's ticking -- loudly", "it 's 10:30 and the clock 's ticking loudly"),
        ("He can't, won't and shan't speak", "he ca n't wo n't and sha n't speak"),
        ("A man/woman speaks", "a man/woman speaks"),
        ('A man says "hello" and leaves', "a man says hello and leaves"),
        ("Men talk. A car passes. Birds sing.", "men talk a car passes birds sing"),
        ("the clickety-clack of a 5-year-old", "the clickety-clack of a 5-year-old"),
        ("the dogs' barking", "the dogs barking"),
        ("a cafe, naïve people and a résumé", "a cafe naïve people and a résumé"),
    ],
)
def test_captions_are_split_as_by_the_ptb_tokenizer(text, words) -> None:
    # What Stanford's PTBTokenizer of pycocoevalcap 1.2 gave, with its options and its list of punctuation.
    assert " ".join(tokenize_caption(text)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Music (loud)", "music loud"),  # PTBTokenizer: music -lrb- loud -rrb-
        ("rain & wind at 50%", "rain wind at 50"),  # rain & wind at 50 %
        ("it\u2019s Mr. Smith", "it 's mr smith"),  # mr. smith
    ],
)
def test_symbols_and_abbreviations_are_split_otherwise(text, words) -> None:
    assert " ".join(tokenize_caption(text)) == words


WORDS = st.lists(st.sampled_from(["dog", "barks", "rain", "loud"]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=5))
def test_values_are_between_0_and_10_and_the_order_of_the_rows_does_not_matter(rows) -> None:
    predictions, references = ([row[side] for row in rows] for side in (0, 1))
    value = cider(predictions, references)
    assert -1e-9 <= value <= 10 + 1e-9
    assert cider(predictions[::-1], references[::-1]) == pytest.approx(value)
    assert cider(references, references) >= value - 1e-9
