import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.audio import check_audio, load_audio
from peft_listen.audio.waveform import is_list_of_clips, is_samples
from tests.audio.signals import SAMPLING_RATE, sine


class TestSamples:
    def test_integers_are_scaled_by_their_range(self):
        assert load_audio(np.array([0, 16384, -32768], "i2"), SAMPLING_RATE).tolist() == [0.0, 0.5, -1.0]
        assert load_audio(np.array([0, 2**30, -(2**31)], "i4"), SAMPLING_RATE).tolist() == [0.0, 0.5, -1.0]
        assert load_audio(np.array([128, 192, 0], "u1"), SAMPLING_RATE).tolist() == [0.0, 0.5, -1.0]
        assert load_audio(torch.tensor([16384], dtype=torch.int16), SAMPLING_RATE).tolist() == [0.5]

    @pytest.mark.parametrize("channels", [1, 2, 6, 8])
    def test_channels_on_either_axis_are_averaged(self, channels):
        samples = np.random.default_rng(0).uniform(-1, 1, (channels, 50)).astype("f4")
        expected = samples.mean(axis=0)
        np.testing.assert_allclose(load_audio(samples, SAMPLING_RATE), expected, atol=1e-6)
        np.testing.assert_allclose(load_audio(samples.T, SAMPLING_RATE), expected, atol=1e-6)

    @pytest.mark.parametrize("sampling_rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
    def test_every_common_rate_is_resampled(self, sampling_rate):
        waveform = load_audio(sine(seconds=0.5, sampling_rate=sampling_rate), sampling_rate)
        assert abs(len(waveform) - 8000) <= 1
        inner = slice(500, 7500)
        np.testing.assert_allclose(waveform[inner], sine(seconds=0.5)[inner], atol=2e-3)

    def test_the_target_rate_can_be_set(self):
        assert load_audio(sine(seconds=1.0), SAMPLING_RATE, target_sampling_rate=8_000).shape == (8_000,)

    def test_silence_is_allowed(self):
        assert load_audio(np.zeros(100, "f4"), SAMPLING_RATE).tolist() == [0.0] * 100

    @pytest.mark.parametrize("sampling_rate", [8_000, 16_000, 96_000])
    def test_one_sample_is_allowed(self, sampling_rate):
        waveform = load_audio([0.25], sampling_rate)
        assert waveform.size >= 1 and np.isfinite(waveform).all()

    def test_floats_slightly_beyond_full_scale_are_kept(self):
        assert load_audio([1.5, -2.0], SAMPLING_RATE).tolist() == [1.5, -2.0]

    @settings(max_examples=50, deadline=None)
    @given(
        num_samples=st.integers(1, 2000),
        channels=st.integers(1, 6),
        sampling_rate=st.sampled_from([8_000, 16_000, 22_050, 48_000]),
    )
    def test_the_duration_is_kept(self, num_samples, channels, sampling_rate):
        waveform = load_audio(np.zeros((max(num_samples, channels), channels), "f4"), sampling_rate)
        seconds = max(num_samples, channels) / sampling_rate
        assert waveform.ndim == 1 and waveform.dtype == np.float32
        assert abs(len(waveform) / SAMPLING_RATE - seconds) <= 1 / SAMPLING_RATE


class TestRefusals:
    @pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
    def test_empty_arrays(self, shape):
        with pytest.raises(ValueError, match=r"audio: the audio is empty \(0 samples\)"):
            load_audio(np.zeros(shape, "f4"), SAMPLING_RATE)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_samples_that_are_not_finite(self, value):
        with pytest.raises(ValueError, match="audio: 1 of 3 audio samples are NaN or infinite"):
            load_audio([0.0, value, 0.1], SAMPLING_RATE)

    def test_float64_beyond_float32(self):
        with pytest.raises(ValueError, match="NaN or infinite"):
            load_audio(np.array([1e300]), SAMPLING_RATE)

    def test_integer_samples_stored_as_floats(self):
        with pytest.raises(ValueError, match=r"the largest sample is 20000, .* divide them by their full scale"):
            load_audio(np.array([0.0, 20000.0]), SAMPLING_RATE)

    @pytest.mark.parametrize("samples", [[0, 1, 2], np.zeros(3, "u2"), np.zeros(3, bool), np.array(["a"])])
    def test_samples_of_unknown_scale(self, samples):
        with pytest.raises(ValueError, match=r"samples of dtype .* are not supported"):
            load_audio(samples, SAMPLING_RATE)

    @pytest.mark.parametrize("samples", [np.zeros((9, 9)), np.zeros((2, 2, 2)), np.float32(0.5)])
    def test_shapes_that_are_not_one_clip(self, samples):
        with pytest.raises(ValueError, match=r"samples of shape .* are not one clip|cannot be read as audio"):
            load_audio(samples, SAMPLING_RATE)

    def test_ragged_lists(self):
        with pytest.raises(ValueError, match="do not form a regular array"):
            load_audio([[0.0, 0.1], [0.2]], SAMPLING_RATE)

    def test_an_unknown_rate(self):
        for source in (sine(), torch.tensor(sine()), [0.1], {"array": sine()}, {"raw": sine(), "sampling_rate": None}):
            with pytest.raises(ValueError, match="the sampling rate of these samples is unknown"):
                load_audio(source)

    @pytest.mark.parametrize("sampling_rate", [0, -16_000, float("nan"), float("inf"), 1, 10**9, True, "16000"])
    def test_an_invalid_rate(self, sampling_rate):
        with pytest.raises(ValueError, match=r"the sampling rate .* is invalid"):
            load_audio(sine(), sampling_rate)
        with pytest.raises(ValueError, match=r"target_sampling_rate: the sampling rate .* is invalid"):
            load_audio(sine(), SAMPLING_RATE, target_sampling_rate=sampling_rate)


class TestCheckAudio:
    def test_valid_audio_passes(self):
        assert check_audio(sine(), "clip") is None
        assert check_audio(torch.zeros(1), "clip") is None
        assert check_audio(np.zeros((2, 3), "i2"), "clip") is None

    def test_the_message_names_invalid_audio(self):
        with pytest.raises(ValueError, match=r"a\.wav: the audio is empty"):
            check_audio(np.zeros(0), "a.wav")
        with pytest.raises(ValueError, match=r"b\.wav: 2 of 3 audio samples are NaN or infinite"):
            check_audio(torch.tensor([float("nan"), float("inf"), 0.0]), "b.wav")


class TestOneClipOrSeveral:
    @pytest.mark.parametrize("clip", [[0.1, 0.2], (0, 1), [np.float32(0.5)]])
    def test_numbers_are_one_clip(self, clip):
        assert is_samples(clip) and not is_list_of_clips(clip)

    @pytest.mark.parametrize("clips", [[], ["a.wav"], ("a.wav", "b.wav"), [np.zeros(3)], [[0.1], [0.2]], [{}]])
    def test_lists_of_other_objects_are_several_clips(self, clips):
        assert is_list_of_clips(clips) and not is_samples(clips)

    @pytest.mark.parametrize("clip", ["a.wav", b"RIFF", np.zeros(3), torch.zeros(3), {"path": "a.wav"}, None])
    def test_other_objects_are_neither(self, clip):
        assert not is_samples(clip) and not is_list_of_clips(clip)
