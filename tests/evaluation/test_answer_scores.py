"""Scores of rows for the equal error rate: log-probabilities of two answers, as in generation."""

import json

import pytest
import torch

from peft_listen import AudioListenProcessor
from peft_listen.data import read_examples, read_predictions
from peft_listen.evaluation import predict
from peft_listen.evaluation.answer_scores import row_scores
from peft_listen.evaluation.prediction_file import PredictionFile
from peft_listen.metrics import get_metric, score_predictions
from peft_listen.metrics.scoring import compared_answers
from peft_listen.metrics.tasks import parse_task_metrics
from peft_listen.rows import with_answer
from peft_listen.training import AudioListenCollator
from peft_listen_cli import main


PAIR = ("Yes", "No")


@pytest.fixture
def rows(clips):
    answers = ("Yes", "No", "yes", "No.")
    return [
        {"audio": clip, "instruction": f"The same speaker, in pair {index}?", "answer": answer, "task": "sv"}
        for index, (clip, answer) in enumerate(zip(clips, answers, strict=True))
    ]


@pytest.fixture
def data_file(rows, tmp_path):
    other = {"audio": None, "instruction": "Say a word.", "answer": "dog", "task": "words"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:3], other, rows[3]]))
    return str(path)


def log_probability_in_generation(model, collator, row):
    """That of the answer's tokens when `generate` has no other choice."""
    batch = collator([row])
    labels = batch.pop("labels")[0]
    prompt, answer = batch["input_ids"][:, labels == -100], labels[labels != -100]
    audio = {
        name: value
        for name, value in batch.items()
        if name not in ("input_ids", "attention_mask", "shift_labels", "logits_to_keep")
    }
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        **audio,
        max_new_tokens=len(answer),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        prefix_allowed_tokens_fn=lambda _, tokens: [int(answer[min(len(tokens) - prompt.shape[1], len(answer) - 1)])],
    )
    assert len(output.logits) == len(answer)
    steps = zip(output.logits, answer, strict=True)
    return float(sum(logits[0].float().log_softmax(-1)[token] for logits, token in steps))


@pytest.mark.parametrize("method", ["listen", "lora"])
def test_the_score_is_the_difference_of_log_probabilities_in_generation(make_adapted, composite_folder, rows, method):
    model = make_adapted(method)
    collator = AudioListenCollator(AudioListenProcessor.from_pretrained(composite_folder))
    scores = row_scores(model, collator, rows, {"sv": PAIR}, batch_size=3)
    for row, score in zip(rows, scores, strict=True):
        first, second = (log_probability_in_generation(model, collator, {**row, "answer": each}) for each in PAIR)
        assert score == pytest.approx(first - second, abs=1e-3)
    assert max(map(abs, scores)) > 0.01
    swapped = row_scores(model, collator, rows, {"sv": PAIR[::-1]}, batch_size=2)
    assert swapped == pytest.approx([-score for score in scores], abs=1e-4)
    assert row_scores(model, collator, rows, {"other": PAIR}, batch_size=2) == [None] * 4


@pytest.mark.parametrize("trained_answers", ["all", "last"])
def test_rows_of_every_form_are_scored_by_their_last_answer(
    make_adapted, composite_folder, rows, clips, trained_answers
):
    question = [{"type": "audio"}, {"type": "audio"}, {"type": "text", "text": "The same speaker?"}]
    messages = [
        {"role": "user", "content": "Listen well."},
        {"role": "assistant", "content": "I do."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "No"},
    ]
    chat = {"messages": messages, "audio": clips[:2], "instruction": "The same speaker?", "answer": "No"}
    several = {**rows[0], "audio": clips[1:3], "system": "Be brief."}
    forms = [{**row, "task": "sv"} for row in (rows[0], chat, several)]
    model, processor = make_adapted("listen"), AudioListenProcessor.from_pretrained(composite_folder)
    collator = AudioListenCollator(processor, trained_answers=trained_answers)
    scores = row_scores(model, collator, forms, {"sv": PAIR}, batch_size=3)
    last = AudioListenCollator(processor, trained_answers="last")
    for row, score in zip(forms, scores, strict=True):
        first, second = (log_probability_in_generation(model, last, with_answer(row, each)) for each in PAIR)
        assert score == pytest.approx(first - second, abs=1e-3)
    assert min(map(abs, scores)) > 0.01
    assert chat["messages"][-1]["content"] == "No"


def test_the_prompts_of_scores_and_answers_have_the_same_variables(pipe, rows, tmp_path):
    template = pipe.processor.chat_template
    pipe.processor.chat_template = "{{ style | default('') }}" + template
    variables = {"style": "Softly. "}
    options = {"compared": {"sv": PAIR}, "make_collator": AudioListenCollator, "batch_size": 2, "max_new_tokens": 2}
    found = predict(pipe, rows, tmp_path / "p.jsonl", chat_template_kwargs=variables, **options)
    plain = predict(pipe, rows, tmp_path / "q.jsonl", **options)
    collator = AudioListenCollator(pipe.processor, chat_template_kwargs=variables)
    expected = row_scores(pipe.model, collator, rows, {"sv": PAIR}, batch_size=2)
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-5)
    assert [row["score"] for row in plain] != pytest.approx(expected, abs=1e-3)


def test_evaluate_scores_speaker_verification(composite_folder, data_file, tmp_path, capsys):
    options = ["--batch-size", "2", "--max-new-tokens", "3", "--device", "cpu", "--metrics", "sv=eer", "sv=accuracy"]
    folder = tmp_path / "evaluation"
    assert main(["evaluate", str(composite_folder), data_file, "--output-dir", str(folder), *options]) == 0
    assert "| sv | 4 | eer (lower is better) |" in capsys.readouterr().out
    predictions = read_predictions(folder / "predictions.jsonl")
    assert ["score" in row for row in predictions] == [True, True, True, False, True]
    scores = [row["score"] for row in predictions if "score" in row]
    expected = get_metric("eer").compute(predictions=scores, references=[1, 0, 1, 0])
    stored = json.loads((folder / "scores.json").read_text())["tasks"]["sv"]
    assert stored["values"]["eer"] == expected["eer"] and stored["values"]["threshold"] == expected["threshold"]
    assert stored["quality"] == 1 - expected["eer"] and "accuracy" in stored["values"]

    # The file is scored without the model; without scores, it says how to get them.
    again = ["--output-dir", str(tmp_path / "again"), "--metrics", "sv=eer"]
    assert main(["evaluate", str(folder / "predictions.jsonl"), *again]) == 0
    assert json.loads((tmp_path / "again" / "scores.json").read_text())["tasks"]["sv"]["value"] == expected["eer"]
    without = tmp_path / "without.jsonl"
    without.write_text("".join(json.dumps({**row, "score": None}) + "\n" for row in predictions))
    assert main(["evaluate", str(without), *again]) == 2
    assert "have no `score`, the log-probability of 'Yes' minus that of 'No'" in capsys.readouterr().err


def test_scores_need_a_collator(rows, tmp_path):
    with pytest.raises(ValueError, match="`compared` needs `make_collator`"):
        predict(lambda: None, rows, tmp_path / "p.jsonl", compared={"sv": PAIR})
    assert list(tmp_path.iterdir()) == []


def test_a_batch_without_its_scores_is_not_finished(rows, tmp_path):
    file = PredictionFile(tmp_path / "p.jsonl", rows, {}, batch_size=2, scored_tasks=["sv"])
    file.prepare()
    lines = ({}, {"scores": [1.0]}, {"scores": [1.0, None]}, {"scores": [1.0, "x"]}, {"scores": [1.0, float("nan")]})
    for index, fields in enumerate(lines):
        line = json.dumps({"batch": 0, "generated": ["a", "b"], **fields})
        (tmp_path / "p.jsonl.parts" / f"{index}.jsonl").write_text(line + "\n")
    assert file.answers() == {}
    with pytest.raises(ValueError, match="needs one finite score for each row of sv"):
        file.add(0, ["a", "b"], [1.0, float("inf")])
    file.add(0, ["a", "b"], [1.5, -2.0])
    file.add(1, ["c", "d"], [0.5, 0.25])
    file.finish()
    assert [row["score"] for row in file.read()] == [1.5, -2.0, 0.5, 0.25]


@pytest.mark.parametrize("score", ["1", True, float("nan"), float("inf"), 10**400, [1]])
def test_a_score_of_a_file_must_be_a_finite_number(rows, tmp_path, score):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**rows[0], "generated": "Yes", "score": score}))
    with pytest.raises(ValueError, match=r"line 1: `score` must be a finite number"):
        read_predictions(path)
    assert "score" not in read_examples(path)[0]  # a field of somebody else


def test_the_answers_that_are_compared_can_be_set(rows):
    assert compared_answers(rows) == {}
    assert compared_answers(rows, parse_task_metrics(["sv=accuracy", "sv=eer"])) == {"sv": PAIR}
    assert compared_answers(rows, parse_task_metrics(["sv=eer:answers=same|different"])) == {
        "sv": ("same", "different")
    }
    assert compared_answers([{**row, "metric": "eer"} for row in rows]) == {"sv": PAIR}
    with pytest.raises(ValueError, match="compare different answers"):
        compared_answers(rows, parse_task_metrics(["sv=eer", "sv=eer:answers=same|different"]))
    with pytest.raises(ValueError, match="must be two different texts"):
        compared_answers(rows, parse_task_metrics(["sv=eer:answers=Yes|yes."]))
    scored = [{**row, "generated": "", "score": score} for row, score in zip(rows, (2, 1, -1, -2), strict=True)]
    assert score_predictions(scored, parse_task_metrics(["sv=eer"]))["sv"].value == 0.5
    with pytest.raises(ValueError, match="'No' is neither 'Yes' nor 'never'"):
        score_predictions(scored, parse_task_metrics(["sv=eer:answers=Yes|never"]))
