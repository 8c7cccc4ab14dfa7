"""Audio language models of transformers, whose processors encode chats while a batch is made."""

import numpy as np
import pytest

from peft_listen.serving import load_models
from tests import small_audio_llms
from tests.serving.conftest import running
from tests.serving.test_refusals import audio, encoded, error_of, post


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm") / "flamingo"
    small_audio_llms.save(small_audio_llms.AUDIO_FLAMINGO, folder)
    models = load_models([str(folder)])
    models.pipe.processor.chat_template = REFUSING + small_audio_llms.AUDIO_FLAMINGO_TEMPLATE
    with running(models, max_new_tokens=3) as url:
        yield models, url


def ask(*messages):
    return {"model": "flamingo", "messages": list(messages)}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def test_several_clips_and_none_get_the_answers_of_the_pipeline(served):
    models, url = served
    samples = [0.3 * np.sin(np.arange(8000) * pitch) for pitch in (0.1, 0.3)]
    text = {"type": "text", "text": "What?"}
    clips = [audio(encoded(each, kind="WAV")) for each in samples]
    own = [{"type": "audio", "audio": {"array": each, "sampling_rate": 16_000}} for each in samples]
    answers = []
    for number in (2, 1, 0):
        status, _, answer = post(url, ask(user(*clips[:number], text)))
        expected = models.pipe([user(*own[:number], text)], max_new_tokens=3)[0]["generated_text"]
        assert status == 200 and answer["choices"][0]["message"]["content"] == expected
        answers.append(expected)
    assert len(set(answers)) == 3, "the test needs different answers"


def test_what_the_processor_refuses_is_an_error_of_the_request(served):
    _, url = served
    error = error_of(url, ask({"role": "system", "content": "be short"}, user({"type": "text", "text": "What?"})))
    assert error["param"] == "messages" and "no system prompt" in error["message"]
    halves = [{"type": "text", "text": text} for text in ("<so", "und>")]
    error = error_of(url, ask(user(audio(encoded(np.zeros(1600))), *halves)))
    assert "2 audio tokens <sound> for 1 clips" in error["message"]
