"""A clip whose file did not change is found without decoding it, and a wrong key is never found."""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from torch.utils.data import DataLoader

from peft_listen.audio import load_audio
from peft_listen.training import AudioListenCollator, FeatureCache, clip_index, feature_cache
from peft_listen.training.clip_index import ClipIndex


@pytest.fixture
def wavs(tmp_path: Path) -> list[str]:
    """Paths of three clips of equal size."""
    (tmp_path / "clips").mkdir()
    return [write(tmp_path / "clips" / f"{seed}.wav", seed) for seed in range(3)]


def write(path: Path, seed: int) -> str:
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 800), 16_000, subtype="PCM_16")
    return str(path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusts the times of files that were just written, as if they were older."""
    monkeypatch.setattr(clip_index, "_SETTLING_NS", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Counts the files that the index reads and the clips that it decodes."""
    counts = SimpleNamespace(read=0, decoded=0)

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            setattr(counts, name, getattr(counts, name) + 1)
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(clip_index, "read_file", count("read", clip_index.read_file))
    monkeypatch.setattr(clip_index, "load_audio", count("decoded", clip_index.load_audio))
    return counts


def key_of(path: str) -> str:
    """The documented key: a hash of the samples."""
    return hashlib.sha256(load_audio(path).tobytes()).hexdigest()[:32]


def saved_index(folder: Path, clips: list[str]) -> ClipIndex:
    index = ClipIndex(folder)
    for clip in clips:
        index.key(clip)
    index.save()
    return index


def index_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


# ---------------------------------------------------------------------------------------------------------------------
# What is found
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("settled")
def test_a_new_index_finds_unchanged_files_without_opening_them(tmp_path, wavs, calls):
    saved_index(tmp_path / "index", wavs)
    assert (calls.read, calls.decoded) == (3, 3)
    index = ClipIndex(tmp_path / "index")
    expected = [key_of(wav) for wav in wavs]
    for forms in (wavs, [Path(wav) for wav in wavs], [{"path": wav, "bytes": None} for wav in wavs]):
        assert [index.key(form) for form in forms] == [index.find(form) for form in forms] == expected
    assert (calls.read, calls.decoded) == (3, 3)


def test_a_file_that_was_just_written_is_read_but_not_decoded(tmp_path, wavs, calls):
    saved_index(tmp_path / "index", wavs)
    index = ClipIndex(tmp_path / "index")
    assert [index.key(wav) for wav in wavs] == [key_of(wav) for wav in wavs]
    assert (calls.read, calls.decoded) == (6, 3)
    assert index.find(wavs[0]) is None


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["moved", "copied", "touched", "another folder"])
def test_a_file_of_known_content_is_not_decoded(tmp_path, wavs, calls, change):
    saved_index(tmp_path / "index", wavs[:1])
    path, expected = Path(wavs[0]), key_of(wavs[0])
    if change == "moved":
        path = path.rename(tmp_path / "moved.wav")
    elif change == "copied":
        path = Path(shutil.copy2(path, tmp_path / "copy.wav"))
    elif change == "touched":
        os.utime(path)
    else:
        path = path.parent.rename(tmp_path / "other") / path.name
    assert ClipIndex(tmp_path / "index").key(path) == expected
    assert (calls.read, calls.decoded) == (2, 1)


@pytest.mark.usefixtures("settled")
def test_a_relative_path_is_the_file_in_the_working_directory(tmp_path, wavs, calls, monkeypatch):
    saved_index(tmp_path / "index", wavs)
    other = tmp_path / "other"
    other.mkdir()
    write(other / "0.wav", seed=9)
    index = ClipIndex(tmp_path / "index")
    monkeypatch.chdir(tmp_path / "clips")
    assert index.key("0.wav") == key_of(wavs[0])
    assert (calls.read, calls.decoded) == (3, 3)
    monkeypatch.chdir(other)
    assert index.key("0.wav") == key_of(str(other / "0.wav")) != key_of(wavs[0])


def test_encoded_audio_in_memory_is_found_by_its_content(tmp_path, wavs, calls):
    saved_index(tmp_path / "index", wavs[:1])
    content = Path(wavs[0]).read_bytes()
    index = ClipIndex(tmp_path / "index")
    for form in (content, bytearray(content), memoryview(content), {"bytes": content, "path": "gone.wav"}):
        assert index.key(form) == index.find(form) == key_of(wavs[0])
    assert calls.decoded == 1


def test_samples_have_the_key_of_their_file(tmp_path, wavs):
    index = saved_index(tmp_path / "index", wavs[:1])
    samples = load_audio(wavs[0])
    for name in ("array", "raw"):  # which take precedence over a path, as in `load_audio`
        clip = {name: samples, "sampling_rate": 16_000, "path": wavs[1]}
        assert index.key(clip) == key_of(wavs[0])
        assert index.find(clip) is None and not index.is_encoded(clip)


@pytest.mark.parametrize("clip", ["http://127.0.0.1:1/a.wav", "", {"path": None}, {}, 3, "gone.wav", "/dev", "a\0b"])
def test_what_is_not_a_file_is_unknown_and_has_the_errors_of_load_audio(tmp_path, clip):
    index = ClipIndex(tmp_path / "index")
    assert index.find(clip) is None
    with pytest.raises((OSError, ValueError)) as expected:
        load_audio(clip)
    with pytest.raises(type(expected.value)) as found:
        index.key(clip)
    assert str(found.value) == str(expected.value)


# ---------------------------------------------------------------------------------------------------------------------
# Files that change
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("keeps_time", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_other_content_of_the_same_size_has_another_key(tmp_path, wavs, keeps_time, in_place):
    saved_index(tmp_path / "index", wavs)
    status = os.stat(wavs[0])
    if in_place:
        Path(wavs[0]).write_bytes(Path(wavs[1]).read_bytes())
    else:
        os.replace(shutil.copy(wavs[1], tmp_path / "new.wav"), wavs[0])
    if keeps_time:  # as an unpacked archive does
        os.utime(wavs[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(wavs[0]).st_size == status.st_size
    assert ClipIndex(tmp_path / "index").key(wavs[0]) == key_of(wavs[1])


@pytest.mark.usefixtures("settled")
def test_a_link_to_another_file_of_the_same_size_and_times_has_another_key(tmp_path, wavs, monkeypatch):
    def same_times(path: Any) -> Any:
        status = os.stat(path)
        return SimpleNamespace(
            st_mode=status.st_mode, st_size=status.st_size, st_ino=status.st_ino, st_mtime_ns=1, st_ctime_ns=1
        )

    link = tmp_path / "link.wav"
    link.symlink_to(wavs[0])
    monkeypatch.setattr(clip_index, "os", SimpleNamespace(**{**vars(os), "stat": same_times}))
    index = ClipIndex(tmp_path / "index")
    assert index.key(link) == key_of(wavs[0])
    link.unlink()
    link.symlink_to(wavs[1])
    assert index.key(link) == key_of(wavs[1])


@pytest.mark.usefixtures("settled")
def test_a_file_that_is_modified_while_it_is_read_is_not_known_by_its_times(tmp_path, wavs, monkeypatch):
    read_file = clip_index.read_file

    def modified_afterwards(path: str, *args: Any) -> bytes:
        content = read_file(path, *args)
        Path(path).write_bytes(Path(wavs[1]).read_bytes())
        return content

    first = key_of(wavs[0])
    index = ClipIndex(tmp_path / "index")
    monkeypatch.setattr(clip_index, "read_file", modified_afterwards)
    assert index.key(wavs[0]) == first
    monkeypatch.undo()
    assert index.key(wavs[0]) == key_of(wavs[1])


# ---------------------------------------------------------------------------------------------------------------------
# Files of the index
# ---------------------------------------------------------------------------------------------------------------------


def edited(content: bytes) -> bytes:
    document = json.loads(content)
    document["keys"] = dict.fromkeys(document["keys"], "0" * 32)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-20], lambda content: b"", edited], ids=["cut", "empty", "edited"]
)
def test_a_damaged_index_is_ignored_with_a_warning_and_replaced(tmp_path, wavs, calls, damage):
    folder = tmp_path / "index"
    saved_index(folder, wavs)
    (path,) = index_files(folder)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{path.name} is ignored: its content does not match the hash in its name"):
        index = ClipIndex(folder)
    assert len(index) == 0
    assert [index.key(wav) for wav in wavs] == [key_of(wav) for wav in wavs]
    assert calls.decoded == 6
    index.save()
    index.merge()
    assert len(ClipIndex(folder)) == 3
    assert len(index_files(folder)) == 1


VALID = {"format": "peft-listen clip index", "version": 1, "keys": {"0" * 32: "1" * 32}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no JSON", "it is not valid JSON"),
        (b"[" * 100_000, "it is not valid JSON"),
        (b"\xff\xfe", "it is not valid JSON"),
        (json.dumps([1]).encode(), "it is not a peft-listen clip index"),
        (json.dumps({"keys": {}}).encode(), "it is not a peft-listen clip index"),
        (json.dumps({**VALID, "version": 2}).encode(), "it has version 2 of the format, expected 1"),
        (json.dumps({**VALID, "keys": [1]}).encode(), "its entries are not pairs of 32"),
        (json.dumps({**VALID, "keys": {"0" * 32: "../clip"}}).encode(), "its entries are not pairs of 32"),
        (json.dumps({**VALID, "keys": {"clip.wav": "1" * 32}}).encode(), "its entries are not pairs of 32"),
        (json.dumps({**VALID, "keys": {"0" * 32: 1}}).encode(), "its entries are not pairs of 32"),
    ],
)
def test_a_foreign_file_is_ignored_with_a_warning_and_kept(tmp_path, wavs, content, problem):
    folder = tmp_path / "index"
    saved_index(folder, wavs[:1])
    foreign = folder / f"{hashlib.sha256(content).hexdigest()}.json"
    foreign.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{foreign.name} is ignored: {problem}"):
        index = ClipIndex(folder)
    assert len(index) == 1
    index.merge()
    assert foreign.read_bytes() == content
    assert len(index_files(folder)) == 2


def test_a_file_of_another_name_is_ignored_and_kept(tmp_path):
    (tmp_path / "notes.json").write_text(json.dumps(VALID))
    with pytest.warns(UserWarning, match=r"notes\.json is ignored"):
        index = ClipIndex(tmp_path)
    index.merge()
    assert (tmp_path / "notes.json").exists() and len(index) == 0


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_special_file_is_ignored_without_waiting(tmp_path, make):
    make(tmp_path / f"{'0' * 64}.json")
    with pytest.warns(UserWarning, match="it is not a regular file"):
        ClipIndex(tmp_path).merge()


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_index, "_MAX_BYTES", 10)
    (tmp_path / f"{'0' * 64}.json").write_bytes(b"0" * 11)
    with pytest.warns(UserWarning, match="it has 11 bytes, but an index file has at most 10"):
        ClipIndex(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, wavs):
    (tmp_path / "index").write_text("a file in place of the folder")
    index = ClipIndex(tmp_path / "index")
    expected = index.key(wavs[0])
    with pytest.warns(UserWarning, match="The index of the feature cache cannot be written .*has to decode the clips"):
        index.save()
    assert index.key(wavs[0]) == expected


def test_the_index_contains_no_paths(tmp_path, wavs):
    saved_index(tmp_path / "index", wavs)
    (path,) = index_files(tmp_path / "index")
    assert "wav" not in path.read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------------------


def add_save_and_merge(folder: Path, process: int) -> None:
    for step in range(15):
        index = ClipIndex(folder)
        index.key(wav_bytes(process, step))
        index.save()
        index.merge()
    os._exit(0)


def wav_bytes(process: int, step: int) -> bytes:
    """The content of a small WAV file."""
    file = io.BytesIO()
    soundfile.write(file, np.full(10, (100 * process + step) / 1000), 16_000, format="WAV")
    return file.getvalue()


def test_processes_that_write_and_merge_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_save_and_merge, args=(tmp_path / "index", number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    index = ClipIndex(tmp_path / "index")
    assert all(index.find(wav_bytes(process, step)) for process in range(3) for step in range(15))
    index.merge()
    assert len(index_files(tmp_path / "index")) == 1
    assert len(ClipIndex(tmp_path / "index")) == 45


def test_a_file_that_is_merged_while_the_index_is_read_is_found_in_the_merged_one(tmp_path, wavs, monkeypatch):
    folder = tmp_path / "index"
    for wav in wavs:
        saved = ClipIndex(folder)
        saved.key(wav)
        saved.save()
    assert len(index_files(folder)) == 3
    parse, merged = clip_index._parse, []

    def merged_meanwhile(path: Path) -> Any:
        if not merged:
            merged.append(path)
            saved.merge()
        return parse(path)

    monkeypatch.setattr(clip_index, "_parse", merged_meanwhile)
    assert len(ClipIndex(folder)) == 3


def die_while_writing(folder: Path, wav: str) -> None:
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killed
    saved_index(folder, [wav])


def test_a_killed_writer_leaves_the_index_as_it_was(tmp_path, wavs):
    folder = tmp_path / "index"
    saved_index(folder, wavs[:1])
    before = index_files(folder)
    process = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(folder, wavs[1]))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert index_files(folder) == before
    assert len(list(folder.iterdir())) == 2  # and the temporary file
    index = saved_index(folder, wavs[1:])
    index.merge()
    assert len(list(folder.iterdir())) == 1
    assert len(ClipIndex(folder)) == 3


# ---------------------------------------------------------------------------------------------------------------------
# In the feature cache
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(make_model):
    return make_model().eval()


@pytest.fixture
def no_decoding(monkeypatch):
    """A function after whose call any decoding in this process, and in those that it forks, is an error."""

    def forbid() -> None:
        def decode(*args: Any) -> None:
            raise AssertionError("a clip was decoded")

        monkeypatch.setattr("peft_listen.audio.loading.decode", decode)

    return forbid


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("form", ["list", "Dataset", "Dataset of bytes"])
def test_a_training_process_decodes_no_clip(model, processor, examples, tmp_path, no_decoding, num_workers, form):
    FeatureCache(tmp_path, model).build(model, processor, [example["audio"] for example in examples])
    rows: Any = examples
    if form != "list":
        rows = Dataset.from_list(examples).cast_column("audio", Audio(decode=False))
    if form == "Dataset of bytes":
        content = {example["audio"]: Path(example["audio"]).read_bytes() for example in examples}
        rows = [{**row, "audio": {"bytes": content[row["audio"]["path"]], "path": None}} for row in rows]
    expected = AudioListenCollator(processor)(examples)
    no_decoding()
    collator = AudioListenCollator(processor, feature_cache=FeatureCache(tmp_path, model))
    context = "fork" if num_workers else None
    loader = DataLoader(
        rows, batch_size=4, num_workers=num_workers, collate_fn=collator, multiprocessing_context=context
    )
    (batch,) = loader
    torch.testing.assert_close(batch["input_ids"], expected["input_ids"])
    assert batch["speech_features"].abs().sum() > 0


def test_a_second_build_decodes_no_clip(model, processor, clips, tmp_path, no_decoding):
    assert FeatureCache(tmp_path, model).build(model, processor, clips) == 4
    no_decoding()
    assert FeatureCache(tmp_path, model).build(model, processor, clips) == 0


def test_other_encoders_use_the_same_index(make_model, model, processor, clips, tmp_path, no_decoding):
    FeatureCache(tmp_path, model).build(model, processor, clips)
    no_decoding()
    assert clips[0] not in FeatureCache(tmp_path, make_model(speech_seed=9))


def test_a_new_interpreter_decodes_no_clip(model, processor, clips, tmp_path):
    cache = FeatureCache(tmp_path, model)
    cache.build(model, processor, clips)
    program = f"""
import peft_listen.audio.loading
from peft_listen.training import FeatureCache, feature_cache

peft_listen.audio.loading.decode = None
feature_cache.encoder_fingerprint = lambda model: {cache.folder.name!r}
cache = FeatureCache({str(tmp_path)!r}, None)
print([sorted(cache[clip]) for clip in {clips!r}] == [{sorted(cache[clips[0]])!r}] * {len(clips)})
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment()
    )
    assert result.stdout == "True\n", result.stderr


def environment() -> dict[str, str]:
    source = Path(feature_cache.__file__).parents[2]
    return {**os.environ, "PYTHONPATH": str(source)}


def test_a_changed_file_gets_its_own_features(model, processor, tmp_path, wavs):
    cache = FeatureCache(tmp_path / "features", model)
    cache.build(model, processor, wavs[:2])
    features = [cache[wav] for wav in wavs[:2]]
    status = os.stat(wavs[0])
    Path(wavs[0]).write_bytes(Path(wavs[1]).read_bytes())
    os.utime(wavs[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    for changed in (cache, FeatureCache(tmp_path / "features", model)):
        torch.testing.assert_close(changed[wavs[0]], features[1], rtol=0, atol=0)
    Path(wavs[0]).write_bytes(Path(wavs[2]).read_bytes())
    new = FeatureCache(tmp_path / "features", model)
    assert wavs[0] not in new
    assert new.build(model, processor, wavs[:2]) == 1
    assert wavs[0] in new


def test_a_file_that_changes_during_a_build_is_refused(model, processor, tmp_path, wavs, monkeypatch):
    cache = FeatureCache(tmp_path / "features", model)
    encode = cache._encode

    def changed_meanwhile(model: Any, processor: Any, clips: Any) -> Any:
        Path(wavs[1]).write_bytes(Path(wavs[2]).read_bytes())
        return encode(model, processor, clips)

    monkeypatch.setattr(cache, "_encode", changed_meanwhile)
    with pytest.raises(OSError, match=r"1\.wav.* was modified while the cache was built.*Build the cache again"):
        cache.build(model, processor, wavs[:2])
    monkeypatch.undo()
    assert len(FeatureCache(tmp_path / "features", model)) == 0
    assert cache.build(model, processor, wavs[:2]) == 2


def test_a_clip_that_cannot_be_read_does_not_lose_the_keys_found_before(model, processor, tmp_path, wavs, no_decoding):
    Path(wavs[2]).write_bytes(b"no sound")
    with pytest.raises(OSError, match=r"2\.wav"):
        FeatureCache(tmp_path / "features", model).build(model, processor, wavs)
    no_decoding()
    cache = FeatureCache(tmp_path / "features", model)
    assert wavs[0] not in cache and wavs[1] not in cache  # which needs their keys


def test_a_cache_without_an_index_gets_one(model, processor, tmp_path, wavs, no_decoding):
    FeatureCache(tmp_path / "features", model).build(model, processor, wavs)
    shutil.rmtree(tmp_path / "features" / "index")
    assert wavs[0] in FeatureCache(tmp_path / "features", model)
    assert FeatureCache(tmp_path / "features", model).build(model, processor, wavs) == 0
    no_decoding()
    assert wavs[0] in FeatureCache(tmp_path / "features", model)
