"""OpenAI's client asks a server on this machine about audio."""

import base64
import gc
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import soundfile

from peft_listen.serving.chat_request import InputAudio
from tests.serving.conftest import LENGTH, MODEL


QUESTIONS = ["What is said?", "Which animal is it?"]


@pytest.fixture(scope="module")
def expected(chat_pipe, clips):
    """The pipeline's answer to each question about each clip alone."""

    def answer(clip, question):
        return chat_pipe(clip, text=question, max_new_tokens=LENGTH, do_sample=False)[0]["generated_text"]

    answers = {(clip, question): answer(clip, question) for clip in clips for question in QUESTIONS}
    assert len(set(answers.values())) == len(answers), "the tests need a different answer to each clip and question"
    return answers


def test_a_question_about_a_clip_gets_the_answer_of_the_pipeline(ask, expected):
    for (clip, question), answer in expected.items():
        completion = ask(clip, question)
        (choice,) = completion.choices
        assert (choice.message.role, choice.message.content) == ("assistant", answer)
        assert choice.finish_reason == "length" and completion.usage.completion_tokens == LENGTH
        assert completion.model == MODEL and completion.object == "chat.completion"
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + LENGTH


def test_32_requests_at_once_get_the_right_answers(ask, expected):
    calls = [list(expected)[index % len(expected)] for index in range(32)]
    barrier = Barrier(len(calls))

    def call(arguments):
        barrier.wait()
        return ask(*arguments).choices[0].message.content

    with ThreadPoolExecutor(len(calls)) as pool:
        assert list(pool.map(call, calls)) == [expected[arguments] for arguments in calls]


def test_32_streams_at_once_get_the_right_answers(ask, expected):
    calls = [list(expected)[index % len(expected)] for index in range(32)]
    barrier = Barrier(len(calls))

    def call(arguments):
        barrier.wait()
        return "".join(chunk.choices[0].delta.content or "" for chunk in ask(*arguments, stream=True))

    with ThreadPoolExecutor(len(calls)) as pool:
        assert list(pool.map(call, calls)) == [expected[arguments] for arguments in calls]


def test_a_stream_has_the_same_text_in_several_pieces(ask, expected):
    # Bytes that are no characters are sent at the end of the answer.
    (clip, question), answer = min(expected.items(), key=lambda item: item[1].count("\N{REPLACEMENT CHARACTER}"))
    chunks = list(ask(clip, question, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert len(pieces) > 2 and "".join(pieces) == answer
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == LENGTH


def test_a_stream_without_usage_does_not_count(ask, clips):
    chunks = list(ask(clips[0], QUESTIONS[0], stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_questions_without_audio_several_clips_and_several_turns(client, chat_pipe, clips, as_part):
    chats = [
        [{"role": "user", "content": QUESTIONS[0]}],
        [
            {"role": "system", "content": "the lazy dog"},
            {"role": "user", "content": [as_part(clips[0]), as_part(clips[1]), {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "the fox"},
            {"role": "user", "content": [{"type": "text", "text": "is"}, {"type": "text", "text": "said?"}]},
        ],
    ]
    own = [
        chats[0],
        [
            chats[1][0],
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": clips[0]},
                    {"type": "audio", "audio": clips[1]},
                    {"type": "text", "text": "What?"},
                ],
            },
            chats[1][2],
            {"role": "user", "content": "is\nsaid?"},
        ],
    ]
    for messages, chat in zip(chats, own, strict=True):
        completion = client.chat.completions.create(model=MODEL, messages=messages)
        expected = chat_pipe(chat, max_new_tokens=LENGTH)[0]["generated_text"]
        assert completion.choices[0].message.content == expected


def test_an_answer_can_be_sent_back(client, ask, clips, as_part):
    first = ask(clips[0], QUESTIONS[0]).choices[0].message
    messages = [{"role": "user", "content": [as_part(clips[0])]}, first, {"role": "user", "content": "again"}]
    assert client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_formats_are_found_by_their_content(client, chat_pipe, clips, kind):
    samples, rate = soundfile.read(clips[0])
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    data = base64.b64encode(file.getvalue()).decode()
    expected = chat_pipe(file.getvalue(), text="What?", max_new_tokens=LENGTH)[0]["generated_text"]
    for audio in ({"data": data, "format": "wav"}, {"data": data}, {"data": f"data:audio/x;base64,{data}"}):
        content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "What?"}]
        completion = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
        assert completion.choices[0].message.content == expected


def test_lengths_and_stop_strings(ask, expected):
    (clip, question), answer = next(iter(expected.items()))
    for name in ("max_tokens", "max_completion_tokens"):
        completion = ask(clip, question, **{name: 3})
        assert completion.usage.completion_tokens == 3 and answer.startswith(completion.choices[0].message.content)
    # A request cannot ask for more than the server allows.
    assert ask(clip, question, max_tokens=10_000).usage.completion_tokens == LENGTH
    stop = answer[len(answer) // 2 :][:2]
    completion = ask(clip, question, stop=stop)
    assert completion.choices[0].message.content == answer[: answer.index(stop)]
    assert completion.choices[0].finish_reason == "stop"
    chunks = list(ask(clip, question, stop=["never", stop], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer[: answer.index(stop)]


def test_sampling_depends_on_the_seed_alone(ask, clips):
    def answer(**settings):
        return ask(clips[0], "What?", **settings).choices[0].message.content

    greedy = answer()
    assert answer(temperature=0) == answer(temperature=0, seed=3) == greedy
    sampled = {seed: answer(temperature=2, seed=seed) for seed in range(4)}
    assert len(set(sampled.values())) > 1
    for seed, text in sampled.items():
        assert answer(temperature=2, seed=seed) == text
    assert answer(temperature=2, top_p=1e-6) == greedy
    # Dividing by it would overflow.
    assert answer(temperature=1e-300) == greedy


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def test_the_text_of_clips_is_freed_before_the_answer(client, as_part, clips, chat_pipe, monkeypatch):
    part, held = as_part(clips[0]), []
    generate = chat_pipe.model.generate

    def counted(**inputs):
        gc.collect()
        audio = [each for each in gc.get_objects() if type(each) is InputAudio]
        held.append(sum(each.data == part["input_audio"]["data"] for each in audio))
        return generate(**inputs)

    monkeypatch.setattr(chat_pipe.model, "generate", counted)
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3)
    pieces = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3, temperature=0, stream=True)
    assert sum(len(piece.choices) for piece in pieces) > 1
    assert answer.usage.completion_tokens == 3 and held == [0, 0]
