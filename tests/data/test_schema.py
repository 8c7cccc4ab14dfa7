"""Reading and checking data files."""

import json

import numpy as np
import pytest
import soundfile

from peft_listen.data import Problem, check_examples, clips_of, read_examples, read_predictions


SAMPLING_RATE = 16_000
TONE = 0.3 * np.sin(np.arange(4_000) / 10)


def example(**fields):
    return {"audio": "tone.wav", "instruction": "What is it?", "answer": "a tone", "task": "sounds"} | fields


@pytest.fixture
def write(tmp_path):
    """Writes a data file next to an audio file; strings are written unchanged."""
    soundfile.write(tmp_path / "tone.wav", TONE, SAMPLING_RATE)

    def write(*lines, name="data.jsonl", end="\n"):
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)
        return path

    return write


class TestReadExamples:
    def test_examples_are_in_order_with_paths_relative_to_the_file(self, write, tmp_path):
        path = write(example(), example(answer="", task="other"))
        first = example(audio=str(tmp_path / "tone.wav"))
        assert read_examples(path) == [first, first | {"answer": "", "task": "other"}]
        assert read_examples(str(path)) == read_examples(path)

    def test_absolute_paths_urls_and_null_are_unchanged(self, write):
        for audio in ("/elsewhere/tone.wav", "https://example.org/tone.wav", None):
            assert read_examples(write(example(audio=audio)))[0]["audio"] == audio

    def test_other_fields_and_empty_lines_are_ignored(self, write):
        path = write(example(speaker="f1"), "", "  ", example(), end="")
        assert [sorted(one) for one in read_examples(path)] == [["answer", "audio", "instruction", "task"]] * 2

    def test_non_ascii_text_and_a_byte_order_mark_are_read(self, tmp_path):
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(example(answer="你好"), ensure_ascii=False).encode())
        assert read_examples(path)[0]["answer"] == "你好"

    def test_references_are_returned_where_they_are_given(self, write):
        path = write(example(references=["a tone", "one tone"]), example(), example(references=None))
        first, *others = read_examples(path)
        assert first["references"] == ["a tone", "one tone"]
        assert not any("references" in other for other in others)

    @pytest.mark.parametrize("references", [{}, [], "a tone", ["a tone", 3], ["half \ud83d"]])
    def test_references_that_are_not_texts_raise(self, write, references):
        with pytest.raises(ValueError, match=r"data.jsonl, line 1: `references` (must be a list of at|contains half)"):
            read_examples(write(example(references=references)))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"audio": ', r"not valid JSON \(.*\)\. Every line must be one JSON object"),
            ("[1, 2]", r"expected a JSON object .*, got a list"),
            ({"audio": "tone.wav", "text": "hi"}, r"the fields \['instruction', 'answer', 'task'\] are missing"),
            ({"instruction": "", "answer": "", "task": ""}, r"the fields \['audio'\] are missing"),
            (example(answer=3), r"`answer` must be a string, got 3"),
            (example(instruction=None), r"`instruction` must be a string, got None"),
            (example(instruction="  "), r"`instruction` is empty"),
            (example(task=""), r"`task` is empty"),
            (example(audio=["a.wav", 2]), r"`audio` must be a path, a URL, a list of these, or null, got \['a\.wav'"),
            (example(audio=[]), r"`audio` must be a path, a URL, a list of these, or null, got \[\]"),
            (example(audio=""), r"`audio` must be a path, a URL, a list of these, or null, got ''"),
            (example(system=3), r"`system` must be a string, got 3"),
            (example(system=" "), r"`system` is empty"),
        ],
    )
    def test_an_invalid_line_raises_with_its_number(self, write, line, message):
        with pytest.raises(ValueError, match=rf"data\.jsonl, line 3: {message}"):
            read_examples(write(example(), "", line))

    def test_a_line_that_is_not_utf8_raises_with_its_number(self, tmp_path):
        path = tmp_path / "data.jsonl"
        path.write_bytes(json.dumps(example()).encode() + b'\n{"audio": "\xff"}\n')
        with pytest.raises(ValueError, match=r"line 2: not UTF-8"):
            read_examples(path)

    def test_a_file_without_examples_raises(self, write):
        for function in (read_examples, check_examples):
            with pytest.raises(ValueError, match=r"data\.jsonl contains no examples"):
                function(write(""))

    def test_a_missing_file_raises(self, tmp_path):
        for function in (read_examples, check_examples):
            with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
                function(tmp_path / "none.jsonl")


SYSTEM = {"role": "system", "content": "Be brief."}


def chat(*, audio="tone.wav", **fields):
    """A line with a conversation of two turns, with a clip in each."""
    questions = [
        [{"type": "audio", "audio": audio}, {"type": "text", "text": text}] for text in ("What?", "And this?")
    ]
    answers = ["a tone", "the same"]
    messages = [SYSTEM]
    for question, answer in zip(questions, answers, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "task": "sounds"} | fields


class TestSeveralClipsAndTurns:
    def test_each_of_several_clips_is_found_relative_to_the_file(self, write, tmp_path):
        (row,) = read_examples(write(example(audio=["tone.wav", "https://example.org/b.wav", "/c.wav"], system="Hi.")))
        assert row["audio"] == [str(tmp_path / "tone.wav"), "https://example.org/b.wav", "/c.wav"]
        assert row["system"] == "Hi."

    def test_the_fields_of_a_conversation_are_those_of_its_messages(self, write, tmp_path):
        tone = str(tmp_path / "tone.wav")
        (row,) = read_examples(write(chat()))
        assert row["audio"] == [tone, tone]
        assert (row["instruction"], row["answer"], row["task"]) == ("And this?", "the same", "sounds")
        assert row["messages"][1]["content"] == [{"type": "audio"}, {"type": "text", "text": "What?"}]
        assert [message["role"] for message in row["messages"]] == ["system", *["user", "assistant"] * 2]
        assert row.keys() == {"audio", "messages", "instruction", "answer", "task"}

    def test_a_clip_without_a_question_is_no_empty_message(self, write):
        answer = {"role": "assistant", "content": "a tone"}
        alone = {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "tone.wav"}]}, answer]}
        before = {"messages": [{"role": "user", "content": ""}, answer], "audio": "tone.wav"}
        rows = read_examples(write(alone | {"task": "a"}, before | {"task": "a"}))
        assert [row["instruction"] for row in rows] == ["", ""] and rows[0]["audio"] == rows[1]["audio"]

    def test_what_was_read_can_be_written_and_read_again(self, write):
        texts = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": ""}], "task": "a"}
        rows = read_examples(write(chat(references=["the same"]), example(audio=["tone.wav"]), texts, example()))
        assert rows[2]["audio"] is None
        assert read_examples(write(*rows, name="again.jsonl")) == rows

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (chat(messages=[]), "`messages` must be a list of at least one message"),
            (chat(messages={"role": "user"}), "`messages` must be a list of at least one message, got dict"),
            (chat(messages=chat()["messages"][:4]), "the last of the `messages` is not the assistant's"),
            (chat(messages=[SYSTEM, SYSTEM]), "Message 1 of `messages` is a system prompt"),
            (chat(messages=[{"role": "tool", "content": ""}]), "Message 0 of `messages` has the role 'tool'"),
            (
                chat(audio=["a.wav", "b.wav"]),
                r"`audio` must be a path, a URL, a list of these, or null, got \[\['a.wav'",
            ),
            (chat(audio=None), "have 2 audio parts without a clip, and `audio` has 0 clips"),
            (chat(audio="a\0b"), "`audio` contains a null character"),
            (chat(answer="another"), "its `answer` 'another' is not that of the messages, 'the same'"),
            (chat(instruction=3), "its `instruction` 3 is not that of the messages, 'And this\\?'"),
            (chat(system="Be long."), "its `system` 'Be long.' is not that of the messages"),
            (chat(messages=[SYSTEM | {"content": " "}, *chat()["messages"][1:]]), "message 0 is empty"),
            (
                chat(messages=[SYSTEM, {"role": "user", "content": []}, {"role": "assistant", "content": "Hi."}]),
                "message 1 is empty: it has neither text nor audio",
            ),
            ({"messages": chat()["messages"]}, r"the fields \['task'\] are missing"),
            (chat(messages=[SYSTEM | {"content": "\ud83d"}, *chat()["messages"][1:]]), "message 0 contains half"),
            (
                chat(messages=[SYSTEM | {"content": "a" * 500_001}, *chat()["messages"][1:]]),
                "message 0 has 500001 char",
            ),
        ],
    )
    def test_an_invalid_conversation_is_refused_with_its_line(self, write, line, message):
        with pytest.raises(ValueError, match=rf"data\.jsonl, line 2: .*{message}"):
            read_examples(write(example(), line))
        assert [problem.line for problem in check_examples(write(example(), line, example()))] == [2]

    def test_every_clip_and_text_is_checked(self, write, tmp_path):
        soundfile.write(tmp_path / "silent.wav", np.zeros(100), SAMPLING_RATE)
        token = [SYSTEM | {"content": "a <|audio|>"}, *chat()["messages"][1:]]
        path = write(
            example(audio=["tone.wav", "silent.wav"]),
            chat(audio="none.wav"),
            chat(messages=token),
            example(system="<|audio|>"),
            chat(),
        )
        problems = check_examples(path)
        assert [problem.line for problem in problems] == [1, 2, 3, 4]
        for problem, message in zip(
            problems,
            ["silent.wav: the audio is silent", "none.wav", "message 0 contains", "`system` contains"],
            strict=True,
        ):
            assert message in problem.message

    def test_clips_of_rows_are_in_order(self, write, tmp_path):
        rows = [*read_examples(write(chat(), example(audio=None))), chat(audio="b.wav"), {"audio": "c.wav"}]
        assert clips_of(rows) == [str(tmp_path / "tone.wav")] * 2 + ["b.wav"] * 2 + ["c.wav"]
        with pytest.raises(ValueError, match="^Row 1: `messages` must be a list"):
            clips_of([*rows[:1], {"messages": "Hi."}])


class TestReadPredictions:
    def test_predictions_are_examples_with_an_answer(self, write):
        path = write(example(generated="A tone."), "", example(generated="", speaker="f1"))
        assert read_predictions(path) == [
            {**row, "generated": text} for row, text in zip(read_examples(path), ["A tone.", ""], strict=True)
        ]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (example(), r"data\.jsonl, line 2: the fields \['generated'\] are missing"),
            (example(generated=None), r"line 2: `generated` must be a string, got None"),
            (example(generated=1, task=""), r"line 2: `generated` must be a string, got 1"),
            (example(generated="\ud800"), r"line 2: `generated` "),
            ("{", r"line 2: not valid JSON"),
        ],
    )
    def test_an_invalid_line_is_refused_with_its_number(self, write, line, message):
        with pytest.raises(ValueError, match=message):
            read_predictions(write(example(generated="a"), line))

    def test_a_file_without_predictions_is_refused(self, write):
        with pytest.raises(ValueError, match="contains no examples"):
            read_predictions(write(""))


class TestCheckExamples:
    def test_valid_data_has_no_problems(self, write):
        assert check_examples(write(example(), example(audio=None))) == []

    def test_every_kind_of_invalid_audio_is_reported_with_its_line(self, write, tmp_path):
        soundfile.write(tmp_path / "silent.wav", np.zeros(100), SAMPLING_RATE)
        soundfile.write(tmp_path / "faint.wav", np.full(100, 3e-5), SAMPLING_RATE, subtype="FLOAT")
        soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), SAMPLING_RATE, subtype="FLOAT")
        soundfile.write(tmp_path / "no_samples.wav", np.zeros(0), SAMPLING_RATE)
        (tmp_path / "no_bytes.wav").touch()
        (tmp_path / "text.wav").write_text("plain text instead of audio, longer than a WAV header")
        (tmp_path / "cut.wav").write_bytes((tmp_path / "tone.wav").read_bytes()[:1000])
        expected = {
            "silent.wav": "is silent",
            "faint.wav": "is silent",
            "nan.wav": "NaN",
            "no_samples.wav": r"empty (0 samples)",
            "no_bytes.wav": r"empty (0 bytes)",
            "text.wav": "text",
            "cut.wav": "is truncated",
            "missing.wav": "no such audio file",
        }
        problems = check_examples(write(example(), *(example(audio=name) for name in expected), example()))
        assert [problem.line for problem in problems] == list(range(2, 10))
        for problem, (name, message) in zip(problems, expected.items(), strict=True):
            assert name in problem.message and message in problem.message

    def test_invalid_lines_and_invalid_audio_are_both_reported(self, write):
        problems = check_examples(write("{", example(), example(audio="missing.wav"), example(task=None)))
        assert [problem.line for problem in problems] == [1, 3, 4]
        assert str(problems[2]) == "line 4: `task` must be a string, got None."

    def test_a_clip_is_opened_once(self, write, monkeypatch):
        opened = []
        from peft_listen.data import schema

        load_audio = schema.load_audio
        monkeypatch.setattr(
            schema, "load_audio", lambda path, **kwargs: opened.append(path) or load_audio(path, **kwargs)
        )
        path = write(*[example(instruction=str(index)) for index in range(5)], *[example(audio="missing.wav")] * 2)
        assert [problem.line for problem in check_examples(path)] == [6, 7]
        assert len(opened) == 2

    def test_progress_is_shown_on_request(self, write, capsys):
        check_examples(write(example()))
        assert capsys.readouterr().err == ""
        check_examples(write(example()), show_progress=True)
        assert "Checking" in capsys.readouterr().err

    def test_a_problem_is_formatted_as_line_and_message(self):
        assert str(Problem(3, "the audio is silent.")) == "line 3: the audio is silent."
