"""What differs between two adapters: their tensors, their settings and their selections."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_listen import ListenConfig
from peft_listen.analysis import SelectionRecords, compare_adapters, format_comparison
from peft_listen.tuners.listen import find_listen_layer


@pytest.fixture
def make_adapter(make_llm):
    def make(**options):
        options = {"pool_size": 6, "prompt_length": 2, "init_weights": False, **options}
        return get_peft_model(make_llm("llama"), ListenConfig(**options))

    return make


def records_of(indices, tasks, pool_size=6):
    indices = torch.tensor(indices)
    return SelectionRecords(
        indices=indices,
        scores=torch.zeros(indices.shape),
        queries=torch.ones(len(tasks), 4),
        keys=torch.ones(pool_size, 4),
        tasks=tasks,
    )


def test_the_cosines_of_each_prompt_are_compared_from_models_and_from_files(make_adapter, tmp_path) -> None:
    first, second = make_adapter(), make_adapter()
    pool = find_listen_layer(second).pool_of()
    with torch.no_grad():
        pool.keys[1] *= -1
        pool.values[2] *= 3
        pool.values[3] = 0
        pool.shared_values[0] *= -2
    for name, model in (("first", first), ("second", second)):
        model.save_pretrained(tmp_path / name)
    for pair in ((first, second), (tmp_path / "first", str(tmp_path / "second")), (first, tmp_path / "second")):
        found = compare_adapters(*pair)
        torch.testing.assert_close(found.key_cosine, torch.tensor([1.0, -1, 1, 1, 1, 1]))
        torch.testing.assert_close(found.value_cosine, torch.tensor([1.0, 1, 1, 0, 1, 1]))
        assert found.shared_value_cosine is not None
        torch.testing.assert_close(found.shared_value_cosine[:2], torch.tensor([-1.0, 1]))
        assert found.num_equal == 3
        assert found.settings == {} and found.tasks == {} and found.all_tasks is None
        assert found.most_changed(1) == [3]
    text = format_comparison(found, top=1)
    assert text.startswith("3 of 6 prompts are equal.\n")
    assert f"  {'#3':<20}{0:>8.3f}{1:>8.3f}" in text and "inputs" not in text


def test_an_adapter_does_not_differ_from_itself(make_adapter, tmp_path) -> None:
    model = make_adapter(init_weights=True)  # values of zero
    model.save_pretrained(tmp_path)
    found = compare_adapters(model, tmp_path)
    assert found.num_equal == 6
    assert found.key_cosine.tolist() == found.value_cosine.tolist() == [1.0] * 6
    assert "most changed" not in format_comparison(found)


def test_the_selections_of_each_task_are_compared_as_sets(make_adapter) -> None:
    model, tasks = make_adapter(), ["b", "a", "b", "a"]
    first = records_of([[0, 1], [2, 3], [0, 1], [4, 5]], tasks)
    second = records_of([[1, 0], [2, 5], [3, 4], [4, 5]], tasks)
    found = compare_adapters(model, model, first_records=first, second_records=second)
    assert list(found.tasks) == ["a", "b"]
    a, b = found.tasks.values()
    assert (a.num_rows, a.changed, a.kept) == (2, 0.5, 0.75)
    assert (b.num_rows, b.changed, b.kept) == (2, 0.5, 0.5)
    assert (found.all_tasks.num_rows, found.all_tasks.changed, found.all_tasks.kept) == (4, 0.5, 0.625)
    assert json.loads(json.dumps(found.to_dict()))["tasks"]["a"] == {"num_rows": 2, "changed": 0.5, "kept": 0.75}
    assert f"  {'all':<20}{4:>8}{'50%':>9}{'62%':>7}" in format_comparison(found)


def test_different_settings_are_listed(make_adapter, tmp_path) -> None:
    make_adapter().save_pretrained(tmp_path)
    found = compare_adapters(tmp_path, make_adapter(prompt_length=1, selector="attention", num_shared_prompts=2))
    assert found.settings["prompt_length"] == (2, 1)
    assert found.settings["selector"] == ("similarity", "attention")
    assert "peft_type" not in found.settings
    assert "  prompt_length: 2 and 1" in format_comparison(found)


def test_what_cannot_be_compared_is_refused(make_adapter, make_llm, tmp_path) -> None:
    model = make_adapter()
    with pytest.raises(ValueError, match=r"have the shapes \(6, 32\) and \(7, 32\)"):
        compare_adapters(model, make_adapter(pool_size=7))
    get_peft_model(make_llm("llama"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"lora has no LiSTEN prompts .*LORA"):
        compare_adapters(model, tmp_path / "lora")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "other")
    for name, base in (("one", "some/base"), ("other", "other/base-2")):
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(ValueError, match="for different base models, 'some/base' and 'other/base-2'"):
        compare_adapters(tmp_path / "one", tmp_path / "other")
    weights = tmp_path / "other" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"The weights of .*other are damaged"):
        compare_adapters(tmp_path / "one", tmp_path / "other")


def test_records_that_do_not_fit_are_refused(make_adapter) -> None:
    model = make_adapter()
    records = records_of([[0, 1]], ["a"])
    with pytest.raises(ValueError, match="Pass the records of both adapters, or of none"):
        compare_adapters(model, model, first_records=records)
    with pytest.raises(ValueError, match=r"The records are for different rows \(1 and 2\)"):
        compare_adapters(model, model, first_records=records, second_records=records_of([[0, 1]] * 2, ["a", "a"]))
    other = records_of([[0, 1]], ["a"], pool_size=8)
    with pytest.raises(ValueError, match="for a pool of 8 prompts, but the adapters have 6"):
        compare_adapters(model, model, first_records=other, second_records=other)
