import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen import BeatsFeatureExtractor
from peft_listen.models.beats.feature_extraction_beats import _mel_filters


SILENCE = -2.391693


@pytest.fixture
def feature_extractor():
    return BeatsFeatureExtractor()


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def reference_fbank(waveform):
    """The definition in float64, frame by frame, for a waveform of at least 400 samples."""
    mel = lambda frequency: 1127 * np.log(1 + frequency / 700)  # noqa: E731
    edges = mel(20.0) + np.arange(130) * (mel(8000.0) - mel(20.0)) / 129
    bins = mel(np.arange(257) * 31.25)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins[:, None] - left) / (center - left), (right - bins[:, None]) / (right - center)
    filters = np.maximum(0, np.minimum(rising, falling))
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    frames = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400].astype(np.float64) * 32768
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        frames.append(np.log(np.maximum(power @ filters, 2.0**-23)))
    return (np.array(frames) - 15.41663) / (2 * 6.55582)


def test_features_equal_the_original(feature_extractor, golden_batches, golden_fbank):
    assert golden_batches.keys() == golden_fbank.keys()
    for name, golden in golden_fbank.items():
        features = feature_extractor(golden_batches[name], sampling_rate=16000, return_tensors="pt").input_values
        difference = np.abs(features.cpu().numpy() - golden)
        assert features.shape[-2:] == golden.shape[-2:], name
        assert difference.max() < 2e-3, name
        assert difference.mean() < 1e-5, name


def test_features_of_a_clip_longer_than_a_chunk_follow_the_definition(feature_extractor):
    waveform = noise(100_007)
    features = feature_extractor(waveform, sampling_rate=16000)["input_values"][0]
    np.testing.assert_allclose(features, reference_fbank(waveform), atol=1e-4)


def test_the_frame_mask_equals_the_original(feature_extractor, golden_case, waveforms):
    clips = [waveforms[name] for name in golden_case.clips]
    mask = feature_extractor(clips, sampling_rate=16000, return_tensors="pt").attention_mask
    padding = golden_case.arrays.get("frame_padding_mask", np.zeros(golden_case.fbank.shape[:2]))
    assert np.array_equal(mask.cpu().numpy() == 0, padding)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12_000), min_size=1, max_size=4))
def test_frames_and_mask_follow_the_rule_for_any_lengths(lengths):
    features = BeatsFeatureExtractor()([noise(length) for length in lengths], sampling_rate=16000)
    num_samples = max(*lengths, 2800)
    num_frames = 1 + (num_samples - 400) // 160
    assert features["input_values"].shape == (len(lengths), num_frames, 128)
    assert BeatsFeatureExtractor.get_num_frames(max(lengths)) == num_frames
    # A frame is padding if and only if all of its samples are.
    is_real = np.arange(num_samples) < np.array(lengths)[:, None]
    share = num_samples // num_frames
    expected = is_real[:, : num_frames * share].reshape(len(lengths), num_frames, share).any(-1)
    assert np.array_equal(features["attention_mask"], expected)


def test_a_batch_is_padded_with_zero_samples_before_the_filter_bank(feature_extractor):
    short, long = noise(5_000), noise(20_000, seed=1)
    batch = feature_extractor([short, long], sampling_rate=16000)["input_values"]
    padded = feature_extractor(np.pad(short, (0, 15_000)), sampling_rate=16000)["input_values"]
    assert np.array_equal(batch[0], padded[0])
    assert np.array_equal(batch[1], feature_extractor(long, sampling_rate=16000)["input_values"][0])
    assert np.allclose(batch[0, 32:], SILENCE, atol=1e-6)  # the first frame beyond 5000 samples starts at 5120


def test_silence_and_the_empty_filter_give_the_floor(feature_extractor):
    assert np.allclose(feature_extractor(np.zeros(8000), sampling_rate=16000)["input_values"], SILENCE, atol=1e-6)
    assert np.allclose(feature_extractor(noise(8000), sampling_rate=16000)["input_values"][..., 3], SILENCE, atol=1e-6)
    assert feature_extractor.padding_value == pytest.approx(SILENCE, abs=1e-6)


def test_one_sample_is_padded_to_one_column_of_patches(feature_extractor):
    features = feature_extractor([0.5], sampling_rate=16000)
    assert features["input_values"].shape == (1, 16, 128)
    assert features["attention_mask"].tolist() == [[1] + [0] * 15]


@pytest.mark.parametrize(
    "convert",
    [
        lambda waveform: waveform.tolist(),
        lambda waveform: torch.from_numpy(waveform),
        lambda waveform: torch.from_numpy(waveform).requires_grad_(),
        lambda waveform: waveform.astype(np.float64),
        lambda waveform: waveform.astype(">f4"),
        lambda waveform: np.frombuffer(waveform.tobytes(), np.float32),
        lambda waveform: np.repeat(waveform, 2)[::2],
        lambda waveform: [waveform],
        lambda waveform: (waveform.tolist(),),
    ],
)
def test_every_type_of_waveform_gives_the_same_features(feature_extractor, convert, recwarn):
    waveform = noise(4000)
    expected = feature_extractor(waveform, sampling_rate=16000)["input_values"]
    assert np.array_equal(feature_extractor(convert(waveform), sampling_rate=16000)["input_values"], expected)
    assert not recwarn.list


def test_half_precision_samples_are_accepted(feature_extractor):
    waveform = noise(4000)
    expected = feature_extractor(waveform, sampling_rate=16000)["input_values"]
    half = feature_extractor(waveform.astype(np.float16), sampling_rate=16000)["input_values"]
    assert np.abs(half - expected).mean() < 1e-2


def test_the_input_is_not_changed(feature_extractor):
    waveform = noise(4000)
    before = waveform.copy()
    feature_extractor(waveform, sampling_rate=16000)
    assert np.array_equal(waveform, before)


def test_features_computed_in_inference_mode_do_not_affect_later_calls(feature_extractor):
    _mel_filters.cache_clear()
    with torch.inference_mode():
        expected = feature_extractor(noise(4000), sampling_rate=16000, return_tensors="pt").input_values
    features = feature_extractor(noise(4000), sampling_rate=16000, return_tensors="pt").input_values
    assert torch.equal(features, expected)


def test_output_types_follow_return_tensors(feature_extractor):
    tensors = feature_extractor(noise(4000), sampling_rate=16000, return_tensors="pt", device="cpu")
    assert tensors.input_values.dtype == torch.float32
    assert tensors.attention_mask.dtype == torch.int64
    arrays = feature_extractor(noise(4000), sampling_rate=16000, return_tensors="np")
    assert isinstance(arrays["input_values"], np.ndarray)


def test_the_attention_mask_can_be_left_out(feature_extractor):
    assert set(feature_extractor(noise(4000), sampling_rate=16000, return_attention_mask=False)) == {"input_values"}
    without_mask = BeatsFeatureExtractor(return_attention_mask=False)
    assert set(without_mask(noise(4000), sampling_rate=16000)) == {"input_values"}
    assert set(without_mask(noise(4000), sampling_rate=16000, return_attention_mask=True)) == set(
        feature_extractor.model_input_names
    )


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0), "Audio 1 of 1 is empty"),
        ([], "at least one waveform"),
        ([np.zeros(400), []], "Audio 2 of 2 is empty"),
        ([np.zeros(400), np.array([0.0, np.nan])], "Audio 2 of 2 holds NaN or infinite"),
        (np.array([0.0, np.inf]), "NaN or infinite"),
        (np.full(4, 1e300), "NaN or infinite"),
        (np.zeros((2, 400)), r"Audio 1 of 1 must be mono, .* has shape \(2, 400\)"),
        ([torch.zeros(400, 2)], r"must be mono, .* has shape \(400, 2\)"),
        (np.float32(0.5), "Expected a waveform or a list of waveforms, got float32"),
        ([np.array(0.5)], r"has shape \(\)"),
        (np.zeros(400, np.int16), "floating-point .* int16.* 32768"),
        (np.zeros(400, ">i2"), "floating-point .* 32768"),
        (torch.zeros(400, dtype=torch.int16), r"floating-point .* torch\.int16"),
        ([0, 1, 2], "floating-point .* int64"),
        (np.zeros(400, np.complex64), "floating-point .* complex64"),
        ([[0.5, [0.5, 0.5]]], "Audio 1 of 1 is not a list of samples"),
        ("clip.wav", "Expected a waveform or a list of waveforms, got str"),
        (["clip.wav"], "floating-point"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_audio_that_is_not_a_mono_waveform_of_finite_floats_is_refused(feature_extractor, audio, message):
    with pytest.raises(ValueError, match=message):
        feature_extractor(audio, sampling_rate=16000)


@pytest.mark.parametrize("sampling_rate", [8000, 44100, None])
def test_a_wrong_or_unknown_sampling_rate_is_refused(feature_extractor, sampling_rate):
    with pytest.raises(ValueError, match=r"16000 Hz.* (R|r)esample"):
        feature_extractor(noise(4000), sampling_rate=sampling_rate)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampling_rate": 8000}, "16000 Hz only, got `sampling_rate=8000`"),
        ({"padding_side": "left"}, "only on the right"),
    ],
)
def test_unsupported_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BeatsFeatureExtractor(**arguments)


def test_saving_and_loading_keeps_the_settings(tmp_path):
    feature_extractor = BeatsFeatureExtractor(mean=10.0, std=5.0, return_attention_mask=False)
    feature_extractor.save_pretrained(tmp_path)
    loaded = BeatsFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == feature_extractor.to_dict()
    expected = feature_extractor(noise(4000), sampling_rate=16000)["input_values"]
    assert np.array_equal(loaded(noise(4000), sampling_rate=16000)["input_values"], expected)
