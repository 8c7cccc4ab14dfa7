"""A run trains an adapter on an audio language model of transformers, whose projector it leaves as it is."""

import json

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from peft_listen.runs import AdapterOptions, DataOptions, ModelOptions
from peft_listen.runs.building import check_other_base, load_base, lora_targets
from peft_listen.training import FeatureCache
from peft_listen_cli import main
from tests import small_models
from tests.runs.test_training_run import Interrupt, losses
from tests.small_audio_llms import AUDIO_FLAMINGO, QWEN2_AUDIO, VOXTRAL


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        (QWEN2_AUDIO, "listen+lora"),
        pytest.param(QWEN2_AUDIO, "listen", marks=pytest.mark.slow),
        pytest.param(QWEN2_AUDIO, "lora", marks=pytest.mark.slow),
        pytest.param(VOXTRAL, "listen+lora", marks=pytest.mark.slow),
        pytest.param(AUDIO_FLAMINGO, "listen+lora", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_is_trained_scored_resumed_and_used(
    name, adapter, make_run, audio_llm_folder, data_file, clips, tmp_path, capsys
):
    folder = audio_llm_folder(name)
    options = {
        "model": folder,
        "adapter": adapter,
        "eval_data": [data_file],
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    options |= {"lora_dropout": 0.0, "learning_rate": 0.01, "init_keys_at_steps": [2] if "listen" in adapter else []}
    whole = make_run(output_dir=str(tmp_path / "whole"), **options).run()
    assert losses(whole)[-1] < losses(whole)[0]
    evaluations = [row for row in whole.log_history if "eval_loss" in row]
    # The model in training answers as the saved one.
    assert evaluations[-1]["eval_asr_cer"] == pytest.approx(whole.scores["eval"]["asr"].values["cer"])
    with pytest.raises(KeyboardInterrupt):
        make_run([Interrupt(3)], **options).run()
    resumed = make_run(**options).run()
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6) and resumed.scores == whole.scores

    # The adapter alone is saved, and names its base model.
    tensors = load_file(whole.model_dir / "adapter_model.safetensors")
    assert all("lora_" in tensor or "listen" in tensor for tensor in tensors)
    config = json.loads((whole.model_dir / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == folder and not config["modules_to_save"]
    assert (whole.model_dir / "lora").is_dir() == (adapter == "listen+lora")
    card = ModelCard.load(whole.model_dir / "README.md").text
    assert f"| adapter | {adapter} |" in card and "## Scores" in card

    model = str(whole.model_dir)
    capsys.readouterr()
    assert main(["ask", clips[0], "What is it?", "--model", model, "--max-new-tokens", "3"]) == 0
    evaluate = ["evaluate", model, data_file, "--output-dir", str(tmp_path / "e"), "--max-new-tokens", "3", "--json"]
    assert main([*evaluate, "--batch-size", "3"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["tasks"]["asr"]["value"] == whole.scores["eval"]["asr"].value
    if "listen" in adapter:
        assert main(["report", model, data_file, "-o", str(tmp_path / "report.html")]) == 0


def test_lora_is_for_the_language_model_alone(audio_llm_folder):
    base, _ = load_base(audio_llm_folder(QWEN2_AUDIO), ModelOptions(model="x"))
    names = lora_targets(base, ["q_proj", "v_proj"])
    # The encoder has modules of the same names.
    assert len(names) == 2 * base.config.text_config.num_hidden_layers
    modules = dict(base.named_modules())
    assert all(name in modules and "language_model" in name for name in names)


@pytest.mark.parametrize(
    ("adapter", "cache", "message"),
    [
        (
            "none",
            None,
            "For such a model, set `adapter` to listen, lora or listen\\+lora: its projector is trained already",
        ),
        ("listen", "features", "leave out `feature_cache`, which is for the encoders of AudioListenForCausalLM"),
        ("none", "features", "is a Qwen2AudioForConditionalGeneration\\. .*; leave out `feature_cache`"),
    ],
)
def test_options_that_do_not_fit_are_refused(adapter, cache, message, make_run, audio_llm_folder, tmp_path):
    changes = {"model": audio_llm_folder(QWEN2_AUDIO), "adapter": adapter}
    with pytest.raises(ValueError, match=message):
        make_run(**changes, feature_cache=cache and str(tmp_path / cache)).run()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sharding_is_refused(audio_llm_folder, monkeypatch):
    base, _ = load_base(audio_llm_folder(QWEN2_AUDIO), ModelOptions(model="x"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="do not use FSDP, which was tried with AudioListenForCausalLM only"):
        check_other_base(base, AdapterOptions(), DataOptions(train_data=["x"]))
    check_other_base(small_models.make_chat_model(), AdapterOptions(adapter="none"), DataOptions(train_data=["x"]))


def test_a_model_without_audio_is_refused(published_parts):
    with pytest.raises(ValueError, match="This is the checkpoint of a 'llama' model"):
        load_base(str(published_parts["llm"]), ModelOptions(model="x"))


def test_a_feature_cache_is_refused(audio_llm_folder, data_file, tmp_path, capsys):
    base, _ = load_base(audio_llm_folder(QWEN2_AUDIO), ModelOptions(model="x"))
    with pytest.raises(
        TypeError, match="and the model is a Qwen2AudioForConditionalGeneration. Train it without a cache"
    ):
        FeatureCache(tmp_path / "features", base)
    command = [
        "cache-features",
        data_file,
        "--model",
        audio_llm_folder(QWEN2_AUDIO),
        "--folder",
        str(tmp_path / "features"),
    ]
    assert main(command) == 2
    assert "This is the checkpoint of a 'qwen2_audio' model" in capsys.readouterr().err
