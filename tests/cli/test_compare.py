"""`peft-listen compare` on two adapters of one base model, with and without data."""

import json

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from peft_listen import ListenConfig
from peft_listen.tuners.listen import find_listen_layer
from peft_listen_cli import main


@pytest.fixture
def adapters(make_llm, make_tokenizer, tmp_path):
    make_llm("llama").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), ListenConfig(pool_size=8, prompt_length=2)
    )
    model.save_pretrained(tmp_path / "a")
    pool = find_listen_layer(model).pool_of()
    with torch.no_grad():
        pool.keys.neg_()
    model.save_pretrained(tmp_path / "b")
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_the_prompts_and_the_selections_are_compared(adapters, tmp_path, capsys) -> None:
    data = tmp_path / "test.jsonl"
    rows = [{"audio": None, "instruction": f"Why {n}?", "answer": "So.", "task": "ab"[n % 2]} for n in range(4)]
    data.write_text("\n".join(map(json.dumps, rows)))
    assert main(["compare", *adapters]) == 0
    output = capsys.readouterr().out
    assert output.startswith("0 of 8 prompts are equal.\n") and "inputs" not in output
    assert f"  {'keys':<20}{-1:>8.3f}{-1:>8.3f}" in output
    assert main(["compare", *adapters, str(data), "--batch-size", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key_cosine"] == pytest.approx([-1.0] * 8)
    # The nearest keys became the farthest.
    assert found["all_tasks"] == {"num_rows": 4, "changed": 1.0, "kept": 0.0}
    assert found["tasks"]["a"]["num_rows"] == 2


def test_missing_adapters_and_data_are_explained(adapters, tmp_path, capsys) -> None:
    assert main(["compare", adapters[0], str(tmp_path / "no-adapter")]) == 2
    assert "There is no file or folder" in capsys.readouterr().err
    assert main(["compare", *adapters, str(tmp_path / "missing.jsonl")]) == 2
    assert "missing.jsonl" in capsys.readouterr().err
    assert main(["compare", adapters[0], str(tmp_path / "base")]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
