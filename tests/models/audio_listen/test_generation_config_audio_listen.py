"""The generation configuration of a composite: that of its language model as published, and no generated audio token."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Trainer, TrainingArguments, pipeline

from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from tests.small_models import QFORMER


# Files that transformers loads, and saves again only as long as nothing in them is changed.
PUBLISHED = {
    "temperature and top_p without sampling": {"temperature": 0.9, "top_p": 0.6},
    "sampling switched off": {"do_sample": False, "temperature": 0.6},
    "top_k": {"top_k": 20},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.9},
    "cutoffs": {"epsilon_cutoff": 3e-4, "eta_cutoff": 1e-3},
    "early stopping without beams": {"early_stopping": True},
    "a length penalty without beams": {"length_penalty": 2.0},
    "a padding token of -1": {"pad_token_id": -1},
    "scores that are not returned": {"output_scores": True},
    "a cache that is not used": {"use_cache": False, "cache_implementation": "static"},
    "several": {"temperature": 0.9, "top_k": 3, "length_penalty": 0.8, "pad_token_id": -1},
}


@pytest.fixture
def build(published_parts, tmp_path):
    """Builds a composite around a language model with a `generation_config.json` of its own."""

    def make(**values) -> AudioListenForCausalLM:
        llm = tmp_path / "llm"
        shutil.copytree(published_parts["llm"], llm, dirs_exist_ok=True)
        content = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **values}
        (llm / "generation_config.json").write_text(json.dumps(content))
        return AudioListenForCausalLM.from_sub_models_pretrained(
            speech=published_parts["speech"], llm=llm, qformer_config=QFORMER
        )

    return make


def saved_values(folder: Path) -> dict:
    return json.loads((folder / "generation_config.json").read_text())


@pytest.mark.parametrize("save_frozen", [True, False])
@pytest.mark.parametrize("name", PUBLISHED)
def test_values_that_are_valid_as_published_can_be_saved(build, tmp_path, name, save_frozen):
    values = PUBLISHED[name]
    model = build(**values)
    for folder in (tmp_path / "first", tmp_path / "second", tmp_path / "third"):
        model.save_pretrained(folder, save_frozen=save_frozen)
        saved = saved_values(folder)
        assert saved["suppress_tokens"] == [300]
        assert {name: saved.get(name, getattr(GenerationConfig(), name)) for name in values} == values
        model = AudioListenForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["temperature and top_p without sampling", "several"])
def test_by_other_doors(build, published_parts, tmp_path, name):
    model = build(**PUBLISHED[name])
    processor = AudioListenProcessor.from_sub_models_pretrained(
        speech=published_parts["speech"], llm=published_parts["llm"]
    )
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to=[])
    # The trainer changes the padding token of the configuration.
    Trainer(model, args, processing_class=processor).save_model(str(tmp_path / "trained"))
    pipe = pipeline("audio-text-to-text", model=str(tmp_path / "trained"))
    pipe.save_pretrained(tmp_path / "pipeline")
    AutoModelForCausalLM.from_pretrained(tmp_path / "pipeline").save_pretrained(tmp_path / "auto")
    assert saved_values(tmp_path / "auto")["temperature"] == 0.9


@pytest.mark.parametrize("values", [{"temperature": 0.5}, {"top_k": 7}, {"length_penalty": 3.0}])
@pytest.mark.parametrize("published", [{}, {"temperature": 0.9, "top_k": 20}])
def test_values_that_the_user_sets_are_checked_as_in_every_model(build, tmp_path, published, values):
    model = build(**published)
    model.generation_config.update(**values)
    with pytest.raises(ValueError, match=next(iter(values))):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("own", [None, [], [5], [7, 5], [5, 300], [300]])
def test_suppressed_tokens_are_kept_and_the_audio_token_is_added(build, tmp_path, own):
    model = build(**({} if own is None else {"suppress_tokens": own}))
    expected = [*(own or []), *([] if 300 in (own or []) else [300])]
    assert model.generation_config.suppress_tokens == expected
    model.save_pretrained(tmp_path / "saved")
    loaded = AudioListenForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.generation_config.suppress_tokens == expected
    with torch.no_grad():
        for token in (5, 300):
            loaded.lm_head.weight.zero_()
            loaded.lm_head.weight[token] = torch.randn(32) * 100
            for sign in (1, -1):  # one of the two makes the token the likeliest
                loaded.lm_head.weight.mul_(sign)
                output = loaded.generate(torch.tensor([[10, 11]]), max_new_tokens=3)
                assert token not in output[0, 2:] or token not in expected


@pytest.mark.parametrize(
    "values",
    [
        {"begin_suppress_tokens": [4]},
        {"bad_words_ids": [[4, 5]]},
        {"repetition_penalty": 1.1},
        {"eos_token_id": [1, 9]},
        {"max_new_tokens": 7},
        {"forced_eos_token_id": 1},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
    ],
)
def test_all_other_values_are_kept(build, tmp_path, values):
    model = build(**values)
    assert {name: getattr(model.generation_config, name) for name in values} == values
    model.save_pretrained(tmp_path / "saved")
    loaded = AudioListenForCausalLM.from_pretrained(tmp_path / "saved").generation_config
    assert {name: getattr(loaded, name) for name in values} == values


def test_the_language_models_own_configuration_is_not_changed(make_llm, make_tokenizer, published_parts):
    llm = make_llm("llama")
    llm.generation_config.suppress_tokens = [4]
    AudioListenForCausalLM.from_sub_models_pretrained(
        speech=published_parts["speech"], llm=llm, tokenizer=make_tokenizer(), qformer_config=QFORMER
    )
    assert llm.generation_config.suppress_tokens == [4]
