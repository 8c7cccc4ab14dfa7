import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForMultimodalLM, pipeline

from peft_listen import ListenConfig
from tests.models.audio_listen.conftest import (  # noqa: F401
    beats_config,
    clip,
    make_llm,
    make_model,
    make_processor,
    make_tokenizer,
    one_thread,
    published_parts,
    whisper_config,
)


LENGTH = {"max_new_tokens": 6}


@pytest.fixture(scope="session")
def composite_folder(tmp_path_factory, make_model, make_processor):  # noqa: F811
    """A saved composite of tiny random parts, with its processor."""
    folder = tmp_path_factory.mktemp("composite")
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(composite_folder):
    return pipeline("audio-text-to-text", model=str(composite_folder), device="cpu", **LENGTH)


@pytest.fixture(scope="session")
def make_adapted(composite_folder):
    """The composite with an adapter whose weights visibly act."""
    configs = {
        "listen": lambda: ListenConfig(
            pool_size=12, prompt_length=3, init_weights=False, modules_to_save=["multi_modal_projector"]
        ),
        "lora": lambda: LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False),
    }

    def make(method):
        base = AutoModelForMultimodalLM.from_pretrained(composite_folder)
        model = get_peft_model(base, configs[method]()).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data *= 1.5
        return model

    return make
