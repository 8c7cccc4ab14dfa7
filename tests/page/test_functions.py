"""What the buttons do: the answers and messages that a visitor sees."""

import pytest

from peft_listen.page.functions import Comparison, Question, Result, ask, comparisons
from tests.small_models import write_wav


QUESTION = "What is said?"


def last(page, **settings) -> Result:
    *_, result = ask(page, Question(**{"model": "dogs", "instruction": QUESTION, **settings}))
    return result


def message(page, **settings) -> str:
    result = last(page, **settings)
    assert result.first.text == "" and 'role="alert"' in result.message
    return result.message


def test_an_answer_with_its_selection(answering, clips, expected):
    result = last(answering, clip=clips[0])
    assert result.message == ""
    assert result.first.text == expected("dogs", clips[0], QUESTION)
    assert "dogs, k = 4" in result.first.heading and " s</span>" in result.first.heading
    assert "4 of 8 prompts" in result.first.selection
    assert result.second.text == result.second.selection == ""


@pytest.mark.parametrize(
    ("settings", "model", "length", "heading"),
    [
        ({"comparison": Comparison.OFF}, None, None, "dogs, adapter off"),
        ({"comparison": Comparison.OTHER_LENGTH, "other_prompt_length": 1}, "dogs", 1, "dogs, k = 1"),
        ({"comparison": Comparison.OTHER_MODEL, "other_model": "cats"}, "cats", None, "cats, k = 3"),
    ],
)
def test_a_second_answer_to_the_same_question(answering, clips, expected, settings, model, length, heading):
    results = list(ask(answering, Question("dogs", clips[0], QUESTION, prompt_length=2, **settings)))
    assert results[-1].first.text == expected("dogs", clips[0], QUESTION, 2)
    assert results[-1].second.text == expected(model, clips[0], QUESTION, length)
    assert heading in results[-1].second.heading
    # The second answer begins when the first is whole.
    assert all(result.first == results[-1].first for result in results if result.second.heading)
    if settings["comparison"] == Comparison.OFF:
        assert "The adapter is off: no prompts are selected." in results[-1].second.selection
    else:
        assert f"{length or 3} of {8 if model == 'dogs' else 9} prompts" in results[-1].second.selection


def test_the_comparisons_that_a_model_has(answering, single, plain):
    assert comparisons(answering, "dogs") == list(Comparison)
    assert comparisons(single, "dogs") == [Comparison.NOTHING, Comparison.OFF, Comparison.OTHER_LENGTH]
    assert comparisons(plain, "plain") == [Comparison.NOTHING]


def test_a_model_without_an_adapter_says_so(plain, clips, expected):
    result = last(plain, model="plain", clip=clips[0])
    assert result.first.text == expected(None, clips[0], QUESTION)
    assert "no LiSTEN adapter, so no prompts are selected" in result.first.selection
    assert "plain" in result.first.heading


def test_a_clip_without_an_instruction_and_an_instruction_without_a_clip(answering, clips):
    assert last(answering, clip=clips[0], instruction="  ").first.text
    assert last(answering).first.text


def test_a_language_model_without_audio_takes_no_clip(text_only, clips):
    # No component sends one, but a request may.
    answers = [last(text_only, model="own", clip=clip).first.text for clip in (clips[0], None)]
    assert answers[0] == answers[1] != ""
    assert "Write an instruction." in message(text_only, model="own", instruction="")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"instruction": " "}, "There is nothing to answer. Choose a clip or write an instruction."),
        ({"instruction": "a" * 5000}, "5000 characters; this page takes 4000"),
        ({"model": "birds"}, "There is no model &#x27;birds&#x27; on this page. Choose one of dogs, cats."),
        ({"prompt_length": 0}, "k must be a whole number from 1 to 8"),
        ({"prompt_length": 9}, "k must be a whole number from 1 to 8"),
        ({"prompt_length": 2.5}, "k must be a whole number from 1 to 8"),
        (
            {"comparison": Comparison.OTHER_LENGTH, "other_prompt_length": 99},
            "from 1 to 8, the size of the pool, got 99",
        ),
        ({"comparison": Comparison.OTHER_MODEL, "other_model": "<b>"}, "There is no model &#x27;&lt;b&gt;&#x27;"),
    ],
)
def test_questions_that_are_refused(answering, settings, problem):
    assert problem in message(answering, **settings)


def test_a_comparison_that_is_not_offered_is_refused(plain):
    assert "plain cannot be compared with adapter off" in message(plain, model="plain", comparison=Comparison.OFF)


def test_a_clip_that_is_refused(answering, tmp_path):
    path = write_wav(tmp_path / "long.wav", 4.0)
    assert "The clip is longer than 3 seconds, the limit of this page" in message(answering, clip=str(path))
