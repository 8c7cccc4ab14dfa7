"""The benchmark with a tiny model, and the table in the documentation."""

import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from packaging.version import Version
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.first_steps import run as run_module
from benchmarks.first_steps.forms import FORMS, FORMS_OF_SPLIT, SEEDS_OF_SPLIT, Form, listen
from benchmarks.first_steps.run import batches, encode, measure, training_batch, with_same_weights
from benchmarks.first_steps.sentences import CODES, TOPICS, make_dataset
from benchmarks.first_steps.storage import RESULTS, read_run, result_path
from benchmarks.first_steps.table import table, tables
from benchmarks.markdown import with_texts
from peft_listen import ListenConfig
from tests.small_models import CHAT_IDS, CHAT_VOCAB_SIZE, SIZES, make_chat_tokenizer


DOCUMENT = Path(__file__).parents[3] / "docs" / "method.md"
SMALL = {
    "default": Form("small", listen(pool_size=8, prompt_length=2)),
    "lora": FORMS["lora"],
}


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=CHAT_VOCAB_SIZE, **SIZES, **CHAT_IDS))


def test_the_splits_share_no_sentence_and_no_code():
    sentences, codes = (
        {split: {text for texts in TOPICS[split].values() for text in texts.strip().splitlines()} for split in TOPICS},
        {split: {code for pair in CODES[split] for code in pair} for split in CODES},
    )
    for values, count in ((sentences, 60), (codes, 6)):
        assert not values["tune"] & values["test"]
        assert [len(values[split]) for split in ("tune", "test")] == [count, count]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("split", ["tune", "test"])
def test_both_parts_of_a_dataset_are_balanced_and_different(split, seed):
    dataset = make_dataset(split, seed)
    assert dataset == make_dataset(split, seed)
    assert not {e.sentence for e in dataset.trained} & {e.sentence for e in dataset.unseen}
    for examples in dataset:
        assert sorted(e.code for e in examples) == sorted([*CODES[split][seed % 3]] * 10)
    assert len({make_dataset(split, other).trained[0].code for other in range(3)}) > 1


def test_only_the_answer_is_supervised():
    tokenizer, examples = make_chat_tokenizer(), make_dataset("tune", 0).trained[:3]
    batch = training_batch(tokenizer, examples)
    for labels, mask, ids, example in zip(
        batch["labels"], batch["attention_mask"], batch["input_ids"], examples, strict=True
    ):
        supervised = labels[labels != -100]
        assert tokenizer.decode(supervised) == f"{example.code}{tokenizer.eos_token}"
        prompt, answer = encode(tokenizer, example)
        assert ids[mask.bool()].tolist() == [*prompt, *answer]


def test_every_epoch_contains_every_example_once():
    examples = make_dataset("tune", 0).trained
    seen = [example for batch in batches(examples, 4, 10, seed=0) for example in batch]
    assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(examples)
    assert seen[:20] != seen[20:]


@pytest.mark.parametrize("name", SMALL)
def test_a_form_is_trained_and_measured(name, llm):
    before = {key: tensor.clone() for key, tensor in llm.state_dict().items()}
    dataset = make_dataset("tune", 0)
    short = measure(SMALL[name], llm, make_chat_tokenizer(), dataset, seed=0, steps=5)
    long = measure(SMALL[name], llm, make_chat_tokenizer(), dataset, seed=0, steps=20)
    assert long["trained_loss"] < short["trained_loss"]
    assert long["cost"] > 0 and long["peak_megabytes"] > 50
    assert 0 <= long["unseen_accuracy"] <= 1
    if name == "default":
        assert long["parameters"] == (2 * 8 + 2) * SIZES["hidden_size"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in llm.state_dict().items())


def test_a_second_model_shares_the_weights_and_gives_the_same(llm):
    copy, ids = with_same_weights(llm), torch.arange(3, 9)[None]
    assert torch.equal(copy(ids).logits, llm(ids).logits)
    assert {p.data_ptr() for p in copy.parameters()} == {p.data_ptr() for p in llm.parameters()}


def test_runs_are_stored_skipped_listed_and_repeated_for_other_settings(llm, tmp_path, monkeypatch, capsys):
    calls = []

    def measured(form, *args, **kwargs):
        calls.append(form.label)
        return {"parameters": 1000 * len(calls), "trained_loss": 0.5, "unseen_loss": 1.0, "cost": 1.25} | {
            "trained_accuracy": 1.0,
            "unseen_accuracy": 0.5 + 0.25 * len(calls),
            "seconds_per_step": 1.0,
            "peak_megabytes": 1300,
        }

    folder = tmp_path / "llm"
    llm.save_pretrained(folder)
    make_chat_tokenizer().save_pretrained(folder)
    monkeypatch.setattr(run_module, "measure", measured)
    monkeypatch.setattr(run_module, "obtain", lambda models: {"llm": folder})
    command = ["run", "--only", "default", "--seeds", "0", "1", "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", command)
    run_module.main()
    assert len(calls) == 2
    run_module.main()
    assert len(calls) == 2 and "2 runs, 2 of them stored" in capsys.readouterr().out

    lines = table(tmp_path / "results").splitlines()
    header = "form | seeds | parameters | accuracy, trained | accuracy, unseen | loss, trained | loss, unseen"
    assert lines[0] == f"| {header} | cost of a step / PromptTuning | peak memory, MB |"
    cells = [
        "`ListenConfig()`",
        "2",
        "1 000",
        "100 ± 0",
        "88 ± 18",
        "0.50 ± 0.00",
        "1.00 ± 0.00",
        "1.25 ± 0.00",
        "1300",
    ]
    assert lines[2:] == [f"| {' | '.join(cells)} |"]

    monkeypatch.setattr(sys, "argv", [*command, "--list"])
    run_module.main()
    assert "stored seeds: 0, 1" in capsys.readouterr().out
    path = result_path(tmp_path / "results", "default", "test", 1)
    stored = json.loads(path.read_text())
    stored["settings"]["config"]["pool_size"] = 10
    path.write_text(json.dumps(stored))
    assert read_run(tmp_path / "results", "default", "test", 1) is None
    monkeypatch.setattr(sys, "argv", command)
    run_module.main()
    assert len(calls) == 3


# The settings of LoRA's runs are all fields of its configuration, which older versions do not have.
needs_the_fields_of_the_stored_runs = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.21"), reason="the stored runs were made with PEFT 0.21"
)


@needs_the_fields_of_the_stored_runs
def test_the_documented_table_is_that_of_the_stored_runs():
    text = DOCUMENT.read_text()
    assert with_texts(text, tables(RESULTS)) == text


@needs_the_fields_of_the_stored_runs
@pytest.mark.parametrize(
    ("split", "name"), [(split, name) for split, forms in FORMS_OF_SPLIT.items() for name in forms]
)
def test_every_form_has_a_stored_run_with_its_present_settings(split, name):
    assert read_run(RESULTS, name, split, SEEDS_OF_SPLIT[split][0]) is not None


def test_the_trial_that_became_the_default_has_its_settings():
    default, trial = FORMS["default"], FORMS_OF_SPLIT["tune"]["values_1x"]
    assert trial.settings(0)["config"] == default.settings(0)["config"]
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), default.make_config(0))
    rates = [[group["lr"] for group in form.parameter_groups(model)] for form in (default, trial)]
    assert rates[0] == rates[1] == pytest.approx([1e-3, 1e-3, 1e-2])


def test_an_unknown_form_is_an_error_that_lists_the_forms(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--only", "lora", "lorra"])
    with pytest.raises(SystemExit):
        run_module.main()
    assert "there is no form lorra; there are default, grouped, paper" in capsys.readouterr().err


def test_the_readme_names_the_default_form():
    assert ListenConfig(pool_size=400, selector="similarity").to_dict() == ListenConfig().to_dict()
