"""The registry of metrics, and properties of every registered metric."""

import doctest
import importlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

import peft_listen
from peft_listen.metrics import available_metrics, get_metric, register_metric
from peft_listen.metrics import registry as registry_module
from peft_listen.metrics.base import BaseMetric


TEXTS = {"predictions": ["A dog barks.", "two birds sing"], "references": ["a dog barks", "two cars pass"]}
SCORES = {"predictions": [0.9, 0.1, 0.4, 0.6], "references": [1, 0, 1, 0]}
INPUTS = {name: SCORES if name == "eer" else TEXTS for name in available_metrics()}

every_metric = pytest.mark.parametrize("name", available_metrics())


@pytest.fixture
def empty_slot(monkeypatch):
    monkeypatch.setattr(registry_module, "_METRICS", dict(registry_module._METRICS))


def test_the_built_in_metrics_are_registered() -> None:
    assert available_metrics() == [
        *("accuracy", "bleu", "cer", "chrf", "cider", "eer", "exact_match", "rouge_l", "squad_f1", "wer")
    ]


@every_metric
def test_a_metric_is_an_evaluate_metric_and_returns_its_value_under_its_name(name) -> None:
    metric = get_metric(name)
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == name
    assert metric.description
    assert isinstance(metric.compute(**INPUTS[name])[name], float)


@every_metric
def test_rows_can_be_added_one_by_one_or_in_batches(name) -> None:
    expected = get_metric(name).compute(**INPUTS[name])
    predictions, references = INPUTS[name]["predictions"], INPUTS[name]["references"]
    metric = get_metric(name)
    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=predictions[1:], references=references[1:])
    assert metric.compute() == expected
    # Computing the value clears the rows.
    assert metric.compute(**INPUTS[name]) == expected


@every_metric
def test_two_metrics_in_use_at_once_are_independent(name) -> None:
    expected = get_metric(name).compute(**INPUTS[name])
    metrics = [get_metric(name), get_metric(name)]
    for prediction, reference in zip(INPUTS[name]["predictions"], INPUTS[name]["references"], strict=True):
        for metric in metrics:
            metric.add(prediction=prediction, reference=reference)
    assert [metric.compute() for metric in metrics] == [expected, expected]


@every_metric
def test_the_order_of_the_rows_does_not_matter(name) -> None:
    backwards = {key: column[::-1] for key, column in INPUTS[name].items()}
    assert get_metric(name).compute(**backwards) == get_metric(name).compute(**INPUTS[name])


def test_the_metrics_work_offline_and_write_no_file(tmp_path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    code = (
        "import json, sys; from peft_listen.metrics import get_metric\n"
        "inputs = json.loads(sys.argv[1])\n"
        "print(json.dumps({name: get_metric(name).compute(**inputs[name]) for name in inputs}))"
    )
    # Caches of the underlying libraries (such as nltk) would appear in the home folder too.
    environment = {"HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(peft_listen.__file__).parent.parent)
    command = [sys.executable, "-c", code, json.dumps(INPUTS)]
    result = subprocess.run(command, cwd=work, env=environment, check=True, capture_output=True, text=True)
    assert json.loads(result.stdout) == {name: get_metric(name).compute(**INPUTS[name]) for name in INPUTS}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def compute_part(process_id: int, folder: str, queue: "multiprocessing.Queue") -> None:
    metric = get_metric("wer", num_process=2, process_id=process_id, experiment_id="two", cache_dir=folder, timeout=60)
    result = metric.compute(
        predictions=TEXTS["predictions"][process_id::2], references=TEXTS["references"][process_id::2]
    )
    queue.put((process_id, result))


def test_metrics_are_combined_as_those_of_evaluate() -> None:
    combined = evaluate.combine([get_metric("wer"), get_metric("cer"), get_metric("rouge_l")])
    result = combined.compute(**TEXTS)
    assert {name: result[name] for name in ("wer", "cer", "rouge_l")} == {
        name: get_metric(name).compute(**TEXTS)[name] for name in ("wer", "cer", "rouge_l")
    }


def test_several_processes_compute_one_value_in_the_first(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=compute_part, args=(rank, str(tmp_path), queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=90) for _ in processes)
    for process in processes:
        process.join()
    assert results == {0: get_metric("wer").compute(**TEXTS), 1: None}


@every_metric
def test_invalid_inputs_raise_and_leave_the_metric_usable(name) -> None:
    metric = get_metric(name)
    rows = INPUTS[name]
    prediction, reference = rows["predictions"][0], rows["references"][0]
    for wrong, message in [
        ({"predictions": [], "references": []}, "at least one row"),
        ({"predictions": [prediction], "references": [reference] * 2}, "1 predictions, but 2 references"),
        ({"predictions": [prediction]}, "`references` is missing"),
        ({"references": [reference]}, "`predictions` is missing"),
        ({"predictions": "happy", "references": "happy"}, "`predictions` must be a list"),
        ({"predictions": [prediction, None], "references": [reference] * 2}, r"`predictions\[1\]` must be a"),
        ({"predictions": [prediction] * 2, "references": [reference, 7]}, r"`references\[1\]` must be"),
        ({"predictions": [prediction], "references": [b"bytes"]}, r"`references\[0\]` must be"),
        ({}, "no rows to compute"),
        ({**rows, "tokenize": "zh"}, r"also got \['tokenize'\].*get_metric"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric.compute(**wrong)
    with pytest.raises(ValueError, match=r"`predictions\[0\]` must be"):
        metric.add(prediction=None, reference=reference)
    with pytest.raises(ValueError, match="at least one row"):
        metric.add_batch(predictions=[], references=[])
    assert metric.compute(**rows) == get_metric(name).compute(**rows)


@pytest.mark.parametrize("name", sorted(set(available_metrics()) - {"eer", "cider"}))
@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_reference_raises_with_its_row_and_an_empty_prediction_is_wrong(name, empty) -> None:
    metric = get_metric(name)
    with pytest.raises(ValueError, match=r"`references\[1\].*(empty|no word).*Leave the row out"):
        metric.compute(predictions=["a dog", "a dog"], references=["a dog", empty])
    value = metric.compute(predictions=["a dog barks at me", empty], references=["a dog barks at me", "two cars"])[
        name
    ]
    perfect = metric.compute(predictions=["a dog barks at me"], references=["a dog barks at me"])[name]
    assert value > perfect if name in ("wer", "cer") else value < perfect


@pytest.mark.parametrize("name", ["bleu", "chrf", "exact_match", "rouge_l", "squad_f1"])
def test_the_best_of_several_references_counts_and_rows_may_differ_in_number(name) -> None:
    metric = get_metric(name)
    caption = "a dog barks and a car passes"
    perfect = metric.compute(predictions=[caption], references=[caption])[name]
    both = metric.compute(predictions=[caption] * 2, references=[["birds sing", caption], caption])[name]
    assert both == pytest.approx(perfect)
    with pytest.raises(ValueError, match=r"`references\[0\]` must be a string or a list of at least one"):
        metric.compute(predictions=[caption], references=[[]])
    with pytest.raises(ValueError, match=r"`references\[0\]\[1\]` must be a string or a list of strings, got 5"):
        metric.compute(predictions=[caption], references=[["birds", 5]])


def test_single_reference_metrics_raise_for_several_references() -> None:
    for name in ("accuracy", "cer", "wer"):
        with pytest.raises(ValueError, match=r"`references\[0\]` must be a string, got \['a', 'b'\]"):
            get_metric(name).compute(predictions=["a"], references=[["a", "b"]])


@pytest.mark.parametrize("module", ["cider", "registry", "text_normalization"])
def test_docstring_examples_run(module, empty_slot) -> None:
    result = doctest.testmod(importlib.import_module(f"peft_listen.metrics.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_an_unknown_name_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no metric 'meteor'; registered metrics: accuracy, bleu.*@register_metric"):
        get_metric("meteor")


def test_an_unknown_option_raises() -> None:
    with pytest.raises(ValueError, match=r"'wer' does not accept the arguments .*tokenize"):
        get_metric("wer", tokenize="zh")


def test_a_custom_metric_is_found_by_its_name(empty_slot) -> None:
    @register_metric("mean_length")
    class MeanLength(BaseMetric):
        def _compute(self, predictions, references):
            return {"mean_length": sum(map(len, predictions)) / len(predictions)}

    assert "mean_length" in available_metrics()
    assert get_metric("mean_length").compute(predictions=["four", "of"], references=["", ""]) == {"mean_length": 3.0}


def test_a_used_name_raises_but_a_class_can_replace_itself(empty_slot) -> None:
    for _ in range(2):

        @register_metric("mine")
        class Mine(BaseMetric):
            def _compute(self, predictions, references):
                return {}

    with pytest.raises(ValueError, match="'mine' is already used by .*Mine.*register .*Other.* under another name"):

        @register_metric("mine")
        class Other(Mine):
            pass


def test_a_class_that_is_not_a_metric_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match=r"subclass of `evaluate.Metric`, got <class 'int'>"):
        register_metric("number")(int)


@pytest.mark.parametrize(
    ("absent", "name"),
    [
        ("jiwer", "wer"),
        ("jiwer", "cer"),
        ("sacrebleu", "bleu"),
        ("sacrebleu", "chrf"),
        ("sklearn.metrics", "accuracy"),
        ("sklearn.metrics", "eer"),
        ("rouge_score.rouge_scorer", "rouge_l"),
    ],
)
def test_a_missing_library_raises_with_the_extra_and_other_metrics_still_work(absent, name, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=rf'needs {absent}: pip install "peft-listen\[metrics\]"'):
        get_metric(name)
    assert get_metric("exact_match").compute(predictions=["a", "b"], references=["A", "c"]) == {"exact_match": 0.5}


@pytest.mark.parametrize("absent", ["evaluate", "datasets"])
def test_without_evaluate_the_registry_imports_and_its_functions_name_the_extra(absent, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    for module in ("base", *registry_module._BUILT_IN):
        monkeypatch.delitem(sys.modules, f"peft_listen.metrics.{module}")
    for call in (available_metrics, lambda: get_metric("wer"), lambda: register_metric("mine")(BaseMetric)):
        with pytest.raises(ImportError, match=r'Metrics need evaluate: pip install "peft-listen\[metrics\]"'):
            call()
