"""Correct answers per task, their chance level and its effect on the verdict."""

import dataclasses
import json
import math

import pytest

from peft_listen.analysis import score_answers, summarize
from peft_listen.analysis.findings import describe_task_answers, rate, rate_task_answers


def rows(references, generated, task="asr"):
    return [
        {"task": task, "answer": reference, "generated": answer}
        for reference, answer in zip(references, generated, strict=True)
    ]


def partly_correct(num_correct, num_rows=40, num_labels=4, task="asr"):
    """Predictions of which `num_correct` are right; every label is equally frequent."""
    references = [f"label {row % num_labels}" for row in range(num_rows)]
    return rows(references, [*references[:num_correct], *["?"] * (num_rows - num_correct)], task)


def test_accuracy_and_chance_level_equal_counts_by_hand() -> None:
    predictions = rows(["cat", "Cat.", "dog", "cat"], ["CAT", "dog", " dog! ", "cow"])
    predictions += rows(["yes", "no"], ["no", "no"], task="voice")
    answers = score_answers(predictions)
    assert list(answers) == ["asr", "voice"]
    asr = answers["asr"]
    assert (asr.num_rows, asr.accuracy, asr.chance_level) == (4, 0.5, 0.75)
    assert (asr.most_frequent_answer, asr.num_references) == ("cat", 2)
    # At least two of four, each with probability 3/4.
    assert asr.p_value == pytest.approx(sum(math.comb(4, k) * 0.75**k * 0.25 ** (4 - k) for k in (2, 3, 4)))
    assert asr.one_error_p_value == pytest.approx(0.75**4 + 4 * 0.75**3 * 0.25)
    assert (answers["voice"].accuracy, answers["voice"].chance_level) == (0.5, 0.5)
    assert score_answers([]) == {}


@pytest.mark.parametrize(
    ("predictions", "rating", "note"),
    [
        (partly_correct(40), "good", "above chance"),
        (partly_correct(25), "good", "above chance"),
        (partly_correct(24), "fair", "above chance"),
        (partly_correct(16), "fair", "above chance"),
        (partly_correct(14), "poor", "at chance level"),  # 35 % of 40, where guessing gives 25 %
        (partly_correct(0), "poor", "at chance level"),
        (partly_correct(140, num_rows=400), "fair", "above chance"),  # the same 35 %, of more rows
        # A constant answer is right as often as the most frequent reference occurs.
        (rows(["a"] * 30 + ["b"] * 10, ["a"] * 40), "poor", "at chance level"),
        (partly_correct(4, num_rows=4, num_labels=2), "unknown", "too few answers to tell"),
        (partly_correct(6, num_rows=6, num_labels=2), "good", "above chance"),
        # 6 of 6 would be above chance, but not 5 of 6.
        (partly_correct(4, num_rows=6, num_labels=2), "unknown", "too few answers to tell"),
        (partly_correct(6, num_rows=7, num_labels=2), "unknown", "too few answers to tell"),
        (partly_correct(0, num_rows=1), "unknown", "not rated: a single reference"),
        (partly_correct(5, num_rows=8, num_labels=2), "poor", "at chance level"),
        (partly_correct(7, num_rows=8, num_labels=2), "good", "above chance"),
        (rows(["a"] * 40, ["a"] * 40), "unknown", "not rated: a single reference"),
        (partly_correct(0, num_labels=40), "unknown", "not rated: free text"),
        (partly_correct(1, num_labels=21), "unknown", "not rated: free text"),
        (partly_correct(1, num_labels=20), "poor", "at chance level"),
        (partly_correct(21, num_labels=40), "good", "above chance"),
    ],
)
def test_answers_are_rated_by_their_distance_from_chance(predictions, rating, note) -> None:
    answers = score_answers(predictions)["asr"]
    assert (rate_task_answers(answers), describe_task_answers(answers)) == (rating, note)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ("text", "Prediction 1 is a str; expected a mapping with the strings `task`, `answer`, `generated`"),
        ({"task": "asr", "answer": "a"}, "`generated` of prediction 1 is missing; expected a mapping"),
        ({"task": "asr", "answer": 3, "generated": "a"}, "`answer` of prediction 1 is a int; expected a mapping"),
        ({"task": None, "answer": "a", "generated": "a"}, "`task` of prediction 1 is a NoneType; expected a mapping"),
        (
            {"task": "asr", "answer": " .", "generated": "a"},
            r"`answer` of prediction 1 is empty \(' \.'\), so no answer",
        ),
    ],
)
def test_invalid_predictions_are_refused(prediction, message) -> None:
    with pytest.raises(ValueError, match=message):
        score_answers([*rows(["a"], ["a"]), prediction])


def test_a_row_without_an_answer_does_not_count() -> None:
    rows = [
        {"task": "t", "answer": "a", "generated": "a"},
        {"task": "t", "answer": "a", "generated": "", "error": "bad"},
    ]
    assert score_answers(rows)["t"].num_rows == 1


def test_an_empty_answer_is_wrong() -> None:
    assert score_answers(rows(["a", "b"], ["", "b"]))["asr"].accuracy == 0.5


def test_predictions_for_other_tasks_are_refused(make_records) -> None:
    message = r"contain the tasks \['voice'\], but the selections are for \['asr', 'captions', 'emotion'\]"
    with pytest.raises(ValueError, match=message):
        summarize(make_records(), predictions=partly_correct(9) + partly_correct(9, task="voice"))


def test_a_summary_with_answers_is_json_serializable(make_records) -> None:
    summary = summarize(make_records(), predictions=iter(partly_correct(30)))
    as_json = json.loads(json.dumps(summary.to_dict()))
    assert as_json["answers"]["asr"]["accuracy"] == 0.75
    assert summarize(make_records()).to_dict()["answers"] == {}


@pytest.mark.parametrize(
    ("overlap", "num_correct", "rating", "headline"),
    [
        (0.2, {}, "good", "The tasks select different prompts."),
        (0.2, {"asr": 40, "captions": 40}, "good", "The tasks select different prompts."),
        (0.2, {"asr": 10}, "poor", "The tasks select different prompts, but the answers are at chance level."),
        (0.2, {"asr": 10, "emotion": 10}, "poor", "but the answers are at chance level."),
        (0.2, {"asr": 40, "emotion": 10}, "fair", "but the answers of emotion are at chance level."),
        (
            0.2,
            {"asr": 10, "captions": 40, "emotion": 10},
            "fair",
            "but the answers of asr and emotion are at chance level.",
        ),
        (0.7, {"asr": 40, "emotion": 10}, "fair", "share most of their prompts, and the answers of emotion are at"),
        (0.9, {"asr": 40, "emotion": 10}, "poor", "Collapse: the tasks select the same prompts, and the answers of"),
        (None, {"asr": 10}, "poor", "only one task, so nothing can be said about differences between tasks, and the"),
    ],
)
def test_answers_at_chance_level_are_not_green(make_records, overlap, num_correct, rating, headline) -> None:
    predictions = [row for task, correct in num_correct.items() for row in partly_correct(correct, task=task)]
    summary = summarize(make_records(), predictions=predictions)
    verdict, _ = rate(dataclasses.replace(summary, mean_overlap=overlap))
    assert verdict.rating == rating
    assert headline in verdict.headline
    assert ("not significantly above" in verdict.detail) == (10 in num_correct.values())


def test_too_few_answers_are_no_verdict_about_chance(make_records) -> None:
    predictions = partly_correct(4, num_rows=6, num_labels=2)
    alone, findings = rate(summarize(make_records(), predictions=predictions))
    assert (alone.rating, alone.headline) == ("good", "The tasks select different prompts.")
    assert alone.detail.endswith("There are too few answers for asr to tell whether they are above the chance level.")
    assert "Tasks answered above chance" not in [finding.title for finding in findings]
    predictions += partly_correct(10, task="emotion")
    verdict, _ = rate(summarize(make_records(), predictions=predictions))
    assert verdict.headline.endswith("but the answers are at chance level.")
    assert "too few answers for asr" in verdict.detail


def test_free_text_does_not_count_as_chance_level(make_records) -> None:
    summary = summarize(make_records(), predictions=partly_correct(0, num_labels=40))
    verdict, findings = rate(summary)
    assert verdict.rating == "good"
    assert "Tasks answered above chance" not in [finding.title for finding in findings]


def test_the_number_of_tasks_above_chance_is_the_first_finding(make_records) -> None:
    predictions = partly_correct(40) + partly_correct(10, task="captions")
    predictions += partly_correct(0, num_labels=40, task="emotion")
    finding = rate(summarize(make_records(), predictions=predictions), {"stochastic_prompt_length": True})[1][0]
    assert (finding.title, finding.value, finding.rating) == ("Tasks answered above chance", "1 of 2", "fair")
    assert "1 of the tasks cannot be rated" in finding.meaning
    assert "stochastic_prompt_length=False" in finding.advice
