"""Recipes on datasets with the columns that the data sets have on the Hub."""

import io
import json

import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, Features, Value

from peft_listen.audio import load_audio
from peft_listen.data import check_examples
from peft_listen.data.recipes import get_recipe, prepare_dataset


def encoded(frequency=220.0, container="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * frequency * np.arange(3_200) / 16_000), 16_000, format=container)
    return file.getvalue()


def dataset(columns, audio, **features):
    encoded_audio = {"bytes": Value("binary"), "path": Value("string")}
    types = {name: Value("string") for name in columns} | features | {"audio": encoded_audio}
    data = Dataset.from_dict({**columns, "audio": audio}, features=Features(types))
    return data.cast_column("audio", Audio(sampling_rate=16_000))


def rows_of(report):
    with open(report.path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


LIBRISPEECH = {
    "file": ["374-180298-0000.flac", "374-180298-0001.flac", "374-180298-0002.flac"],
    "text": ["CHAPTER SIXTEEN", "I MIGHT HAVE TOLD YOU", ""],
    "speaker_id": [374, 374, 374],
    "chapter_id": [180298, 180298, 180298],
    "id": ["374-180298-0000", "374-180298-0001", "374-180298-0002"],
}
NUMBERS = {"speaker_id": Value("int64"), "chapter_id": Value("int64")}


def librispeech(*audio):
    audio = audio or [{"bytes": encoded(200 + 10 * number), "path": None} for number in range(3)]
    return dataset(LIBRISPEECH, list(audio), **NUMBERS)


def test_librispeech_writes_the_audio_as_it_is_encoded(tmp_path):
    report = prepare_dataset("librispeech", librispeech(), tmp_path / "data", split="train.clean.100")
    assert report.path == str(tmp_path / "data/librispeech-train.clean.100.jsonl")
    rows = rows_of(report)
    assert [(row["id"], row["answer"]) for row in rows] == [
        ("374-180298-0000", "chapter sixteen"),
        ("374-180298-0001", "i might have told you"),
    ]
    assert rows[0]["audio"].startswith("librispeech-clips/") and rows[0]["audio"].endswith(".flac")
    assert (tmp_path / "data" / rows[1]["audio"]).read_bytes() == encoded(210)
    assert check_examples(report.path) == []
    assert {text: reason.count for text, reason in report.skipped.items()} == {"the transcript is empty": 1}


def test_a_second_call_writes_the_same(tmp_path):
    first = rows_of(prepare_dataset("librispeech", librispeech(), tmp_path / "data", split="test"))
    assert rows_of(prepare_dataset("librispeech", librispeech(), tmp_path / "data", split="test")) == first
    assert len(list((tmp_path / "data/librispeech-clips").rglob("*.flac"))) == 2


def test_max_rows_and_wordings_are_the_same_as_for_a_folder(tmp_path):
    report = prepare_dataset(
        "librispeech", librispeech(), tmp_path / "data", split="test", max_rows=1, wordings="first"
    )
    assert (report.num_rows, report.num_not_drawn) == (1, 1)
    assert rows_of(report)[0]["instruction"] == "Transcribe the speech."
    assert len(list((tmp_path / "data/librispeech-clips").rglob("*.flac"))) == 1


def test_rows_without_audio_or_with_audio_elsewhere(tmp_path):
    clip = tmp_path / "clip.wav"
    clip.write_bytes(encoded(container="WAV"))
    audio = [
        {"bytes": None, "path": str(clip)},
        {"bytes": None, "path": "relative.wav"},
        {"bytes": b"x", "path": None},
    ]
    report = prepare_dataset("librispeech", librispeech(*audio), tmp_path / "data", split="test")
    assert [row["audio"] for row in rows_of(report)] == [str(clip)]
    assert report.skipped["the clip cannot be read"].count == 1


def test_covost2(tmp_path):
    columns = {
        "client_id": ["c", "c"],
        "file": ["a.mp3", "b.mp3"],
        "sentence": ["Yes.", "No."],
        "translation": ["是。", None],
        "id": ["common_voice_en_1", "common_voice_en_2"],
    }
    audio = [{"bytes": encoded(container="MP3"), "path": "a.mp3"}] * 2
    report = prepare_dataset("covost2-en-zh", dataset(columns, audio), tmp_path / "data", split="validation")
    (row,) = rows_of(report)
    assert (row["id"], row["answer"]) == ("common_voice_en_1", "是。")
    assert row["audio"].endswith(".mp3")
    assert report.skipped["the translation is empty"].rows == ["common_voice_en_2"]
    assert load_audio(tmp_path / "data" / row["audio"]).size > 3_000


def test_iemocap_reads_the_classes_of_superb(tmp_path):
    labels = ClassLabel(names=["neu", "hap", "ang", "sad"])
    files = [f"/data/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F00{number}.wav" for number in range(4)]
    columns = {"file": files, "label": [3, 1, 0, 2]}
    audio = [{"bytes": encoded(container="WAV"), "path": None}] * 4
    report = prepare_dataset("iemocap", dataset(columns, audio, label=labels), tmp_path / "data", split="session1")
    assert [(row["id"], row["answer"]) for row in rows_of(report)] == [
        ("Ses01F_impro01_F000", "sad"),
        ("Ses01F_impro01_F001", "happy"),
        ("Ses01F_impro01_F002", "neutral"),
        ("Ses01F_impro01_F003", "angry"),
    ]


def test_audiocaps_joins_the_captions_of_a_clip_except_in_training(tmp_path):
    columns = {
        "audiocap_id": [1, 2, 3],
        "youtube_id": ["aaa", "bbb", "aaa"],
        "start_time": [30, 0, 30],
        "caption": ["A dog barks", "Rain", "A dog barks  twice"],
    }
    audio = [{"bytes": encoded(200 + number), "path": None} for number in range(3)]
    integers = {"audiocap_id": Value("int32"), "start_time": Value("int32")}
    data = dataset(columns, audio, **integers)
    test = rows_of(prepare_dataset("audiocaps", data, tmp_path / "data", split="test"))
    assert [(row["id"], row["answer"], row.get("references")) for row in test] == [
        ("1", "A dog barks", ["A dog barks", "A dog barks twice"]),
        ("2", "Rain", None),
    ]
    train = rows_of(prepare_dataset("audiocaps", data, tmp_path / "data", split="train"))
    assert [row["answer"] for row in train] == ["A dog barks", "Rain", "A dog barks twice"]


def test_other_columns_and_other_kinds_of_datasets_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"The columns \['text'\] are missing; .*Expected those of openslr"):
        prepare_dataset("librispeech", librispeech().remove_columns("text"), tmp_path / "data", split="test")
    with pytest.raises(ValueError, match="Expected a `datasets.Dataset`, got a IterableDataset"):
        prepare_dataset("librispeech", librispeech().to_iterable_dataset(), tmp_path / "data", split="test")
    with pytest.raises(ValueError, match="`split` must have letters"):
        prepare_dataset("librispeech", librispeech(), tmp_path / "data", split="../test")


@pytest.mark.parametrize("name", ["librisqa", "spoken-squad", "voxceleb1"])
def test_data_sets_without_audio_on_the_hub_say_so(name, tmp_path):
    with pytest.raises(NotImplementedError, match="not published with its audio on the Hub. Prepare it from a folder"):
        prepare_dataset(name, librispeech(), tmp_path / "data", split="test")
    assert get_recipe(name).hub is None
