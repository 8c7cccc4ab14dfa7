"""The limits of server and page must be numbers that limit something; the message names the class and the field."""

from dataclasses import fields

import pytest


pytest.importorskip("gradio")

from peft_listen.page import PageSettings
from peft_listen.serving import ServerSettings


@pytest.mark.parametrize("settings", [PageSettings, ServerSettings])
def test_limits_must_be_numbers_above_0(settings):
    limits = [field for field in fields(settings) if field.type in (int, float)]
    assert len(limits) >= 6
    for field in limits:
        expected = "an integer of at least 1" if field.type is int else "(positive|a finite number)"
        for value in (0, -1, float("nan"), float("inf"), "5", True, None, *([1.5] if field.type is int else [])):
            with pytest.raises(ValueError, match=f"^{settings.__name__}: `{field.name}` must be {expected}, got "):
                settings(**{field.name: value})
        assert getattr(settings(**{field.name: 2}), field.name) == 2


def test_a_key_must_not_be_empty():
    with pytest.raises(ValueError, match="^ServerSettings: `api_key` is empty"):
        ServerSettings(api_key=" ")
