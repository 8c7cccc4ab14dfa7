"""
The page in Chromium: a clip is uploaded and answered, in a wide and in a narrow window, by day and by night.

It needs `pip install playwright` and a `chromium` command; where one is missing, the tests are skipped. Set
`PEFT_LISTEN_SCREENSHOTS` to a folder to keep pictures of the page.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peft_listen.page import Answering, Clip, PageSettings, Tasks, TaskShares, create_page
from tests.page.conftest import LENGTH
from tests.page.test_app import running
from tests.small_models import write_wav


playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the command chromium"),
]

WINDOWS = {"desktop": (1280, 900), "narrow": (380, 800)}
TIMEOUT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(models: Any, records: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("machine")
    clip = Clip("sound · picked.wav", str(write_wav(folder / "picked.wav")), "Which animal is it?", "a tone")
    tasks = Tasks({"sound": "Which animal is it?", "voice": "Is it a man or a woman?"}, [clip])
    # A clip that is recorded on a machine with much to do is longer than it was meant to be.
    settings = PageSettings(max_new_tokens=LENGTH, max_audio_seconds=30)
    answering = Answering(models, settings, {"dogs": TaskShares.from_records(records)})
    with running(create_page(answering, str(tmp_path_factory.mktemp("uploads")), tasks)) as url:
        yield url


class Visit:
    """A page in a window, and what must not happen on it."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.problems: list[str] = []
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda message: self._note(message.type == "error", message.text))
        page.on("pageerror", lambda error: self._note(True, str(error)))
        page.on("request", lambda request: self._note(self._is_elsewhere(request.url, url), request.url))
        page.on("response", lambda response: self._note(response.status >= 400, f"{response.status} {response.url}"))
        page.goto(url)
        page.wait_for_selector("#ask")

    def _note(self, is_problem: bool, text: str) -> None:
        if is_problem:
            self.problems.append(text)

    @staticmethod
    def _is_elsewhere(address: str, url: str) -> bool:
        return not address.startswith((url, "data:", "blob:"))

    def upload(self, path: str) -> None:
        self.page.set_input_files("#clip input[type=file]", path)
        self.page.wait_for_selector("#clip audio, #clip .waveform-container", state="attached")

    def choose(self, comparison: str) -> None:
        self.page.get_by_label(comparison, exact=True).check()

    def ask(self, place: str = "first") -> str:
        """Presses "Ask", and returns the answer when it is whole."""
        mark = "document.querySelectorAll('.listen-heading').forEach(each => each.classList.add('former'))"
        self.page.evaluate(mark)
        self.page.click("#ask")
        heading = f"document.querySelector('#{place}-heading .listen-heading:not(.former)')"
        self.page.wait_for_function(f"/\\d s$/.test({heading}?.innerText.trim() ?? '')")
        text: str = self.page.input_value(f"#{place}-answer textarea")
        return text

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def keep(self, name: str) -> None:
        folder = os.environ.get("PEFT_LISTEN_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Any]:
    contexts = []

    def open_page(window: str = "desktop", scheme: str = "light", address: str = url) -> Visit:
        width, height = WINDOWS[window]
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, permissions=["microphone"]
            )
        )
        return Visit(contexts[-1].new_page(), address)

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_clip_is_uploaded_and_the_answers_are_read(
    window: str, scheme: str, open_page: Any, clips: list[str], expected: Any
) -> None:
    visit = open_page(window, scheme)
    visit.upload(clips[0])
    visit.page.get_by_role("button", name="sound", exact=True).click()
    visit.choose("adapter off")
    assert visit.ask("second") == expected(None, clips[0], "Which animal is it?")
    assert visit.page.input_value("#first-answer textarea") == expected("dogs", clips[0], "Which animal is it?")
    assert visit.page.locator("#first-selection tbody tr").count() == 4
    assert "no prompts are selected" in visit.page.inner_text("#second-selection")
    visit.keep(f"{window}-{scheme}")
    assert visit.overflow() <= 0
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(",")[:3])) < 200) == (scheme == "dark"), background
    assert visit.problems == []


def test_a_clip_is_recorded(open_page: Any) -> None:
    visit = open_page()
    visit.page.get_by_label("Record audio").click()
    visit.page.click("#clip button.record-button")
    visit.page.wait_for_timeout(1000)
    visit.page.click("#clip button.stop-button")
    visit.page.wait_for_selector("#clip audio, #clip .waveform-container", state="attached")
    visit.page.fill("#instruction textarea", "What is said?")
    assert visit.ask()
    visit.keep("recorded")
    assert visit.problems == []


def test_a_clip_is_picked_from_the_data_file(open_page: Any, expected: Any, tmp_path: Path) -> None:
    visit = open_page()
    visit.page.click("#picked input")
    visit.page.get_by_role("option", name="sound · picked.wav").click()
    visit.page.wait_for_function("document.querySelector('#instruction textarea').value == 'Which animal is it?'")
    visit.page.wait_for_selector("#clip audio, #clip .waveform-container", state="attached")
    assert "Answer in the data file: a tone" in visit.page.inner_text("#expected")
    assert visit.ask() == expected("dogs", str(write_wav(tmp_path / "same.wav")), "Which animal is it?")
    assert visit.problems == []


def test_another_adapter_and_another_k(open_page: Any, clips: list[str], expected: Any) -> None:
    visit = open_page()
    visit.upload(clips[0])
    visit.page.fill("#instruction textarea", "What is said?")
    visit.page.fill("#prompt-length input[type=number]", "2")
    visit.choose("another k")
    visit.page.fill("#other-prompt-length input[type=number]", "8")
    visit.page.locator("#other-prompt-length input[type=number]").press("Tab")
    assert visit.ask("second") == expected("dogs", clips[0], "What is said?", 8)
    assert visit.page.input_value("#first-answer textarea") == expected("dogs", clips[0], "What is said?", 2)
    visit.keep("another-k")
    visit.choose("another adapter")
    visit.page.wait_for_selector("#other-model")
    visit.page.wait_for_timeout(300)
    assert visit.ask("second") == expected("cats", clips[0], "What is said?")
    assert visit.problems == []


def test_a_refusal_is_read_on_the_page(open_page: Any, tmp_path: Path) -> None:
    visit = open_page("narrow")
    visit.page.click("#ask")
    visit.page.wait_for_selector("#message [role=alert]")
    assert "There is nothing to answer." in visit.page.inner_text("#message")
    visit.upload(str(write_wav(tmp_path / "long.wav", 31.0)))
    visit.page.click("#ask")
    visit.page.wait_for_function("/longer than 30 seconds/.test(document.querySelector('#message').innerText)")
    visit.keep("refused")
    assert visit.problems == []
