"""What holds for every recipe: wordings, drawn rows, sources that are wrong or hostile, and the files that are written."""

import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile

from peft_listen.audio import load_audio
from peft_listen.data import read_examples
from peft_listen.data.recipes import (
    Item,
    Recipe,
    Skipped,
    SourceFolder,
    available_recipes,
    base,
    clips,
    get_recipe,
    prepare,
    register_recipe,
)
from peft_listen.data.recipes.wordings import WORDINGS
from peft_listen.metrics import available_metrics
from tests.data.recipes.trees import TREES, write_clip, write_librispeech, write_librisqa, write_text, write_voxceleb1


every_recipe = pytest.mark.parametrize("name", available_recipes())


def lines_of(report):
    with open(report.path, encoding="utf-8") as file:
        return file.read().splitlines()


def write_many(folder, count=60):
    """LibriSpeech with one chapter of many clips, which are one file under several names."""
    chapter = folder / "dev-clean/84/121123"
    clip = write_clip(chapter / "84-121123-0000.flac")
    for number in range(1, count):
        os.link(clip, chapter / f"84-121123-{number:04}.flac")
    lines = (f"84-121123-{number:04} WORD {number}\n" for number in range(count))
    write_text(chapter / "84-121123.trans.txt", "".join(lines))
    return folder


def test_every_recipe_has_a_miniature_in_the_tests():
    assert available_recipes() == sorted(TREES)


# Data sets of others. The rows of `csv` have tasks of their own.
every_public_recipe = pytest.mark.parametrize("name", [name for name in available_recipes() if name != "csv"])


@every_public_recipe
def test_a_recipe_states_its_license_layout_and_metrics(name):
    recipe = get_recipe(name)
    assert "http" in recipe.license and recipe.layout and recipe.title
    assert type(recipe).__doc__
    assert recipe.task in WORDINGS
    assert set(recipe.metrics) <= set(available_metrics())


@pytest.mark.parametrize("task", WORDINGS)
def test_the_wordings_of_a_task_differ(task):
    assert len(set(WORDINGS[task])) == len(WORDINGS[task]) >= 5
    assert len({"{question}" in wording for wording in WORDINGS[task]}) == 1


def test_each_row_draws_its_wording_by_the_seed(tmp_path):
    source = write_many(tmp_path / "source")
    (report,) = prepare("librispeech", source, tmp_path / "data")
    rows = [json.loads(line) for line in lines_of(report)]
    drawn = Counter(row["instruction"] for row in rows)
    assert set(drawn) == set(WORDINGS["asr"])
    assert max(drawn.values()) < 25
    assert lines_of(*prepare("librispeech", source, tmp_path / "again")) == lines_of(report)
    other = [json.loads(line) for line in lines_of(*prepare("librispeech", source, tmp_path / "other", seed=1))]
    assert [row["instruction"] for row in other] != [row["instruction"] for row in rows]
    assert [row["answer"] for row in other] == [row["answer"] for row in rows]


def test_the_wording_of_a_row_does_not_depend_on_the_other_rows(tmp_path):
    (many,) = prepare("librispeech", write_many(tmp_path / "source"), tmp_path / "data")
    (few,) = prepare("librispeech", write_many(tmp_path / "few", 5), tmp_path / "few_data")
    instructions = [[json.loads(line)["instruction"] for line in lines_of(report)] for report in (many, few)]
    assert instructions[0][:5] == instructions[1]


def test_the_wordings_can_be_one_or_those_of_a_file(tmp_path):
    source = write_many(tmp_path / "source", 20)
    (report,) = prepare("librispeech", source, tmp_path / "data", wordings="first")
    assert {row["instruction"] for row in read_examples(report.path)} == {WORDINGS["asr"][0]}
    own = write_text(tmp_path / "own.txt", "\ufeffSchreibe mit.\n\n  Was wird gesagt?  \nSchreibe mit.\n")
    (report,) = prepare("librispeech", source, tmp_path / "data", wordings=str(own))
    assert {row["instruction"] for row in read_examples(report.path)} == {"Schreibe mit.", "Was wird gesagt?"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, 'neither "all" nor "first" nor a text file'),
        (b"\xff\xfe", "nor a text file in UTF-8"),
        (b"\n \n", "contains no wordings; expected one per line"),
        (b"Answer {question}\nAnswer it.\n", r"'Answer it\.' does not contain \{question\}"),
    ],
)
def test_wordings_that_cannot_be_used_raise(content, message, tmp_path):
    if content is not None:
        write_text(tmp_path / "own.txt", content)
    with pytest.raises(ValueError, match=message):
        prepare("librisqa", write_librisqa(tmp_path / "source"), tmp_path / "data", wordings=str(tmp_path / "own.txt"))


def test_max_rows_draws_rows_that_keep_their_order(tmp_path):
    source = write_many(tmp_path / "source")
    (whole,) = prepare("librispeech", source, tmp_path / "data")
    (drawn,) = prepare("librispeech", source, tmp_path / "drawn", max_rows=10)
    assert (drawn.num_rows, drawn.num_not_drawn) == (10, 50)
    positions = [lines_of(whole).index(line) for line in lines_of(drawn)]
    assert positions == sorted(positions)
    assert positions != list(range(10))
    (more,) = prepare("librispeech", source, tmp_path / "more", max_rows=20)
    assert set(lines_of(drawn)) < set(lines_of(more))
    (other,) = prepare("librispeech", source, tmp_path / "other", max_rows=10, seed=1)
    assert [json.loads(line)["id"] for line in lines_of(other)] != [json.loads(line)["id"] for line in lines_of(drawn)]


def test_max_rows_writes_only_the_clips_that_are_drawn(tmp_path):
    prepare("voxceleb1", write_voxceleb1(tmp_path / "source"), tmp_path / "data", splits=["test"], max_rows=2)
    assert len(list((tmp_path / "data/voxceleb1-clips").rglob("*.flac"))) == 2


def test_joined_clips_are_written_once(tmp_path):
    source = write_voxceleb1(tmp_path / "source")
    prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    joined = sorted((tmp_path / "data/voxceleb1-clips").rglob("*.flac"))
    times = [clip.stat().st_mtime_ns for clip in joined]
    (report,) = prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    assert report.num_rows == 3
    assert sorted((tmp_path / "data/voxceleb1-clips").rglob("*")) == sorted(
        {*joined, *(clip.parent for clip in joined)}
    )
    assert [clip.stat().st_mtime_ns for clip in joined] == times
    # A clip of the source that has changed gives a new file.
    write_clip(source / "wav/id10270/x6uYqmx31kE/00001.wav", seconds=0.5)
    prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    assert len(list((tmp_path / "data/voxceleb1-clips").rglob("*.flac"))) == len(joined) + 2


def test_an_interrupted_run_leaves_the_earlier_file_and_the_next_one_goes_on(tmp_path, monkeypatch):
    source = write_voxceleb1(tmp_path / "source")
    (earlier,) = prepare("voxceleb1", source, tmp_path / "data", splits=["test"], max_rows=1)
    content = lines_of(earlier)
    shutil.rmtree(tmp_path / "data/voxceleb1-clips")
    decoded = []

    def load_twice(clip):
        decoded.append(clip)
        if len(decoded) > 3:
            raise KeyboardInterrupt
        return load_audio(clip)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clips, "load_audio", load_twice)
        prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    assert lines_of(earlier) == content
    left = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in left) == [".flac", ".jsonl"]
    (report,) = prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    assert (report.num_rows, len(list((tmp_path / "data/voxceleb1-clips").rglob("*.flac")))) == (3, 3)


def test_a_clip_that_cannot_be_decoded_is_skipped(tmp_path):
    source = write_voxceleb1(tmp_path / "source")
    write_text(source / "wav/id10271/8jEAjG6SegY/00001.wav", b"RIFF not audio")
    (report,) = prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    assert report.num_rows == 2
    assert report.skipped["the clip cannot be read"].count == 1
    assert "8jEAjG6SegY/00001.wav" in report.skipped["the clip cannot be read"].rows[0]


def test_check_clips_skips_clips_that_are_damaged_or_silent(tmp_path):
    root = write_librispeech(tmp_path / "source")
    chapter = root / "dev-clean/84/121123"
    soundfile.write(chapter / "84-121123-0000.flac", np.zeros(3_200), 16_000)
    write_text(chapter / "84-121123-0001.flac", b"fLaC and no more")
    (without,) = prepare("librispeech", root, tmp_path / "data", splits=["dev-clean"])
    assert without.num_rows == 3
    (checked,) = prepare("librispeech", root, tmp_path / "data", splits=["dev-clean"], check_clips=True)
    assert checked.num_rows == 1
    assert checked.skipped["the clip cannot be read or is silent"].count == 2


# ---------------------------------------------------------------------------------------------------------------------
# Sources that are wrong
# ---------------------------------------------------------------------------------------------------------------------


@every_public_recipe
def test_another_folder_is_refused_with_the_files_that_are_expected(name, tmp_path):
    (tmp_path / "source").mkdir()
    write_clip(tmp_path / "source/music/song.wav")
    recipe = get_recipe(name)
    with pytest.raises(ValueError, match="in its published layout") as error:
        prepare(name, tmp_path / "source", tmp_path / "data")
    assert recipe.layout in str(error.value) and recipe.title in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_source_that_is_not_a_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        prepare("librispeech", tmp_path / "none", tmp_path / "data")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        prepare("librispeech", write_clip(tmp_path / "a.wav"), tmp_path / "data")
    with pytest.raises(NotADirectoryError, match=f"Pass the folder that contains this file, {tmp_path}."):
        prepare("csv", write_text(tmp_path / "clips.CSV", "audio\n"), tmp_path / "data")
    with pytest.raises(NotADirectoryError, match="expected a folder, in which the data files are written"):
        prepare("librispeech", write_librispeech(tmp_path), tmp_path / "a.wav")


def test_unknown_and_missing_splits_are_refused(tmp_path):
    root = write_librispeech(tmp_path)
    with pytest.raises(ValueError, match="there is no split 'train'; the splits are train-clean-100"):
        prepare("librispeech", root, tmp_path / "data", splits=["train"])
    with pytest.raises(ValueError, match="split 'dev-other' .*; those of dev-clean, test-clean are there"):
        prepare("librispeech", root, tmp_path / "data", splits=["dev-clean", "dev-other"])
    assert not (tmp_path / "data").exists()


def test_a_split_without_any_usable_row_is_not_written(tmp_path):
    root = write_librispeech(tmp_path)
    (root / "test-clean/61/70968/61-70968-0000.flac").unlink()
    (tmp_path / "data").mkdir()
    write_text(tmp_path / "data/librispeech-test-clean.jsonl", "earlier")
    with pytest.raises(ValueError, match="no row can be used, so .* is not written. 1 rows: the clip is missing"):
        prepare("librispeech", root, tmp_path / "data", splits=["test-clean"])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["librispeech-test-clean.jsonl"]
    assert (tmp_path / "data/librispeech-test-clean.jsonl").read_text() == "earlier"


@pytest.mark.parametrize("max_rows", [0, -1, 1.5, "3", True])
def test_an_invalid_number_of_rows_is_refused(max_rows, tmp_path):
    with pytest.raises(ValueError, match="`max_rows` must be an integer of at least 1"):
        prepare("librispeech", write_librispeech(tmp_path), tmp_path / "data", max_rows=max_rows)


# ---------------------------------------------------------------------------------------------------------------------
# Sources that are hostile or damaged
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../../secret.wav", "the path leaves the source folder"),
        ("a/../../../../secret.wav", "the path leaves the source folder"),
        ("..\\secret.wav", "the path leaves the source folder"),
        ("/etc/hostname", "the clip is missing"),  # it is taken as relative to the folder of the clips
        ("a\\b.wav", "the path has a backslash; write it with /, such as clips/1.wav"),
        ("a\0b", "the path has a NUL character"),
        ("x" * 300, "the clip cannot be opened (File name too long)"),
    ],
)
def test_a_path_that_leaves_the_source_is_skipped(path, reason, tmp_path):
    write_clip(tmp_path / "secret.wav")
    source = write_voxceleb1(tmp_path / "source")
    write_text(
        source / "veri_test.txt", f"1 {path} {path}\n0 id10270/x6uYqmx31kE/00001.wav id10271/8jEAjG6SegY/00001.wav\n"
    )
    (report,) = prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    assert report.num_rows == 1
    assert {text: skipped.count for text, skipped in report.skipped.items()} == {reason: 1}


def test_links_are_followed_inside_the_source_and_out_of_it_only_if_allowed(tmp_path):
    root = write_librispeech(tmp_path / "source")
    chapter = root / "dev-clean/84/121123"
    outside = tmp_path / "outside.flac"
    (chapter / "84-121123-0000.flac").rename(outside)
    (chapter / "84-121123-0000.flac").symlink_to(outside)
    (chapter / "84-121123-0001.flac").unlink()
    (chapter / "84-121123-0001.flac").symlink_to(chapter / "84-121123-0002.flac")
    (report,) = prepare("librispeech", root, tmp_path / "data", splits=["dev-clean"])
    assert report.skipped["a symbolic link leads out of the source folder"].rows == ["84-121123-0000"]
    assert report.num_rows == 2
    (report,) = prepare("librispeech", root, tmp_path / "data", splits=["dev-clean"], follow_links=True)
    assert report.num_rows == 3


def test_folders_and_lists_that_are_links_out_of_the_source_are_named(tmp_path):
    source = write_voxceleb1(tmp_path / "source")
    (source / "wav").rename(tmp_path / "wav")
    (source / "wav").symlink_to(tmp_path / "wav")
    advice = r"The link .*/source/wav leads out of the folder and was not followed: pass `follow_links=True`"
    with pytest.raises(ValueError, match=f"published layout.*{advice}"):
        prepare("voxceleb1", source, tmp_path / "data")
    (_, test) = prepare("voxceleb1", source, tmp_path / "data", follow_links=True)
    assert test.num_rows == 3

    root = write_librispeech(tmp_path / "other")
    (root / "dev-clean/84").rename(tmp_path / "84")
    (root / "dev-clean/84").symlink_to(tmp_path / "84")
    with pytest.raises(OSError, match=r"dev-clean/84: a symbolic link leads out .* pass `follow_links=True`"):
        prepare("librispeech", root, tmp_path / "data")
    transcript = root / "test-clean/61/70968/61-70968.trans.txt"
    transcript.rename(tmp_path / "transcript")
    transcript.symlink_to(tmp_path / "transcript")
    with pytest.raises(OSError, match=r"61-70968.trans.txt: a symbolic link leads out .* pass `follow_links=True`"):
        prepare("librispeech", root, tmp_path / "data", splits=["test-clean"])


def test_links_that_lead_in_circles_end(tmp_path):
    root = write_librispeech(tmp_path / "source")
    chapter = root / "dev-clean/84/121123"
    (chapter / "84-121123-0000.flac").unlink()
    (chapter / "84-121123-0000.flac").symlink_to(chapter / "84-121123-0000.flac")
    (root / "dev-clean/84/again").symlink_to(root / "dev-clean")
    (root / "dev-clean/2000").symlink_to(root / "dev-clean/2000")
    (report,) = prepare("librispeech", root, tmp_path / "data", splits=["dev-clean"])
    assert report.skipped["a symbolic link leads in a loop"].rows == ["84-121123-0000"]
    assert report.num_rows == 2


def test_a_source_that_is_a_link_is_used(tmp_path):
    write_librispeech(tmp_path / "disk")
    (tmp_path / "corpora").symlink_to(tmp_path / "disk")
    assert len(prepare("librispeech", tmp_path / "corpora", tmp_path / "data")) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_clips_and_lists_that_are_pipes_are_not_opened(tmp_path):
    root = write_librispeech(tmp_path / "source")
    clip = root / "dev-clean/84/121123/84-121123-0000.flac"
    clip.unlink()
    os.mkfifo(clip)
    (report,) = prepare("librispeech", root, tmp_path / "data", splits=["dev-clean"])
    assert report.skipped["the clip is not a regular file"].count == 1
    transcript = root / "test-clean/61/70968/61-70968.trans.txt"
    transcript.unlink()
    os.mkfifo(transcript)
    with pytest.raises(OSError, match="is not a regular file"):
        prepare("librispeech", root, tmp_path / "data", splits=["test-clean"])


def test_lines_that_are_not_utf_8_or_too_long_are_skipped_and_the_others_read(tmp_path):
    root = write_librispeech(tmp_path / "source")
    transcript = root / "test-clean/61/70968/61-70968.trans.txt"
    good = transcript.read_bytes()
    write_text(
        transcript,
        b"\xef\xbb\xbf" + good + b"61-70968-0001 CAF\xe9\n\n" + b"x" * (1 << 20) + b"y\n61-70968-0002 A\r\n",
    )
    shutil.copy(root / "test-clean/61/70968/61-70968-0000.flac", root / "test-clean/61/70968/61-70968-0002.flac")
    (report,) = prepare("librispeech", root, tmp_path / "data", splits=["test-clean"])
    assert [json.loads(line)["answer"] for line in lines_of(report)] == ["he began a confused complaint", "a"]
    assert {text: reason.rows for text, reason in report.skipped.items()} == {
        "the line is not UTF-8": ["test-clean/61/70968/61-70968.trans.txt, line 2"],
        "the line is longer than 1 MiB": ["test-clean/61/70968/61-70968.trans.txt, line 4"],
    }


def test_a_line_that_occurs_twice_gives_one_row(tmp_path):
    root = write_librispeech(tmp_path / "source")
    transcript = root / "test-clean/61/70968/61-70968.trans.txt"
    write_text(transcript, transcript.read_bytes() * 2)
    (report,) = prepare("librispeech", root, tmp_path / "data", splits=["test-clean"])
    assert (report.num_rows, report.skipped["the id occurs more than once"].count) == (1, 1)


def test_texts_that_no_model_can_read_are_skipped(tmp_path):
    source = write_librisqa(tmp_path / "source")
    path = source / "LibriSQA-PartI/LibriSQA-PartI-test.json"
    rows = json.loads(path.read_text())[:1]
    for question, answer in (("What is <|audio|>?", "a"), ("What?", "half \ud83d"), ("What?", "a" * 500_001)):
        rows.append({**rows[0], "question": question, "answer": answer})
    write_text(path, json.dumps(rows))
    (report,) = prepare("librisqa", source, tmp_path / "data")
    assert {text: reason.count for text, reason in report.skipped.items()} == {
        "the row is not a valid example": 2,
        "the text contains the audio token <|audio|>": 1,
    }
    assert report.num_rows == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": ', "is not JSON in UTF-8"),
        (b"\xff[]", "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON in UTF-8"),
        (b'{"data": []}', "contains a dict; expected a list of objects"),
        (b"[]", "Its lists are empty"),
        (b'[1, null, {}, {"speech_path": []}]', "4 rows: speech_path, question or answer is missing"),
    ],
)
def test_another_json_file_is_refused(content, message, tmp_path):
    source = write_librisqa(tmp_path / "source")
    write_text(source / "LibriSQA-PartI/LibriSQA-PartI-test.json", content)
    with pytest.raises(ValueError, match=message):
        prepare("librisqa", source, tmp_path / "data")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is not in the format of SQuAD 1.1"),
        ({"data": {}}, "is not in the format of SQuAD 1.1"),
        ({"data": [1, {"paragraphs": [2, {"qas": [3, {"id": 4}]}]}]}, "2 rows: id, question or answer is missing"),
    ],
)
def test_another_file_of_questions_is_refused(data, message, tmp_path):
    source = TREES["spoken-squad"](tmp_path / "source")
    write_text(source / "spoken_test-v1.1.json", json.dumps(data))
    with pytest.raises(ValueError, match=message):
        prepare("spoken-squad", source, tmp_path / "data")


def test_a_table_with_other_columns_is_refused(tmp_path):
    source = TREES["audiocaps"](tmp_path / "source")
    write_text(source / "train.csv", "id,caption\n1,A dog\n")
    with pytest.raises(ValueError, match="the columns 'audiocap_id', 'youtube_id', 'start_time' are missing"):
        prepare("audiocaps", source, tmp_path / "data")


def test_clips_whose_names_are_not_utf_8_are_found_again(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(name)
    except OSError:
        pytest.skip("the file system has names in UTF-8 only")
    source = write_librispeech(tmp_path / "source").rename(os.fsdecode(name + b"/LibriSpeech"))
    (report, _) = prepare("librispeech", source, tmp_path / "data")
    assert all(os.path.isfile(row["audio"]) for row in read_examples(report.path))


# ---------------------------------------------------------------------------------------------------------------------
# Recipes of one's own
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_slot(monkeypatch):
    monkeypatch.setattr(base, "_RECIPES", dict(base._RECIPES))


def test_a_recipe_of_ones_own_is_found_by_its_name(empty_slot, tmp_path):
    @register_recipe("folders")
    class Folders(Recipe):
        """One folder of clips for each answer."""

        title = "Folders"
        task = "animal"
        wordings = ("Which animal is it?",)
        metrics = ("exact_match",)
        license = "yours"
        layout = "dog/1.wav"

        def splits(self, source: SourceFolder):
            return {"all": bool(source.folders("."))}

        def rows(self, source, split, seed):
            for folder in source.folders("."):
                for clip in source.files(folder, ".wav"):
                    yield Item(f"{folder}/{clip}", folder, (f"{folder}/{clip}",))
                yield Skipped("an example of the rule", folder, by_rule=True)

    write_clip(tmp_path / "source/dog/1.wav")
    (report,) = prepare("folders", tmp_path / "source", tmp_path / "data")
    assert "folders" in available_recipes()
    (row,) = read_examples(report.path)
    assert (row["instruction"], row["answer"], row["task"]) == ("Which animal is it?", "dog", "animal")
    assert report.to_dict()["skipped"] == {
        "an example of the rule": {"count": 1, "by_rule": True, "rows": ["dog"]},
    }
    Folders.wordings = ()
    with pytest.raises(ValueError, match="'folders' has no wordings, and its task 'animal' is none of"):
        prepare("folders", tmp_path / "source", tmp_path / "data")


def test_names_of_recipes_are_checked(empty_slot):
    with pytest.raises(ValueError, match="There is no recipe 'clotho'; registered recipes: audiocaps, covost2-en-zh"):
        get_recipe("clotho")
    with pytest.raises(ValueError, match="`recipe` must be the name of a recipe"):
        prepare(3, ".", ".")
    with pytest.raises(ValueError, match="lower-case letters, digits and hyphens, got '../x'"):
        register_recipe("../x")(type("Mine", (Recipe,), {}))
    with pytest.raises(TypeError, match="must be a subclass of `Recipe`"):
        register_recipe("mine")(int)
    with pytest.raises(ValueError, match="'librispeech' is already used by LibriSpeech"):
        register_recipe("librispeech")(type("Mine", (Recipe,), {}))
