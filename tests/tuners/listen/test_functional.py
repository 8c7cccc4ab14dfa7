"""The functions for a model with an adapter, no matter how the adapter was added."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peft_listen import ListenConfig, record_selections, set_prompt_length, use_prompt_length
from tests.device import place


IDS = place(torch.tensor([[5, 6, 7, 8]]))  # no test function makes it


@pytest.fixture(scope="module")
def folders(make_llm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_llm("llama").save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    get_peft_model(base, ListenConfig(pool_size=8, prompt_length=3, init_weights=False)).save_pretrained(
        folder / "adapter"
    )
    return folder


def load_peft_model(folders):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders / "base"), folders / "adapter")


def load_by_auto_class(folders):
    return AutoModelForCausalLM.from_pretrained(folders / "adapter")


def load_adapter(folders):
    model = AutoModelForCausalLM.from_pretrained(folders / "base")
    model.load_adapter(str(folders / "adapter"))
    return model


WAYS = [load_peft_model, load_by_auto_class, load_adapter]


@pytest.mark.parametrize("load", WAYS)
def test_selections_are_recorded(folders, load):
    model = load(folders).eval()
    with record_selections(model) as records:
        model(input_ids=IDS)
        model.generate(input_ids=IDS, max_new_tokens=2)
    model(input_ids=IDS)
    assert [record.indices.shape for record in records] == [(1, 3), (1, 3)]
    with load_peft_model(folders).eval().record_selections() as expected:
        load_peft_model(folders)
    assert expected == []
    assert torch.equal(records[0].indices, records[1].indices)


@pytest.mark.parametrize("load", WAYS)
def test_the_number_of_prompts_is_set(folders, load):
    model = load(folders).eval()

    def num_prompts():
        with record_selections(model) as records:
            model(input_ids=IDS)
        return records[0].indices.shape[1]

    with use_prompt_length(model, 5):
        assert num_prompts() == 5
        with use_prompt_length(model, 1, adapter_name="default"):
            assert num_prompts() == 1
        assert num_prompts() == 5
    assert num_prompts() == 3
    set_prompt_length(model, 2)
    assert num_prompts() == 2


@pytest.mark.parametrize("load", WAYS)
@pytest.mark.parametrize(
    ("length", "name", "message"),
    [(9, None, r"`prompt_length`=9 exceeds .*8"), (0, None, "at least 1"), (2, "other", "other")],
)
def test_what_the_pool_does_not_have_is_refused(folders, load, length, name, message):
    model = load(folders)
    with pytest.raises(ValueError, match=message):
        set_prompt_length(model, length, name)
    with pytest.raises(ValueError, match=message), use_prompt_length(model, length, name):
        pass


def test_a_model_without_an_adapter_is_refused(folders):
    model = AutoModelForCausalLM.from_pretrained(folders / "base")
    with pytest.raises(ValueError, match="no LiSTEN adapter in LlamaForCausalLM"), record_selections(model):
        pass
