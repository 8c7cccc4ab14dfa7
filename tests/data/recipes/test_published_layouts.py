"""Each recipe on a miniature of its data set: which rows it writes, and what it skips."""

import json

import pytest

from peft_listen.audio import load_audio
from peft_listen.data import check_examples, read_examples
from peft_listen.data.recipes import prepare
from tests.data.recipes.trees import (
    TREES,
    write_audiocaps,
    write_clip,
    write_covost2,
    write_iemocap,
    write_librispeech,
    write_librisqa,
    write_spoken_squad,
    write_text,
    write_voxceleb1,
)


def rows_of(report):
    with open(report.path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def counts(report):
    return {reason: skipped.count for reason, skipped in report.skipped.items()}


@pytest.mark.parametrize("name", TREES)
def test_what_is_written_is_valid_and_every_clip_can_be_read(name, tmp_path):
    source = TREES[name](tmp_path / "source")
    reports = prepare(name, source, tmp_path / "data")
    assert reports
    for report in reports:
        assert report.path == str(tmp_path / f"data/{name}-{report.split}.jsonl")
        assert check_examples(report.path) == []
        assert len(read_examples(report.path)) == report.num_rows > 0
        assert len({row["id"] for row in rows_of(report)}) == report.num_rows


@pytest.mark.parametrize("name", TREES)
def test_the_parent_folder_of_an_archive_is_accepted_where_the_archive_has_one(name, tmp_path):
    source = TREES[name](tmp_path / "source")
    expected = [report.num_rows for report in prepare(name, source, tmp_path / "data")]
    assert [report.num_rows for report in prepare(name, tmp_path / "source", tmp_path / "again")] == expected


def test_librispeech(tmp_path):
    dev, test = prepare("librispeech", write_librispeech(tmp_path), tmp_path / "data", wordings="first")
    assert (dev.split, test.split) == ("dev-clean", "test-clean")
    assert [(row["id"], row["answer"]) for row in rows_of(dev)] == [
        ("1272-128104-0000", "mister quilter's manner"),
        ("84-121123-0000", "go do you hear"),
        ("84-121123-0001", "but in less than five minutes the staircase groaned"),
    ]
    assert rows_of(test) == [
        {
            "audio": str(tmp_path / "LibriSpeech/test-clean/61/70968/61-70968-0000.flac"),
            "instruction": "Transcribe the speech.",
            "answer": "he began a confused complaint",
            "task": "asr",
            "id": "61-70968-0000",
            "hub_dataset": "openslr/librispeech_asr",
        }
    ]
    assert counts(dev) == {"the clip is missing": 1, "the transcript is empty": 1}
    assert dev.skipped["the clip is missing"].rows == ["1272-128104-0001"]
    assert dev.num_problems == 2 and test.num_problems == 0


def test_librispeech_without_a_transcript_file(tmp_path):
    root = write_librispeech(tmp_path)
    (root / "dev-clean/1272/128104/1272-128104.trans.txt").unlink()
    (dev,) = prepare("librispeech", root, tmp_path / "data", splits=["dev-clean"])
    assert counts(dev) == {"the chapter has no .trans.txt": 1, "the transcript is empty": 1}


def test_covost2_joins_the_tables_by_the_published_rule(tmp_path):
    train, dev, test = prepare("covost2-en-zh", write_covost2(tmp_path), tmp_path / "data")
    assert [(row["id"], row["answer"]) for row in rows_of(train)] == [
        ("common_voice_en_10", '她说"好的"。'),
        ("common_voice_en_11", "你好\\世界"),
    ]
    assert rows_of(train)[0]["audio"].endswith("/en/clips/common_voice_en_10.mp3")
    assert counts(train) == {
        "the clip is missing": 1,
        "the clip is not in validated.tsv": 1,
        "the translation is empty": 1,
    }
    assert [row["answer"] for row in rows_of(dev)] == ["开发"]
    assert [row["answer"] for row in rows_of(test)] == ["测试"]


def test_covost2_reads_the_tables_of_the_published_script(tmp_path):
    write_clip(tmp_path / "clips/common_voice_en_1.mp3")
    write_text(
        tmp_path / "covost_v2.en_zh-CN.dev.tsv",
        "path\tsentence\ttranslation\tclient_id\ncommon_voice_en_1.mp3\tYes.\t是。\tc\nshort\n",
    )
    (dev,) = prepare("covost2-en-zh", tmp_path, tmp_path / "data")
    assert dev.split == "dev"
    assert [row["answer"] for row in rows_of(dev)] == ["是。"]
    assert counts(dev) == {"the line has fewer fields than the header": 1}


def test_iemocap_has_four_classes_and_sessions_that_are_held_out(tmp_path):
    reports = {report.split: report for report in prepare("iemocap", write_iemocap(tmp_path), tmp_path / "data")}
    assert list(reports) == [f"{kind}{n}" for kind in ("session", "without-session") for n in range(1, 6)]
    third = rows_of(reports["session3"])
    assert [(row["id"], row["answer"]) for row in third] == [
        ("Ses03F_impro01_F000", "neutral"),
        ("Ses03F_impro01_M001", "happy"),  # excited
        ("Ses03F_impro01_F002", "angry"),
        ("Ses03F_impro01_M003", "sad"),
        ("Ses03F_impro01_F006", "happy"),
    ]
    assert third[0]["audio"].endswith("/Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_F000.wav")
    without = [row["id"] for row in rows_of(reports["without-session3"])]
    assert len(without) == 20
    assert not set(without) & {row["id"] for row in third}
    # Other emotions are left out by the rule, so nothing is wrong with the data.
    assert counts(reports["session3"]) == {"the emotion is not one of the four classes": 2}
    assert reports["session3"].num_problems == 0


def test_iemocap_with_one_session_has_no_training_split(tmp_path):
    root = write_iemocap(tmp_path)
    for session in (2, 3, 4, 5):
        (root / f"Session{session}").rename(tmp_path / f"other{session}")
    assert [report.split for report in prepare("iemocap", root, tmp_path / "data")] == ["session1"]


def test_iemocap_counts_damaged_label_lines(tmp_path):
    root = write_iemocap(tmp_path)
    labels = root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    write_text(
        labels, labels.read_bytes() + b"[7.0 - 8.0] Ses01F_impro01_F009 neu\n[8.0 - 9.0]\t\xff\tneu\t[1, 1, 1]\n"
    )
    (report,) = prepare("iemocap", root, tmp_path / "data", splits=["session1"])
    assert report.num_problems == 2
    assert "the line is not UTF-8" in report.skipped
    assert "the line has not the form [start - end] turn emotion [v, a, d]" in report.skipped


def test_voxceleb1_joins_the_clips_of_a_trial(tmp_path):
    source = write_voxceleb1(tmp_path)
    (report,) = prepare("voxceleb1", source, tmp_path / "data", splits=["test"])
    rows = rows_of(report)
    assert [row["answer"] for row in rows] == ["Yes", "No", "No"]
    assert rows[0]["id"] == "id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00002.wav"
    assert counts(report) == {"the clip is missing": 1}
    # Paths relative to the data file, so that the folder can be moved.
    assert rows[0]["audio"].startswith("voxceleb1-clips/")
    joined = load_audio(tmp_path / "data" / rows[0]["audio"])
    assert joined.shape == (2 * 3_200 + 6_400,)  # 0.2 s, a pause of 0.4 s, 0.2 s
    assert abs(joined[3_200:9_600]).max() == 0
    parts = [load_audio(source / "wav" / clip) for clip in rows[0]["id"].split()]
    assert abs(joined[:3_200] - parts[0]).max() < 1e-4 and abs(joined[9_600:] - parts[1]).max() < 1e-4


def test_voxceleb1_draws_training_pairs_without_the_speakers_of_the_test(tmp_path):
    source = write_voxceleb1(tmp_path)
    (report,) = prepare("voxceleb1", source, tmp_path / "data", splits=["train"])
    pairs = [(row["id"].split(), row["answer"]) for row in rows_of(report)]
    assert [answer for _, answer in pairs] == ["Yes", "No"] * 3
    for (first, second), answer in pairs:
        speakers, videos = ([path.split("/")[part] for path in (first, second)] for part in (0, 1))
        assert not set(speakers) & {"id10270", "id10271"}
        assert (speakers[0] == speakers[1]) == (answer == "Yes")
        if answer == "Yes":
            assert videos[0] != videos[1]
    (other,) = prepare("voxceleb1", source, tmp_path / "other", splits=["train"], seed=1)
    assert [row["id"] for row in rows_of(other)] != [row["id"] for row in rows_of(report)]


def test_voxceleb1_finds_the_clips_of_both_archives(tmp_path):
    source = write_voxceleb1(tmp_path)
    for archive, speakers in (("vox1_test_wav", ("id10270", "id10271")), ("vox1_dev_wav", ("id10001", "id10002"))):
        (source / archive / "wav").mkdir(parents=True)
        for speaker in speakers:
            (source / "wav" / speaker).rename(source / archive / "wav" / speaker)
    train, test = prepare("voxceleb1", source, tmp_path / "data")
    assert (train.split, test.split) == ("train", "test")
    assert test.num_rows == 3
    assert train.num_rows == 6


def test_voxceleb1_leaves_out_speakers_with_one_video(tmp_path):
    source = write_voxceleb1(tmp_path)
    for speaker in ("id10001", "id10002"):
        (source / f"wav/{speaker}/1zcIwhmdeo4").rename(source / f"wav/{speaker}/.hidden")
    (report,) = prepare("voxceleb1", source, tmp_path / "data", splits=["train"])
    # One speaker is left, so there are only pairs of the same speaker.
    assert [row["answer"] for row in rows_of(report)] == ["Yes", "Yes"]
    assert counts(report) == {"the speaker has only one video": 2}
    assert report.num_problems == 0


def test_librisqa_finds_the_clips_of_librispeech(tmp_path):
    (report,) = prepare("librisqa", write_librisqa(tmp_path), tmp_path / "data", wordings="first")
    assert [(row["id"], row["instruction"], row["answer"]) for row in rows_of(report)] == [
        ("61-70968-0000-0", "What did he begin?", "He began a confused complaint."),
        ("61-70968-0000-1", "Was it {clear}?", "No."),
    ]
    assert rows_of(report)[0]["audio"].endswith("/LibriSpeech/test-clean/61/70968/61-70968-0000.flac")
    assert counts(report) == {
        "speech_path, question or answer is missing or empty": 1,
        "the clip is missing": 1,
    }


def test_spoken_squad_joins_the_sentences_of_a_paragraph(tmp_path):
    (report,) = prepare("spoken-squad", write_spoken_squad(tmp_path), tmp_path / "data", wordings="first")
    rows = rows_of(report)
    assert [(row["id"], row["instruction"], row["answer"]) for row in rows] == [
        ("56be4db0", "Where did Super Bowl 50 take place?", "santa clara"),
        ("56be4db1", "Which team won?", "denver broncos"),
        ("56be4db2", "Who led early?", "the broncos"),
    ]
    assert rows[0]["references"] == ["santa clara", "levis stadium"]
    assert "references" not in rows[1]
    # Both questions about a paragraph share its clip of two sentences, 0.1 and 0.2 s long.
    assert rows[0]["audio"] == rows[1]["audio"]
    assert load_audio(tmp_path / "data" / rows[0]["audio"]).shape == (4_800,)
    # The paragraph after the one without questions keeps its number; a single sentence is not copied.
    assert rows[2]["audio"] == str(tmp_path / "dev_wav/0_2_0.wav")
    assert counts(report) == {"a sentence of the paragraph has no audio": 1}


def test_audiocaps_finds_clips_by_the_usual_names_and_counts_removed_videos(tmp_path):
    train, val = prepare("audiocaps", write_audiocaps(tmp_path), tmp_path / "data")
    assert [(row["audio"].rpartition("/")[2], row["answer"]) for row in rows_of(train)] == [
        ("r1nicOVtvkQ.wav", "A woman talks nearby as water pours"),
        ("Y---JnM1-2mQ.flac", "Rain falls, and a man speaks"),
        ("103551.ogg", "Multiple clanging sounds"),
    ]
    assert counts(train) == {"the clip is empty (0 bytes)": 1, "the clip is missing": 1}
    assert train.skipped["the clip is missing"].rows == ["103549"]
    first, second = rows_of(val)
    assert first["audio"].endswith("/val/tdWhHV3X25Q_60.mp3")
    assert first["references"] == ["An audience gives applause", "A man yells and a group sings"]
    assert first["answer"] == first["references"][0]
    assert "references" not in second


@pytest.mark.parametrize(
    "name",
    [
        *(
            "vBslzh7saPw.wav",
            "YvBslzh7saPw.m4a",
            "vBslzh7saPw_90.flac",
            "YvBslzh7saPw_90.webm",
            "vBslzh7saPw_90_100.opus",
        ),
        *("vBslzh7saPw_90000_100000.mp3", "103551.ogg"),
    ],
)
def test_audiocaps_names_of_clips(name, tmp_path):
    header = "audiocap_id,youtube_id,start_time,caption"
    write_text(tmp_path / "dataset/train.csv", f"{header}\n103551,vBslzh7saPw,90,Multiple clanging sounds\n")
    write_text(tmp_path / "audio/train" / name, b"not decoded")
    (report,) = prepare("audiocaps", tmp_path, tmp_path / "data")
    assert [row["audio"] for row in rows_of(report)] == [str(tmp_path / "audio/train" / name)]


def test_audiocaps_with_all_clips_in_one_folder(tmp_path):
    source = write_audiocaps(tmp_path)
    (source / "train").rename(source / "audio")
    (source / "val.csv").unlink()
    (report,) = prepare("audiocaps", source, tmp_path / "data")
    assert report.num_rows == 3
