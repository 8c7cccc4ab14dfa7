"""Miniature data sets, with the folders, file names and file formats in which the real ones are published."""

import json
from pathlib import Path

import numpy as np
import soundfile


RATE = 16_000


def write_clip(path: Path, frequency: float = 220.0, seconds: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, samples, RATE)
    return path


def write_text(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_librispeech(folder: Path) -> Path:
    """Two chapters of dev-clean and one of test-clean; one clip of the second is missing, and one transcript is empty."""
    root = folder / "LibriSpeech"
    write_text(root / "README.TXT", "LibriSpeech\n")
    write_text(root / "SPEAKERS.TXT", "; comment\n84   | F | dev-clean        | 8.02  | Christie Nowak\n")
    chapter = root / "dev-clean/84/121123"
    for number in range(3):
        write_clip(chapter / f"84-121123-{number:04}.flac", 200 + 20 * number)
    write_text(
        chapter / "84-121123.trans.txt",
        "84-121123-0000 GO DO YOU HEAR\n"
        "84-121123-0001 BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED\n"
        "84-121123-0002 \n",
    )
    chapter = root / "dev-clean/1272/128104"
    write_clip(chapter / "1272-128104-0000.flac", 300)
    write_text(
        chapter / "1272-128104.trans.txt",
        "1272-128104-0000 MISTER QUILTER'S MANNER\n1272-128104-0001 NOR IS HIS MATTER\n",
    )
    chapter = root / "test-clean/61/70968"
    write_clip(chapter / "61-70968-0000.flac", 350)
    write_text(chapter / "61-70968.trans.txt", "61-70968-0000 HE BEGAN A CONFUSED COMPLAINT\n")
    return root


COVOST_COLUMNS = "path\ttranslation\tsplit\tclient_id"
VALIDATED_COLUMNS = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"


def write_covost2(folder: Path) -> Path:
    """
    The table of translations beside Common Voice 4. Of the training clips, one is not in validated.tsv, one has no file
    and one has no translation.
    """
    clips = [f"common_voice_en_{number}.mp3" for number in (10, 11, 12, 13, 14, 15, 16)]
    rows = [
        (clips[0], '她说"好的"。', "train"),
        (clips[1], "你好\\\\世界", "train_covost"),
        (clips[2], "不在列表中", "train"),
        (clips[3], "没有文件", "train"),
        (clips[4], "", "train"),
        (clips[5], "开发", "dev"),
        (clips[6], "测试", "test"),
    ]
    lines = [COVOST_COLUMNS, *("\t".join([*row, "c" * 8]) for row in rows)]
    write_text(folder / "covost_v2.en_zh-CN.tsv", "\n".join(lines) + "\n")
    validated = [VALIDATED_COLUMNS]
    for clip in clips:
        if clip != clips[2]:
            validated.append("\t".join(["c" * 8, clip, 'She said, "fine."', "2", "0", "", "", ""]))
        if clip != clips[3]:
            write_clip(folder / "en/clips" / clip)
    write_text(folder / "en/validated.tsv", "\n".join(validated) + "\n")
    return folder


IEMOCAP_HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


def write_iemocap(folder: Path) -> Path:
    """Five sessions, each with one dialog of six turns, two of which have other emotions."""
    root = folder / "IEMOCAP_full_release"
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        text = IEMOCAP_HEADER
        for number, label in enumerate(("neu", "exc", "ang", "sad", "fru", "xxx", "hap")):
            turn = f"{dialog}_{'FM'[number % 2]}{number:03}"
            text += f"[{number}.2901 - {number + 1}.2357]\t{turn}\t{label}\t[2.5000, 2.5000, 2.5000]\n"
            text += "C-E2:\tNeutral;\t()\nC-F1:\tNeutral;\t(curious)\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
            write_clip(root / f"Session{session}/sentences/wav/{dialog}/{turn}.wav", 150 + 10 * number)
        labels = root / f"Session{session}/dialog/EmoEvaluation"
        write_text(labels / f"{dialog}.txt", text)
        # The release has resource forks of macOS and folders of the single annotators beside the labels.
        write_text(labels / f"._{dialog}.txt", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\xb0\xb0")
        write_text(labels / f"Categorical/{dialog}_e2_cat.txt", f"{dialog}_F000 :Neutral state; ()\n")
    return root


def write_voxceleb1(folder: Path) -> Path:
    """Two speakers of the test and three of the development set, with two videos each; one clip of a trial is missing."""
    for speaker in ("id10270", "id10271"):
        for video in ("x6uYqmx31kE", "8jEAjG6SegY"):
            for number in (1, 2):
                write_clip(folder / f"wav/{speaker}/{video}/{number:05}.wav", 100 + int(speaker[-3:]) + number)
    for speaker in ("id10001", "id10002", "id10003"):
        for video in ("1zcIwhmdeo4", "7gWzIy6yIIk"):
            write_clip(folder / f"wav/{speaker}/{video}/00001.wav", 200 + int(speaker[-1]))
    write_text(
        folder / "veri_test.txt",
        "1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00002.wav\n"
        "0 id10270/x6uYqmx31kE/00001.wav id10271/8jEAjG6SegY/00001.wav\n"
        "1 id10271/x6uYqmx31kE/00001.wav id10271/8jEAjG6SegY/00009.wav\n"
        "0 id10271/x6uYqmx31kE/00002.wav id10270/8jEAjG6SegY/00001.wav\n",
    )
    return folder


def write_librisqa(folder: Path) -> Path:
    """Questions on clips of LibriSpeech. Their paths end in .wav, and one clip is missing."""
    clip = "LibriSpeech/test-clean/61/70968/61-70968"
    write_clip(folder / f"{clip}-0000.flac")
    rows = [
        {
            "speech_path": f"{clip}-0000.wav",
            "text": "HE BEGAN A CONFUSED COMPLAINT",
            "question": "What did he begin?",
            "answer": "He began a confused complaint.",
        },
        {"speech_path": f"{clip}-0000.wav", "text": "", "question": "Was it {clear}?", "answer": "No."},
        {"speech_path": f"{clip}-0001.wav", "text": "", "question": "Who?", "answer": "The wizard."},
        {"speech_path": f"{clip}-0000.wav", "text": "", "question": "Where?", "answer": None},
    ]
    write_text(folder / "LibriSQA-PartI/LibriSQA-PartI-test.json", json.dumps(rows))
    return folder


def write_spoken_squad(folder: Path) -> Path:
    """Two topics; the second paragraph has no questions, as some in the release, and the last one lacks a sentence."""

    def question(identifier, text, *answers):
        spans = [{"answer_start": 0, "text": answer} for answer in answers]
        return {"answers": spans, "question": text, "id": identifier}

    paragraphs = [
        {
            "context": "super bowl fifty was an american football game.",
            "qas": [
                question(
                    "56be4db0", "Where did Super Bowl 50 take place?", "santa clara", "levis stadium", "santa clara"
                ),
                question("56be4db1", "Which team won? ", "denver broncos", "denver broncos"),
            ],
        },
        {"context": "nobody asked about this.", "qas": []},
        {"context": "the broncos took an early lead.", "qas": [question("56be4db2", "Who led early?", "the broncos")]},
    ]
    data = {
        "version": "1.1",
        "data": [
            {"title": "Super_Bowl_50", "paragraphs": paragraphs},
            {"title": "Warsaw", "paragraphs": [{"context": "", "qas": [question("9", "Where?", "warsaw")]}]},
        ],
    }
    write_text(folder / "spoken_test-v1.1.json", json.dumps(data))
    for name in ("0_0_0", "0_0_1", "0_2_0", "1_0_0", "1_0_2"):
        write_clip(folder / f"dev_wav/{name}.wav", 200, 0.1 + 0.1 * int(name[-1]))
    return folder


def write_audiocaps(folder: Path) -> Path:
    """
    Clips under the names of several download scripts. The video `zOZleIRqZm4` was removed, and the download of
    `ziUT9IFTkjg` left an empty file.
    """
    header = "audiocap_id,youtube_id,start_time,caption\n"
    write_text(
        folder / "train.csv",
        f"{header}"
        "91139,r1nicOVtvkQ,130,A woman talks nearby as water pours\n"
        '58146,---JnM1-2mQ,30,"Rain falls, and a man speaks"\n'
        "103549,zOZleIRqZm4,80,A person speaks briefly\n"
        "103550,ziUT9IFTkjg,10,Leaves rustle\n"
        "103551,vBslzh7saPw,90,Multiple clanging sounds\n",
    )
    write_text(
        folder / "val.csv",
        f"{header}"
        "108945,tdWhHV3X25Q,60,An audience gives applause\n"
        "107898,tw76HGONaKg,570,A man speaks over keyboard taps\n"
        "108946,tdWhHV3X25Q,60,A man yells and a group sings\n",
    )
    write_clip(folder / "train/r1nicOVtvkQ.wav")
    write_clip(folder / "train/Y---JnM1-2mQ.flac")
    write_clip(folder / "train/103551.ogg")
    write_text(folder / "train/ziUT9IFTkjg.wav", "")
    write_clip(folder / "val/tdWhHV3X25Q_60.mp3")
    write_clip(folder / "val/tw76HGONaKg.wav")
    return folder


def write_csv(folder):
    """Clips of one's own with one table for two splits, as a spreadsheet writes it."""
    for number in range(3):
        write_clip(folder / f"recordings/dog {number}.wav")
    rows = [
        "\ufeffaudio,instruction,answer,task,split,note",
        "recordings/dog 0.wav,Which animal is it?,dog,name,train,",
        '"recordings/dog 1.wav","Is it a dog, or a cat?","a ""dog""",choice,train,loud',
        "recordings/dog 2.wav,Which animal is it?,007,name,test,",
    ]
    write_text(folder / "clips.csv", "\r\n".join(rows) + "\r\n")
    return folder


TREES = {
    "audiocaps": write_audiocaps,
    "covost2-en-zh": write_covost2,
    "csv": write_csv,
    "iemocap": write_iemocap,
    "librispeech": write_librispeech,
    "librisqa": write_librisqa,
    "spoken-squad": write_spoken_squad,
    "voxceleb1": write_voxceleb1,
}
