"""Answers of the variants of a model, one at a time, while they are generated."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from peft_listen.page import Answering, PageError, PageSettings, Variant
from peft_listen.page import answering as module
from tests.page.conftest import LENGTH
from tests.small_models import write_wav


QUESTION = "What is said?"


def whole(answering, variant, question=QUESTION, clip=None):
    waveform = None if clip is None else answering.read_clip(clip)
    *_, last = answering.answer(variant, question, waveform)
    assert last.is_finished and not last.is_timed_out
    return last


@pytest.mark.parametrize("kind", ["several", "single"])
def test_an_adapter_is_on_off_and_on_again(kind, answering, single, clips, expected):
    page, name = (answering, "dogs") if kind == "several" else (single, "dogs")
    answers = [whole(page, Variant(name, is_on=is_on), clip=clips[0]) for is_on in (True, False, True)]
    on, off = expected("dogs", clips[0], QUESTION), expected(None, clips[0], QUESTION)
    assert on != off, "the test needs different answers"
    assert [answer.text for answer in answers] == [on, off, on]
    assert [answer.selected is None for answer in answers] == [False, True, False]


def test_each_adapter_gives_its_own_answer(answering, clips, expected):
    own = {name: expected(name, clips[1], QUESTION) for name in ("dogs", "cats")}
    assert own["dogs"] != own["cats"], "the test needs different answers"
    for name in ("dogs", "cats", "dogs"):
        assert whole(answering, Variant(name), clip=clips[1]).text == own[name]


@pytest.mark.parametrize("length", [1, 2, 8])
def test_k_is_the_number_of_prompts(answering, clips, expected, length):
    answer = whole(answering, Variant("dogs", prompt_length=length), clip=clips[0])
    assert answer.text == expected("dogs", clips[0], QUESTION, length)
    selected = [prompt.index for prompt in answer.selected.prompts]
    longest = [
        prompt.index for prompt in whole(answering, Variant("dogs", prompt_length=8), clip=clips[0]).selected.prompts
    ]
    assert selected == longest[:length]


def test_the_text_grows_after_the_selection_is_known(answering, clips):
    waveform = answering.read_clip(clips[0])
    answers = list(answering.answer(Variant("dogs"), QUESTION, waveform))
    texts = [answer.text for answer in answers]
    assert all(answers[-1].text.startswith(text.rstrip()) for text in texts)
    assert [answer.is_finished for answer in answers].count(True) == 1
    assert all(answer.selected is not None for answer in answers if answer.text)
    assert answers[0].text == "" and answers[0].selected is None


def test_the_text_comes_in_pieces(answering, monkeypatch):
    def ask(pipe, question, waveform, streamer, **settings):
        for piece in ("a ", "small ", "dog"):
            streamer.on_text(piece)
        return "a small dog"

    monkeypatch.setattr(module, "ask", ask)
    texts = [answer.text for answer in answering.answer(Variant("dogs"), QUESTION, None)]
    assert list(dict.fromkeys(texts)) == ["", "a ", "a small ", "a small dog"]


def test_users_at_the_same_time_get_their_own_answers(answering, clips, expected):
    variants = [Variant("dogs"), Variant("cats"), Variant("dogs", is_on=False), Variant("dogs", prompt_length=1)]
    calls = [(variant, clip) for clip in clips[:2] for variant in variants]
    own = [
        expected(variant.model if variant.is_on else None, clip, QUESTION, variant.prompt_length)
        for variant, clip in calls
    ]
    assert len(set(own)) > 3, "the test needs different answers"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: whole(answering, call[0], clip=call[1]).text, calls))
    assert found == own


def test_a_closed_answer_ends_the_generation(answering, monkeypatch, clips, expected):
    ended = threading.Event()

    def ask(pipe, question, waveform, stopping_criteria, **settings):
        while not bool(stopping_criteria(torch.zeros(1, 1, dtype=torch.long), None).all()):
            time.sleep(0.01)
        ended.set()
        return "too late"

    with monkeypatch.context() as patch:
        patch.setattr(module, "ask", ask)
        running = answering.answer(Variant("dogs"), QUESTION, None)
        next(running)
        waiting = answering.answer(Variant("cats"), QUESTION, None)
        next(waiting)
        assert not ended.is_set()
        waiting.close()
        running.close()
        assert ended.wait(10)
    assert whole(answering, Variant("dogs"), clip=clips[0]).text == expected("dogs", clips[0], QUESTION)


def test_an_answer_ends_when_its_time_is_over(models, clips):
    page = Answering(models, PageSettings(max_new_tokens=LENGTH, timeout=1e-6))
    *_, last = page.answer(Variant("dogs"), QUESTION, None)
    assert last.is_finished and last.is_timed_out
    assert len(models.pipe.tokenizer(last.text).input_ids) < LENGTH


def test_a_language_model_without_audio_answers(text_only):
    assert not text_only.takes_audio
    on, off = (whole(text_only, Variant("own", is_on=is_on)) for is_on in (True, False))
    assert on.text != off.text and len(on.selected.prompts) == 3


def test_what_the_model_refuses_is_explained(answering):
    with pytest.raises(PageError, match=r"The model does not take this question\. .*audio token"):
        whole(answering, Variant("dogs"), question="<|audio|> What is it?")
    assert whole(answering, Variant("dogs")).text is not None  # the next one is answered


def test_another_error_is_logged_and_not_shown(answering, monkeypatch, caplog):
    def fail(*arguments, **settings):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(module, "ask", fail)
    with pytest.raises(PageError, match="failed to answer") as raised:
        whole(answering, Variant("dogs"))
    assert "secret" not in str(raised.value) and "/secret/path" in caplog.text


class TestClips:
    def test_a_clip_that_is_too_long(self, answering, tmp_path):
        path = write_wav(tmp_path / "long.wav", 3.2)
        with pytest.raises(PageError, match="longer than 3 seconds"):
            answering.read_clip(str(path))

    def test_a_file_that_is_too_large(self, answering, tmp_path):
        path = Path(tmp_path / "large.wav")
        path.write_bytes(b"0" * 200_001)
        with pytest.raises(PageError, match=r"larger than 0.19\d* MB"):
            answering.read_clip(str(path))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", r"The file is empty \(0 bytes\)"),
            (b"not audio", "The file is not an audio file .*: its container is text"),
            (b"RIFF\x00\x00", "The file is a damaged or truncated WAV file"),
        ],
    )
    def test_a_file_that_is_not_audio(self, answering, tmp_path, content, reason):
        path = Path(tmp_path / "secret-name.wav")
        path.write_bytes(content)
        with pytest.raises(PageError, match=rf"The clip cannot be read\. {reason}") as raised:
            answering.read_clip(str(path))
        assert "secret-name" not in str(raised.value) and str(tmp_path) not in str(raised.value)

    def test_a_clip_that_is_read(self, answering, clips):
        waveform = answering.read_clip(clips[0])
        assert waveform.dtype.name == "float32" and len(waveform) == round(0.9 * 16_000)


@pytest.mark.parametrize(
    ("text", "problem"), [("a" * 4001, "4001 characters; this page takes 4000"), ("\ud83d", "half")]
)
def test_instructions_that_are_refused(answering, text, problem):
    with pytest.raises(PageError, match=problem):
        answering.check_instruction(text)
