"""The feature cache equals the encoders' outputs, survives interruptions, and is separate for each set of encoders."""

import os
import pickle
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from peft_listen import AudioListenForCausalLM
from peft_listen.files import temporary_path
from peft_listen.training import AudioListenCollator, FeatureCache, feature_cache
from peft_listen.training.feature_cache import _describe, encoder_fingerprint
from tests.sharding.launching import run_forked


@pytest.fixture(scope="module")
def model(make_model):
    return make_model().eval()


@pytest.fixture
def cache(model, tmp_path):
    return FeatureCache(tmp_path / "features", model)


def shards(cache):
    return sorted(cache.folder.glob("*.safetensors"))


def clips_in(path):
    with safe_open(path, framework="pt") as shard:
        return {name.partition("/")[0] for name in shard.keys()}


def test_cached_features_equal_the_encoder_outputs_of_the_clip_alone(model, processor, cache, clips):
    assert cache.build(model, processor, clips, batch_size=3, shard_size=2) == len(clips) == len(cache)
    for clip in clips:
        inputs = processor(audio=[clip])
        alone = model.get_encoder_features(**inputs)._asdict()
        assert clip in cache
        features = cache[clip]
        assert features.keys() == alone.keys()
        for name, tensor in features.items():
            torch.testing.assert_close(tensor, alone[name])


def test_a_model_in_training_mode_gives_the_same_features(make_model, processor, cache, clips):
    training = make_model().train()
    assert encoder_fingerprint(training) == cache.folder.name
    cache.build(training, processor, clips[:1])
    assert training.training
    inputs = processor(audio=[clips[0]])
    expected = make_model().eval().get_encoder_features(**inputs)
    torch.testing.assert_close(cache[clips[0]]["sound_features"], expected.sound_features)


def test_a_second_build_adds_only_new_clips(model, processor, cache, clips):
    assert cache.build(model, processor, clips[:2]) == 2
    assert cache.build(model, processor, [*clips[:3], clips[2]]) == 1
    assert cache.build(model, processor, clips[:3]) == 0
    assert len(FeatureCache(cache.folder.parent, model)) == 3


def test_only_a_build_with_something_to_encode_shows_its_progress(model, processor, cache, clips, capsys):
    cache.build(model, processor, clips[:1])
    assert "Encoding audio" in capsys.readouterr().err
    cache.build(model, processor, clips[:1])
    assert capsys.readouterr().err == ""


def test_a_clip_is_identified_by_its_samples(model, processor, cache, clips, tmp_path):
    cache.build(model, processor, clips[:1])
    copy = shutil.copy(clips[0], tmp_path / "copy.wav")
    content = Path(clips[0]).read_bytes()
    for same in (copy, Path(copy), content, {"bytes": content, "path": None}, {"bytes": None, "path": str(copy)}):
        assert same in cache
    shutil.copy(clips[1], copy)  # other audio under the same name
    os.utime(copy, ns=(1, 1))
    assert copy not in cache


def test_an_interrupted_build_leaves_complete_shards_and_can_be_continued(
    model, processor, cache, clips, monkeypatch, tmp_path
):
    encode, calls = cache._encode, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(cache, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.build(model, processor, clips, batch_size=1, shard_size=1)
    monkeypatch.undo()
    assert [len(clips_in(path)) for path in shards(cache)] == [1, 1]
    assert set(cache.folder.iterdir()) == set(shards(cache))
    assert cache.build(model, processor, clips, batch_size=1, shard_size=1) == 2
    assert len(cache) == 4


def test_a_failed_write_leaves_no_file(model, processor, cache, clips, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache.build(model, processor, clips[:1])
    assert list(cache.folder.iterdir()) == []


def test_other_encoders_have_a_separate_folder(make_model, model, processor, cache, clips):
    cache.build(model, processor, clips[:1])
    root = cache.folder.parent
    others = [
        make_model(speech_seed=9),
        make_model(sound=False),
        make_model(window_length=15),
        make_model(window_stride=15),
        make_model(group_sound_by_length=False),
        make_model(speech_chunk_multiple=5),
        make_model(speech_chunk_multiple=10),
    ]
    with torch.no_grad():  # a single changed value in one layer
        finetuned = make_model()
        finetuned.model.sound_tower.encoder.layers[0].final_layer_norm.bias[0] += 1e-3
    fingerprints = {encoder_fingerprint(other) for other in [*others, finetuned]}
    assert len(fingerprints | {cache.folder.name}) == len(others) + 2
    assert all(clips[0] not in FeatureCache(root, other) for other in others)


def test_features_of_another_length_are_not_used(make_model, make_processor, model, processor, cache, clips, examples):
    cache.build(model, processor, clips)
    short, short_processor = make_model(speech_chunk_multiple=5), make_processor(speech_chunk_multiple=5)
    own = FeatureCache(cache.folder.parent, short)
    with pytest.raises(KeyError, match="not among the 0 clips"):
        AudioListenCollator(short_processor, feature_cache=own)(examples)
    assert own.build(short, short_processor, clips, batch_size=3) == len(clips)
    batch = AudioListenCollator(short_processor, feature_cache=own)(examples)
    assert "input_features" not in batch
    with torch.no_grad():
        expected = short(**AudioListenCollator(short_processor)(examples)).loss
        torch.testing.assert_close(short(**batch).loss, expected)
        other = model(**AudioListenCollator(processor, feature_cache=cache)(examples)).loss
    assert abs(other - expected) > 1e-4


def test_the_same_encoders_have_the_same_fingerprint(make_model, model, tmp_path):
    fingerprint = encoder_fingerprint(model)
    assert (
        encoder_fingerprint(make_model()) == encoder_fingerprint(make_model(speech_chunk_multiple=30)) == fingerprint
    )
    model.save_pretrained(tmp_path)
    assert encoder_fingerprint(AudioListenForCausalLM.from_pretrained(tmp_path)) == fingerprint
    lora = LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["multi_modal_projector"])
    assert encoder_fingerprint(get_peft_model(make_model(), lora)) == fingerprint


@pytest.mark.parametrize("part", ["speech_tower", "sound_tower"])
def test_encoders_of_another_dtype_have_another_fingerprint(make_model, part):
    fingerprints = set()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        other = make_model()
        tower = getattr(other.model, part)
        with torch.no_grad():  # values that every dtype represents, so that only the dtype differs
            for parameter in tower.parameters():
                parameter.fill_(0.5)
        tower.to(dtype)
        fingerprints.add(encoder_fingerprint(other))
    assert len(fingerprints) == 3


def test_a_missing_clip_is_named(cache, clips):
    with pytest.raises(
        KeyError, match=r"clip0\.wav.*not among the 0 clips of the feature cache at .*FeatureCache.build"
    ):
        cache[clips[0]]
    with pytest.raises(KeyError, match=r"The clip .*clip1\.wav"):
        cache[{"bytes": None, "path": clips[1]}]


def test_an_unreadable_clip_is_named(model, processor, cache, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    with pytest.raises(OSError, match=r"broken\.wav"):
        cache.build(model, processor, [broken])


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: b"\xff" * 40, lambda content: b""])
def test_a_damaged_shard_is_named_and_rebuilt_after_deletion(model, processor, cache, clips, damage):
    cache.build(model, processor, clips[:1])
    (shard,) = shards(cache)
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(OSError, match=rf"{shard.name} is not a readable shard of features .*Delete it"):
        FeatureCache(cache.folder.parent, model)
    shard.unlink()
    assert FeatureCache(cache.folder.parent, model).build(model, processor, clips[:1]) == 1


def test_a_processor_that_truncates_clips_raises(make_processor, model, cache, clips):
    with pytest.raises(
        ValueError, match=r"`max_audio_seconds`=0\.5, but the cache identifies a clip by all of its samples"
    ):
        cache.build(model, make_processor(max_audio_seconds=0.5), clips)


def test_the_cache_works_in_data_loader_workers(model, processor, cache, examples):
    cache.build(model, processor, [example["audio"] for example in examples], shard_size=2)
    copy = pickle.loads(pickle.dumps(cache))
    torch.testing.assert_close(copy[examples[0]["audio"]], cache[examples[0]["audio"]])
    collator = AudioListenCollator(processor, feature_cache=cache)
    loader = DataLoader(examples, batch_size=2, num_workers=2, collate_fn=collator, multiprocessing_context="fork")
    batches = list(loader)
    assert len(batches) == 2
    for batch, start in zip(batches, (0, 2), strict=True):
        expected = collator(examples[start : start + 2])
        assert batch.keys() == expected.keys()
        torch.testing.assert_close(batch["speech_features"], expected["speech_features"])


def test_clips_of_another_process_are_found_after_a_refresh(model, processor, cache, clips):
    other = FeatureCache(cache.folder.parent, model)
    other.build(model, processor, clips[:1])
    assert clips[0] not in cache
    cache.refresh()
    assert clips[0] in cache


def test_processes_divide_the_clips_even_if_one_writes_before_the_other_starts(
    model, processor, cache, clips, monkeypatch
):
    other, added = FeatureCache(cache.folder.parent, model), []

    class Process:
        num_processes = 2

        def __init__(self):
            self.process_index = 1 if added else 0
            self.is_main_process = not added

        def wait_for_everyone(self):
            if self.is_main_process and not added:
                added.append(None)
                added[0] = other.build(model, processor, clips)

    monkeypatch.setattr("accelerate.PartialState", Process)
    assert cache.build(model, processor, clips) == 2
    assert added == [2]
    assert len(cache) == 4


def replace_shard(cache, change, keep_metadata=True):
    """Rewrites the only shard with changed features, under the metadata that it had."""
    (path,) = shards(cache)
    with safe_open(path, framework="pt") as shard:
        metadata = shard.metadata() if keep_metadata else None
        tensors = {name: shard.get_tensor(name).clone() for name in shard.keys()}
    for name, tensor in tensors.items():
        change(name, tensor)
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("feature", ["speech_features", "sound_features", "audio_features_mask"])
def test_a_damaged_feature_is_refused_when_it_is_read(model, processor, cache, clips, feature):
    cache.build(model, processor, clips[:1])
    path = shards(cache)[0]
    content = bytearray(path.read_bytes())
    with safe_open(path, framework="pt") as shard:
        (name,) = [name for name in shard.keys() if name.endswith(feature)]
        value = shard.get_tensor(name).contiguous().flatten().view(torch.uint8).numpy().tobytes()
    position = content.index(value)
    content[position] ^= 1  # the lowest bit of the first value
    path.write_bytes(content)
    damaged = FeatureCache(cache.folder.parent, model)
    with pytest.raises(OSError, match=rf"clip0\.wav.*{path.name} do not match their checksum.*Delete it and build"):
        damaged[clips[0]]
    path.unlink()
    assert damaged.build(model, processor, clips[:1]) == 1
    torch.testing.assert_close(damaged[clips[0]][feature], FeatureCache(cache.folder.parent, model)[clips[0]][feature])


def test_swapped_clips_are_refused(model, processor, cache, clips):
    cache.build(model, processor, clips[:2])
    path = shards(cache)[0]
    with safe_open(path, framework="pt") as shard:
        metadata, names = shard.metadata(), list(shard.keys())
        tensors = {name: shard.get_tensor(name) for name in names}
    first, second = sorted({name.partition("/")[0] for name in names})
    swap = {first: second, second: first}
    swapped = {f"{swap[name.partition('/')[0]]}/{name.partition('/')[2]}": tensors[name] for name in names}
    save_file(swapped, path, metadata=metadata)
    with pytest.raises(OSError, match="do not match their checksum"):
        FeatureCache(cache.folder.parent, model)[clips[0]]


def test_a_shard_without_checksums_can_be_read(model, processor, cache, clips):
    cache.build(model, processor, clips[:1])
    expected = cache[clips[0]]
    replace_shard(cache, lambda name, tensor: None, keep_metadata=False)
    features = FeatureCache(cache.folder.parent, model)[clips[0]]
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("feature", ["speech_features", "sound_features"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
class TestValuesThatAreNotFinite:
    def test_they_are_refused_when_the_cache_is_built(
        self, model, processor, cache, clips, monkeypatch, feature, value
    ):
        encode, broken = cache._encode, cache.key(clips[1])

        def spoiled(model, processor, batch):
            for clip, features in zip(batch, encode(model, processor, batch), strict=True):
                if cache.key(clip) == broken:
                    features[feature][0, 0, 0] = value
                yield features

        monkeypatch.setattr(cache, "_encode", spoiled)
        with pytest.raises(ValueError, match=rf"clip1\.wav.*contain NaN or infinite values in `{feature}`"):
            cache.build(model, processor, clips, batch_size=1, shard_size=1)
        assert clips[1] not in FeatureCache(cache.folder.parent, model)

    @pytest.mark.parametrize("keep_metadata", [False, True])
    def test_they_are_refused_when_a_clip_is_read(self, model, processor, cache, clips, feature, value, keep_metadata):
        def spoil(name, tensor):
            if name.endswith(feature):
                tensor[0, 0, 0] = value

        cache.build(model, processor, clips[:1])
        path = replace_shard(cache, spoil, keep_metadata)
        error = OSError if keep_metadata else ValueError
        message = rf"clip0\.wav.*{path.name}.* contain NaN or infinite values in `{feature}`"
        with pytest.raises(error, match=message):
            FeatureCache(cache.folder.parent, model)[clips[0]]


def test_a_build_removes_the_temporary_files_of_killed_builds(model, processor, cache, clips):
    cache.build(model, processor, clips[:1])
    name = temporary_path(cache.folder / "0123456789abcdef.safetensors").name
    machine, _, _, random = name.split(".")[3].split("-")
    abandoned = cache.folder / f".0123456789abcdef.safetensors.{machine}-999999999-1700000000-{random}.tmp"
    abandoned.write_bytes(b"half a shard")
    assert cache.build(model, processor, clips[:1]) == 0  # although there is nothing to write
    assert list(cache.folder.iterdir()) == shards(cache)


def test_a_full_disk_leaves_complete_shards_and_names_the_shard(model, processor, cache, clips):
    cache.build(model, processor, clips[:1])
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"\.safetensors cannot be written: .*File too large"):
            cache.build(model, processor, clips)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(cache.folder.iterdir()) == shards(cache)
    assert cache.build(model, processor, clips) == 3


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_shard_that_is_not_a_file_is_refused(model, cache, make):
    make(cache.folder / "shard.safetensors")
    with pytest.raises(OSError, match=r"shard\.safetensors is not a regular file"):
        FeatureCache(cache.folder.parent, model)


def build_as_process(rank: int, port: int, folders: tuple[Path, ...], result: Path) -> None:
    """Builds a cache of five clips as one of several processes and writes the outcome to a file."""
    from accelerate import PartialState

    torch.set_num_threads(1)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(folders))}
    os.environ.update(ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    PartialState(cpu=True)
    feature_cache.encoder_fingerprint = lambda model: "encoders"
    cache = FeatureCache(folders[rank], None)
    cache._encode = lambda model, processor, clips: [{"speech_features": torch.ones(1, 2, 3)} for _ in clips]
    clips = [{"array": np.full(160, index / 10, "f4"), "sampling_rate": 16_000} for index in range(5)]
    try:
        added = cache.build(None, SimpleNamespace(max_audio_seconds=None), clips)
        result.write_text(f"added {added}, {len(cache)} in all")
    except OSError as error:
        result.write_text(f"OSError: {error}")
    os._exit(0)  # gloo at times aborts when a process ends


@pytest.mark.cpu_only("its processes use gloo")
@pytest.mark.parametrize(
    ("folders", "outputs"),
    [
        (("shared", "shared"), (r"added 3, 5 in all", r"added 2, 5 in all")),
        (("shared", "shared", "other"), (r"OSError: .*process 2 on \S+ \(\S+other/encoders\) cannot see",) * 3),
        (
            ("first", "second"),
            (r"OSError: The processes do not share the folder .*process 1 on .*all nodes share",) * 2,
        ),
    ],
)
def test_processes_that_do_not_share_the_folder_all_raise(tmp_path, folders, outputs):
    paths = tuple(tmp_path / folder for folder in folders)
    results = [tmp_path / f"{rank}.txt" for rank in range(len(folders))]
    run_forked(build_as_process, [(paths, result) for result in results])
    for result, output in zip(results, outputs, strict=True):
        assert re.match(output, result.read_text())
    for folder in set(folders):
        assert not list((tmp_path / folder / "encoders").glob("*.tmp"))


def test_clips_that_another_process_did_not_add_are_named(model, processor, cache, clips, monkeypatch):
    class Process:
        num_processes, process_index, is_main_process = 2, 0, True

        def wait_for_everyone(self):
            pass

    monkeypatch.setattr("accelerate.PartialState", Process)
    with pytest.raises(OSError, match=r"2 of 4 clips are missing in .*among them: The clip .*clip\d\.wav"):
        cache.build(model, processor, clips)


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        ("https://anna:s3cret@example.org/a.wav?token=s3cret", "https://example.org/a.wav"),
        ({"path": "https://anna:s3cret@example.org/a.wav"}, "https://example.org/a.wav"),
        ("HTTP://example.org/a.wav#s3cret", "HTTP://example.org/a.wav"),
        ("data:audio/wav;base64,s3cret", "data:audio/wav"),
        (b"folder/a.wav", "A clip"),
        (Path("folder/a.wav"), "'folder/a.wav'"),
    ],
)
def test_messages_name_a_clip_without_its_credentials(clip, name):
    assert name in _describe(clip) and "s3cret" not in _describe(clip)
