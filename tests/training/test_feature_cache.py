"""The feature cache equals the encoders' outputs, survives interruptions, and is separate for each set of encoders."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch.utils.data import DataLoader

from peft_listen import AudioListenForCausalLM
from peft_listen.training import AudioListenCollator, FeatureCache
from peft_listen.training.feature_cache import encoder_fingerprint


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
    ]
    with torch.no_grad():  # a single changed value in one layer
        finetuned = make_model()
        finetuned.model.sound_tower.encoder.layers[0].final_layer_norm.bias[0] += 1e-3
    fingerprints = {encoder_fingerprint(other) for other in [*others, finetuned]}
    assert len(fingerprints | {cache.folder.name}) == len(others) + 2
    assert all(clips[0] not in FeatureCache(root, other) for other in others)


def test_the_same_encoders_have_the_same_fingerprint(make_model, model, tmp_path):
    fingerprint = encoder_fingerprint(model)
    assert encoder_fingerprint(make_model()) == fingerprint
    model.save_pretrained(tmp_path)
    assert encoder_fingerprint(AudioListenForCausalLM.from_pretrained(tmp_path)) == fingerprint
    lora = LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["multi_modal_projector"])
    assert encoder_fingerprint(get_peft_model(make_model(), lora)) == fingerprint


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
