"""Without a network, uploading ends with one error that says what was not reached and what to do instead."""

import socket
import traceback
import warnings

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from peft import get_peft_model

import peft_listen
from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.hub_connection import hub_connection
from peft_listen.publishing import _load_card


@pytest.fixture(params=["no server", "offline mode"])
def unreachable(request, monkeypatch):
    """An address at which no Hub answers."""
    with socket.socket() as bound:  # a port that nobody listens on
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline mode")
        yield address


@pytest.fixture
def base(published_parts):
    parts = {name: str(path) for name, path in published_parts.items()}
    base = AudioListenForCausalLM.from_sub_models_pretrained(**parts)
    return base, AudioListenProcessor.from_sub_models_pretrained(**parts)


def error_of(upload):
    with pytest.raises(ConnectionError) as caught:
        upload()
    shown = "".join(traceback.format_exception(caught.value))
    assert "httpx" not in shown, "the traceback of the client is shown"
    return str(caught.value)


def test_publishing_without_a_network_says_so(unreachable, base):
    model, processor = base
    message = error_of(lambda: peft_listen.publish(model, processor, "me/x", include=["speech", "sound", "llm"]))
    assert message.startswith(f"The Hub at {unreachable} cannot be reached: ")
    assert "`save_complete_model` writes the same files to a folder" in message


def test_pushing_a_base_without_a_network_says_so(unreachable, base):
    message = error_of(lambda: base[0].push_to_hub("me/x"))
    assert unreachable in message and "`save_pretrained` writes the same files to a folder" in message


@pytest.mark.parametrize("kind", ["audio", "text"])
def test_an_adapter_warns_of_its_base_before_the_hub_is_asked(unreachable, base, make_llm, kind):
    model = get_peft_model(
        base[0] if kind == "audio" else make_llm("llama"), ListenConfig(pool_size=4, prompt_length=2)
    )
    model.peft_config["default"].base_model_name_or_path = "./my-base"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        message = error_of(lambda: model.push_to_hub("me/x"))
    assert unreachable in message and "`save_pretrained` writes the same files to a folder" in message
    (warning,) = [each for each in caught if "adapter that is pushed" in str(each.message)]
    assert "names the local folder './my-base' as its base model" in str(warning.message)
    assert warning.filename == __file__


def test_a_card_that_cannot_be_read_is_not_taken_for_a_missing_one(monkeypatch):
    """Otherwise a new card would replace the text of the one on the Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def load():
        with hub_connection("Try again."):
            _load_card("me/x", [], None)

    assert "cannot be reached" in error_of(load)


def test_the_outer_caller_knows_what_to_do():
    def ask():
        with hub_connection("Run the command again."), hub_connection("Save the model."):
            raise OfflineModeIsEnabled("Offline mode.")

    message = error_of(ask)
    assert "cannot be reached: Offline mode." in message and message.endswith("HUB_OFFLINE`. Run the command again.")


def test_answers_of_the_hub_and_other_errors_stay_as_they_are():
    for error in (ValueError("wrong"), OSError("disk")):
        with pytest.raises(type(error)) as caught, hub_connection("Try again."):
            raise error
        assert caught.value is error
