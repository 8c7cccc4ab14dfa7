"""Data types on machines with and without an accelerator: float32 by default where half precision is slow."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, pipeline

from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.models.audio_listen.precision import default_dtype
from tests.small_models import QFORMER, save_published_parts


WARNING = "this machine has no accelerator"


@pytest.fixture(scope="module")
def half_parts(tmp_path_factory):
    """Published parts whose language model is in bfloat16, as most are."""
    folders = save_published_parts(tmp_path_factory.mktemp("half"))
    AutoModelForCausalLM.from_pretrained(folders["llm"]).to(torch.bfloat16).save_pretrained(folders["llm"])
    return {name: str(folders[name]) for name in ("speech", "llm")}


@pytest.fixture(params=[False, True], ids=["without accelerator", "with accelerator"])
def accelerator(request, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: request.param)
    return request.param


@pytest.fixture
def without_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def warnings_of(function, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args, **kwargs)
    return result, [str(each.message) for each in caught if WARNING in str(each.message)]


def dtypes(model):
    return {model.model.language_model.dtype, model.lm_head.weight.dtype, model.model.speech_tower.dtype}


@pytest.mark.parametrize("dtype", [None, "auto", torch.float32, torch.bfloat16, torch.float16])
def test_a_new_model_is_in_float32_without_an_accelerator_unless_asked(half_parts, accelerator, dtype):
    model, messages = warnings_of(
        AudioListenForCausalLM.from_sub_models_pretrained, **half_parts, qformer_config=QFORMER, dtype=dtype
    )
    of_checkpoint = torch.bfloat16
    default = of_checkpoint if accelerator else torch.float32
    expected = {None: default, "auto": of_checkpoint}.get(dtype, dtype)
    assert dtypes(model) == {expected} and model.config.dtype == expected
    assert model.model.multi_modal_projector.query_tokens.dtype == torch.float32
    assert messages == []


@pytest.mark.parametrize(
    "llm_kwargs",
    [
        {"dtype": torch.bfloat16},
        {"device_map": "auto"},
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_arguments_of_the_language_model_decide(without_accelerator, llm_kwargs):
    assert default_dtype("someone/llm", llm_kwargs) is None
    assert default_dtype("someone/llm", {"revision": "main"}) is torch.float32


def test_a_language_model_in_memory_is_not_changed_but_warned_of(half_parts, accelerator):
    llm = AutoModelForCausalLM.from_pretrained(half_parts["llm"])
    processor = AudioListenProcessor.from_sub_models_pretrained(**half_parts)
    model, messages = warnings_of(
        AudioListenForCausalLM.from_sub_models_pretrained,
        speech=half_parts["speech"],
        llm=llm,
        tokenizer=processor.tokenizer,
        qformer_config=QFORMER,
    )
    assert dtypes(model) == {torch.bfloat16}
    assert len(messages) == (0 if accelerator else 1)


@pytest.fixture(scope="module", params=[True, False], ids=["whole", "references"])
def half_folder(request, half_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model = AudioListenForCausalLM.from_sub_models_pretrained(**half_parts, qformer_config=QFORMER, dtype="auto")
    model.save_pretrained(folder, save_frozen=request.param)
    AudioListenProcessor.from_sub_models_pretrained(**half_parts).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", [None, "auto", torch.float32, torch.bfloat16])
def test_a_saved_model_keeps_its_data_type_and_warns_unless_one_is_chosen(half_folder, accelerator, dtype):
    kwargs = {} if dtype is None else {"dtype": dtype}
    model, messages = warnings_of(AudioListenForCausalLM.from_pretrained, half_folder, **kwargs)
    assert dtypes(model) == {dtype if isinstance(dtype, torch.dtype) else torch.bfloat16}
    is_chosen = isinstance(dtype, torch.dtype)
    assert len(messages) == (0 if accelerator or is_chosen else 1)
    if messages:
        assert "bfloat16" in messages[0] and "dtype=torch.float32" in messages[0]


def test_the_pipeline_warns_once(half_folder, without_accelerator):
    _, messages = warnings_of(pipeline, "audio-text-to-text", model=half_folder, device="cpu")
    assert len(messages) == 1
    pipe, messages = warnings_of(pipeline, "audio-text-to-text", model=half_folder, device="cpu", dtype=torch.float32)
    assert messages == [] and dtypes(pipe.model) == {torch.float32}
