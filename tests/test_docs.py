"""The code in README, docs and docstrings runs as it stands.

A page's Python blocks run one after another in one namespace, in a folder where the models that they name by Hub id lie
as small random ones under the same path.
"""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from peft_listen import analysis
from tests.models.audio_listen.conftest import make_llm, make_tokenizer, whisper_config  # noqa: F401


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LLM, SPEECH = "HuggingFaceTB/SmolLM2-135M-Instruct", "openai/whisper-tiny.en"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder_of_small_models(tmp_path, monkeypatch, make_llm, make_tokenizer, whisper_config):  # noqa: F811
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    monkeypatch.chdir(tmp_path)
    make_llm("llama").save_pretrained(LLM)
    make_tokenizer().save_pretrained(LLM)
    config = whisper_config()
    WhisperForConditionalGeneration(config).save_pretrained(SPEECH)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(SPEECH)
    time = np.arange(16_000) / 16_000
    soundfile.write("dog.wav", 0.3 * np.sin(2 * np.pi * 220 * time), 16_000)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, folder_of_small_models) -> None:
    namespace: dict = {"__name__": "__main__"}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "module",
    ["peft_listen.tuners.listen.selectors", "peft_listen.tuners.listen.model", analysis.selections.__name__],
)
def test_the_examples_of_docstrings_give_what_they_say(module: str) -> None:
    from peft_listen.tuners.listen import selectors

    registered = dict(selectors._SELECTORS)
    try:
        result = doctest.testmod(importlib.import_module(module))
    finally:
        selectors._SELECTORS.clear()
        selectors._SELECTORS.update(registered)
    assert result.attempted > 0
    assert result.failed == 0
