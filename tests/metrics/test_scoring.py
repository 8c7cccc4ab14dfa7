"""Each task is scored by its metrics: those that are set, those that its rows name, or those of its name."""

import pytest

from peft_listen.metrics import (
    MetricChoice,
    mean_quality,
    register_task_metrics,
    score_predictions,
    task_metrics,
    tasks,
)
from peft_listen.metrics.scoring import check_metrics
from peft_listen.metrics.tasks import parse_task_metrics


def row(task, answer, generated, **more):
    return {"task": task, "answer": answer, "generated": generated, **more}


def test_tasks_have_the_metrics_of_their_names():
    scores = score_predictions(
        [
            row("asr", "a b c d", "a b x d"),
            row("en2zh", "你好世界", "你好世界"),
            row("tags", "dog", "Dog."),
            row("tags", "cat", "dog"),
        ]
    )
    assert list(scores) == ["asr", "en2zh", "tags"]
    asr = scores["asr"]
    assert (asr.metric, asr.value, asr.higher_is_better, asr.quality, asr.num_rows) == ("wer", 0.25, False, 0.75, 1)
    assert asr.values["cer"] == pytest.approx(1 / 7) and asr.values["substitutions"] == 1
    assert scores["en2zh"].metric == "bleu" and scores["en2zh"].quality == pytest.approx(1.0)
    assert scores["tags"].values == {"exact_match": 0.5}
    assert mean_quality(scores) == pytest.approx((0.75 + 1 + 0.5) / 3)


def test_rows_and_the_caller_choose_the_metric():
    rows = [row("mood", "sad", "happy", metric="accuracy:labels=happy|sad"), row("mood", "sad", "sad")]
    rows[1]["metric"] = rows[0]["metric"]
    assert score_predictions(rows)["mood"].values["unparseable"] == 0
    chosen = parse_task_metrics(["mood=wer", "mood=exact_match"])
    score = score_predictions(rows, chosen)["mood"]
    assert (score.metric, score.values["exact_match"]) == ("wer", 0.5)
    assert (score.higher_is_better, score.quality) == (False, 0.5)


def test_rows_without_an_answer_are_left_out_and_counted():
    score = score_predictions([row("asr", "a b", "a c"), row("asr", "a b", "", error="no such file")])["asr"]
    assert (score.num_rows, score.num_skipped, score.value, score.counted_rows) == (1, 1, 0.5, "1 (1 skipped)")
    with pytest.raises(
        ValueError, match="'asr' has no answers to score: all of its 2 rows are skipped. The first: bad"
    ):
        score_predictions([row("asr", "a b", "", error="bad")] * 2)


def test_an_error_rate_above_one_has_no_negative_quality():
    assert score_predictions([row("asr", "a", "b c d")])["asr"].quality == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wer", MetricChoice("wer")),
        ("wer:normalizer=unpointed", MetricChoice("wer", {"normalizer": "unpointed"})),
        ("chrf:word_order=2,lowercase=true", MetricChoice("chrf", {"word_order": 2, "lowercase": True})),
        ("accuracy:labels=yes|no", MetricChoice("accuracy", {"labels": ["yes", "no"]})),
    ],
)
def test_the_notation_of_metrics(text, expected):
    assert MetricChoice.parse(text) == expected
    expected.create()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words", "There is no metric 'words'"),
        ("wer:casing=1", "the option 'casing=1'.*the options normalizer"),
        ("exact_match:cache_dir=/", "'exact_match' has no options"),
        ("bleu:num_process=2", "the options tokenize, lowercase"),
        ("bleu:zh", "expected `name` or `name:option=value"),
    ],
)
def test_other_notations_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        MetricChoice.parse(text)


@pytest.mark.parametrize("text", ["wer", "=wer", "asr=", "asr=words"])
def test_assignments_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match=r"expected TASK=METRIC|There is no metric"):
        parse_task_metrics([text])


@pytest.mark.parametrize(
    ("rows", "metrics", "message"),
    [
        ([], {}, "no predictions to score"),
        ([row("a", "x", "x")], {"b": [MetricChoice("wer")]}, r"the tasks \['b'\], which have no rows"),
        ([row("a", "x", "x", metric="wer"), row("a", "x", "x")], {}, "name different metrics: 'wer', none"),
        ([row("a", "", "x")], {}, "task 'a' cannot be scored by 'exact_match'.*is empty"),
        ([row("a", "yes", "no", metric="eer")], {}, "have no `score`"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(rows, metrics, message):
    with pytest.raises(ValueError, match=message):
        score_predictions(rows, metrics)


def test_references_are_checked_before_there_are_answers():
    check_metrics([{"task": "asr", "answer": "a b"}])
    with pytest.raises(ValueError, match="task 'asr'"):
        check_metrics([{"task": "asr", "answer": "?"}])


def test_a_task_is_given_metrics_of_its_own(monkeypatch):
    monkeypatch.setattr(tasks, "_TASK_METRICS", dict(tasks._TASK_METRICS))
    register_task_metrics("Dialects", "accuracy", "exact_match")
    assert [choice.name for choice in task_metrics("dialects")] == ["accuracy", "exact_match"]
    with pytest.raises(ValueError, match="at least one metric"):
        register_task_metrics("dialects")
    with pytest.raises(ValueError, match="There is no metric"):
        register_task_metrics("dialects", "no")
