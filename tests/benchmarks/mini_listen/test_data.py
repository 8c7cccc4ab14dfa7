import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from benchmarks.mini_listen import data as data_module
from benchmarks.mini_listen.data import (
    ASKED_ABOUT,
    CAPTIONS,
    EMOTIONS,
    LOUDNESS,
    PLANNERS,
    TEMPOS,
    VOICES,
    Clip,
    Sound,
    StripedGenerator,
    Utterance,
    make_data,
    plan_clips,
    render_clip,
)
from benchmarks.mini_listen.instructions import INSTRUCTIONS, wordings_of
from benchmarks.mini_listen.questions import FRAMES
from benchmarks.mini_listen.sentences import SPLITS
from benchmarks.mini_listen.settings import TASKS
from offline.dataset_folder import SAMPLING_RATE
from offline.speech_synthesis import EspeakSynthesizer
from peft_listen.data import check_examples, read_examples


pytest.importorskip("espeakng_loader")
pytest.importorskip("soxr")
soundfile = pytest.importorskip("soundfile")

SMALL = {"train": 3, "validation": 1, "test": 2}  # of each kind of clips
REPOSITORY = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(clips: list[Clip]) -> list[dict]:
    return [row for clip in clips for row in clip.rows()]


def answers(task: str, split: str, count: int) -> list[str]:
    (kind,) = (kind for kind, tasks in ASKED_ABOUT.items() if task in tasks)
    return [row["answer"] for row in rows(plan_clips(kind, split, count)) if row["task"] == task]


def utterances(clips: list[Clip]) -> list[Utterance]:
    return [part for clip in clips for part in clip.parts if isinstance(part, Utterance)]


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("made") / "data", SMALL)


@pytest.fixture(scope="module")
def synthesizer() -> EspeakSynthesizer:
    return EspeakSynthesizer()


def test_every_example_is_valid_and_its_clip_can_be_heard(small_data: Path) -> None:
    for split in SPLITS:
        path = small_data / f"{split}.jsonl"
        assert check_examples(path) == []
        assert [example["task"] for example in read_examples(path)] == list(TASKS) * SMALL[split]


def test_audio_is_mono_16_bit_at_16_khz_and_short(small_data: Path) -> None:
    limits = {"sv": (2.0, 5.0), "acap": (1.0, 3.0)}
    paths = list((small_data / "audio").rglob("*.wav"))
    assert len(paths) == len(ASKED_ABOUT) * sum(SMALL.values())
    for path in paths:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLING_RATE, 1, "PCM_16")
        shortest, longest = limits.get(path.name.split("-")[0], data_module.SPEECH_LIMITS[1])
        assert shortest <= info.duration <= longest


def test_the_data_file_tells_what_is_heard(small_data: Path) -> None:
    for split in SPLITS:
        for line in (small_data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert len(row["voices"]) == len(row["sentences"]) == {"acap": 0, "sv": 2}.get(row["task"], 1)
            if row["task"] == "asr":
                assert row["answer"] == row["sentences"][0].lower().rstrip(".?")
            elif row["task"] == "acap":
                assert row["answer"] == ", then ".join(row["sounds"])
                assert row["answer"] in row["heard"]
            elif row["task"] == "sv":
                assert row["answer"] == ("Yes" if len(set(row["voices"])) == 1 else "No")
            elif row["task"] == "er":
                assert row["answer"] == row["emotion"]
                assert f"{row['emotion']} voice" in row["heard"]


def test_nine_tasks_are_asked_about_the_same_clips() -> None:
    for clip in plan_clips("speech", "test", 40):
        (utterance,) = clip.parts
        asked = {row["task"]: row["answer"] for row in clip.rows()}
        assert {row["audio"] for row in clip.rows()} == {clip.path}
        assert len({row["instruction"] for row in clip.rows()}) == len(asked) == 9
        words = asked["asr"].split()
        assert asked["first_word"] == words[0]
        assert asked["last_word"] == words[-1]
        numbers = {"three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
        assert numbers[asked["word_count"]] == len(words)
        assert utterance.settings["variant"] in VOICES["test"][asked["gender"]]
        slowest, fastest = TEMPOS[asked["tempo"]]
        assert slowest <= utterance.settings["rate"] <= fastest
        assert asked["sentence_type"] == ("question" if utterance.text.endswith("?") else "statement")
        assert asked["en2zh"].endswith("吗") == utterance.text.endswith("?")
        assert f" {asked['sqa']} " in f" {asked['asr']} "
        assert clip.heard == f'A {asked["gender"]} says in {asked["tempo"]} speech: "{asked["asr"]}"'


@pytest.mark.parametrize("task", ["gender", "tempo", "sentence_type", "er", "sv"])
def test_no_answer_is_right_more_often_than_the_others(task: str) -> None:
    counts = Counter(answers(task, "test", 300))
    assert set(counts.values()) == {300 // len(counts)}


def test_guessing_the_most_frequent_word_is_not_enough() -> None:
    for task, limit in (("first_word", 0.4), ("last_word", 0.15), ("word_count", 0.55), ("sqa", 0.15)):
        counts = Counter(answers(task, "test", 300))
        assert counts.most_common(1)[0][1] < limit * 300, task


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small_data: Path, tmp_path: Path) -> None:
    assert contents(make_data(tmp_path / "again", SMALL)) == contents(small_data)
    other = contents(make_data(tmp_path / "other", SMALL, seed=1))
    assert [path for path, digest in contents(small_data).items() if other[path] == digest] == []


KILLED_RUN = """
import os, sys
from benchmarks.mini_listen.data import make_data
from offline import dataset_folder
write, written = dataset_folder.write_file, 0
def dying_write(path, data):
    global written
    written += 1
    if written == int(sys.argv[2]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.0123.tmp").write_bytes(data[: len(data) // 2])
        os._exit(9)
    write(path, data)
dataset_folder.write_file = dying_write
make_data(sys.argv[1], {"train": 3, "validation": 1, "test": 2})
"""


def test_several_threads_give_the_same_bytes(small_data: Path, tmp_path: Path) -> None:
    assert contents(make_data(tmp_path / "data", SMALL, threads=3)) == contents(small_data)


@pytest.mark.parametrize("writes", [12, *(pytest.param(writes, marks=pytest.mark.slow) for writes in (1, 40))])
def test_a_killed_run_is_taken_up_and_gives_the_same_bytes(writes: int, small_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "data"), str(writes)]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 9
    assert not (tmp_path / "data").exists()
    assert contents(make_data(tmp_path / "data", SMALL)) == contents(small_data)
    assert os.listdir(tmp_path) == ["data"]


def test_a_folder_whose_code_was_edited_without_effect_keeps_its_files(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_data(tmp_path / "data", SMALL)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "code_sha256": "older"}))
    before = {path: path.stat().st_ino for path in folder.rglob("*.wav")}
    capsys.readouterr()
    make_data(folder, SMALL)
    assert "is generated again" in capsys.readouterr().out
    assert contents(folder) == contents(small_data)
    assert {path: path.stat().st_ino for path in folder.rglob("*.wav")} == before
    make_data(folder, SMALL)
    assert capsys.readouterr().out == f"reusing {folder}\n"


def test_no_sentence_no_voice_and_no_instruction_occurs_in_two_splits() -> None:
    plans = {split: [clip for kind in ASKED_ABOUT for clip in plan_clips(kind, split, 200)] for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        for values in (
            {split: {utterance.text for utterance in utterances(clips)} for split, clips in plans.items()},
            {split: {u.settings["variant"] for u in utterances(clips)} for split, clips in plans.items()},
            {split: {row["instruction"] for row in rows(clips)} for split, clips in plans.items()},
        ):
            assert values[first].isdisjoint(values[second])
            assert values[first] and values[second]
    assert {utterance.settings["variant"] for utterance in utterances(plans["test"])} == {
        voice for gender in VOICES["test"].values() for voice in gender
    }


def test_the_parameters_of_sounds_never_share_a_stripe_between_splits() -> None:
    drawn = {}
    for split in SPLITS:
        generator = StripedGenerator(0, split)
        values = np.array([generator.uniform(100, 300) for _ in range(3000)])
        assert values.min() >= 100 and values.max() <= 300
        drawn[split] = set(((values - 100) / 10).astype(int))
    assert {split: len(stripes) for split, stripes in drawn.items()} == {"train": 14, "validation": 2, "test": 4}
    assert sum(map(len, drawn.values())) == len(set().union(*drawn.values()))


def test_each_sound_is_drawn_from_a_seed_of_its_own() -> None:
    seeds = [clip.seed for split in SPLITS for clip in plan_clips("acap", split, 300)]
    assert len(set(seeds)) == len(seeds)


def is_balanced(frequencies: Counter, kinds: int, count: int) -> bool:
    return (
        sum(frequencies.values()) == count
        and len(frequencies) == min(kinds, count)
        and max(frequencies.values()) - min(frequencies.values()) <= 1
    )


@pytest.mark.parametrize("count", [1, 15, 120])
def test_classes_and_wordings_are_balanced(count: int) -> None:
    for kind, tasks in ASKED_ABOUT.items():
        planned = rows(plan_clips(kind, "test", count))
        for task in set(tasks) - {"sqa"}:
            wordings = Counter(row["instruction"] for row in planned if row["task"] == task)
            assert is_balanced(wordings, len(INSTRUCTIONS[task]["test"]), count), task
    assert is_balanced(Counter(answers("er", "test", count)), len(EMOTIONS), count)


def test_each_task_has_at_least_15_wordings_for_training_and_no_wording_is_used_twice() -> None:
    assert set(INSTRUCTIONS) == set(TASKS) - {"sqa"}
    everywhere = Counter()
    for by_split in [*INSTRUCTIONS.values(), FRAMES]:
        assert len(by_split["train"]) >= 15
        assert len(by_split["validation"]) >= 3
        assert len(by_split["test"]) >= 5
        everywhere.update(wording.lower() for split in SPLITS for wording in by_split[split])
    assert [wording for wording, count in everywhere.items() if count > 1] == []
    question = next(row for row in rows(plan_clips("speech", "train", 1)) if row["task"] == "sqa")
    for split in SPLITS:
        assert len(set(wordings_of(question, split))) == len(FRAMES[split])


def test_wordings_do_not_go_with_answers() -> None:
    planned = [row for row in rows(plan_clips("speech", "test", 300)) if row["task"] == "tempo"]
    pairs = Counter((row["instruction"], row["answer"]) for row in planned)
    assert len(pairs) == 10 and min(pairs.values()) >= 15


def test_the_genders_of_speaker_verification_are_mixed() -> None:
    clips = plan_clips("sv", "train", 800)
    genders = {voice: gender for gender, voices in VOICES["train"].items() for voice in voices}
    kinds = Counter()
    for clip in clips:
        first, second = (part.settings["variant"] for part in clip.parts)
        (asked,) = clip.asked
        assert (first == second) == (asked.answer == "Yes")
        kinds[asked.answer, genders[first] == genders[second]] += 1
    assert kinds["No", True] == kinds["No", False] == 200
    assert all(clip.parts[0].text != clip.parts[1].text for clip in clips[:100])


def test_captions_have_every_sound_as_often_and_one_or_two_in_order() -> None:
    clips = plan_clips("acap", "train", 800)
    assert Counter(len(clip.parts) for clip in clips) == {1: 400, 2: 400}
    assert all(clip.asked[0].answer == ", then ".join(part.caption for part in clip.parts) for clip in clips)
    pairs = [clip.parts for clip in clips if len(clip.parts) == 2]
    assert all(first.name != second.name for first, second in pairs)
    for frequencies, kinds in (
        (Counter(part.name for clip in clips for part in clip.parts), len(CAPTIONS)),
        (Counter(part.loudness for clip in clips for part in clip.parts), len(LOUDNESS)),
    ):
        assert len(frequencies) == kinds
        assert max(frequencies.values()) < 1.25 * min(frequencies.values())


def test_the_questions_differ_from_example_to_example() -> None:
    planned = [row for row in rows(plan_clips("speech", "train", 800)) if row["task"] == "sqa"]
    assert len({row["instruction"] for row in planned}) > 600
    kinds = Counter(row["question"] for row in planned)
    assert set(kinds) == {"who", "what", "how many", "colour", "where", "when", "who or what is there", "doing"}
    assert min(kinds.values()) >= 35


def test_no_sentence_is_read_twice_in_validation_and_test() -> None:
    for split, count in (("validation", 60), ("test", 300)):
        texts = [utterance.text for utterance in utterances(plan_clips("speech", split, count))]
        repeated = [text for text, times in Counter(texts).items() if times > 1]
        # The test split has 29 sentences of the pattern "located" and 40 of "timed", and 30 and 45 are needed.
        assert len(repeated) <= {"validation": 0, "test": 6}[split]


def test_tasks_with_the_same_seed_do_not_depend_on_one_another() -> None:
    assert list(PLANNERS) == list(ASKED_ABOUT)
    assert [task for tasks in ASKED_ABOUT.values() for task in tasks] == list(TASKS)
    longer = plan_clips("acap", "test", 6)
    assert longer == plan_clips("acap", "test", 6)
    assert plan_clips("acap", "test", 6, seed=1) != longer


def test_emotions_differ_in_length_and_loudness(synthesizer: EspeakSynthesizer) -> None:
    seconds, loudness = {}, {}
    for emotion, ranges in EMOTIONS.items():
        settings = {name: low for name, (low, _) in ranges.items()}
        utterance = Utterance("My sister sold three boats.", {"voice": "en-us", "variant": "f3", **settings})
        samples = render_clip(Clip("", "test", "er", (utterance,), (), 0), synthesizer)
        seconds[emotion], loudness[emotion] = samples.size / SAMPLING_RATE, samples.std()
    assert seconds["sad"] > seconds["calm"] > seconds["happy"] > seconds["angry"]
    for louder, softer in (("angry", "happy"), ("happy", "calm"), ("calm", "sad")):
        assert loudness[louder] > 1.25 * loudness[softer]


@pytest.mark.parametrize("name", CAPTIONS)
def test_loud_and_soft_sounds_differ_by_a_factor_of_at_least_seven(name: str) -> None:
    peaks = {}
    for loudness in LOUDNESS:
        clip = Clip("", "test", "acap", (Sound(name, loudness),), (), seed=3)
        peaks[loudness] = np.abs(render_clip(clip, synthesizer=None)).max()
    assert peaks["loud"] > 7 * peaks["soft"]


def test_two_utterances_have_a_pause_of_at_least_0_4_seconds_between_them(synthesizer: EspeakSynthesizer) -> None:
    clip = plan_clips("sv", "test", 1)[0]
    samples = render_clip(clip, synthesizer)
    silent = np.flatnonzero(np.diff(np.flatnonzero(np.abs(samples) > 1e-3)) >= 0.4 * SAMPLING_RATE)
    assert silent.size == 1


def test_speech_that_does_not_fit_is_an_error(synthesizer: EspeakSynthesizer) -> None:
    utterance = Utterance("My mother painted seven pictures.", {"voice": "en-us", "variant": "f3", "rate": 80})
    clip = Clip("", "test", "sv", (utterance, utterance), (), seed=0)
    with pytest.raises(RuntimeError, match=r"takes \d\.\d s .*more than 2\.3 s\. Shorten the text or raise the rate"):
        render_clip(clip, synthesizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smell", "train", 1), "no kind of clips 'smell', expected one of speech, er, sv, acap"),
        (("er", "dev", 1), "no split 'dev', expected one of train, validation, test"),
        (("er", "train", 0), "count=0 and seed=0: expected a count of 1 or more"),
        (("er", "train", 1, -1), "seed=-1: expected a count of 1 or more and a seed of 0 or more"),
    ],
)
def test_impossible_plans_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_clips(*arguments)


def test_sizes_without_a_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a size for each of train, validation, test, got {'train': 3}"):
        make_data(tmp_path / "data", {"train": 3})


def test_the_command_makes_a_data_set_and_names_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--train", "2", "--validation", "1", "--test", "1", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["data", str(tmp_path / "data"), *arguments])
    data_module.main()
    assert capsys.readouterr().out == f"{tmp_path / 'data'}\n"
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["clips_per_task"] == {"train": 2, "validation": 1, "test": 1}
    assert manifest["seed"] == 3
