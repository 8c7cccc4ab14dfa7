import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.sound_synthesis import PEAK_LEVELS, SOUND_CLASSES, register_sound


SAMPLING_RATE = 16_000


def spectral_features(samples: np.ndarray) -> np.ndarray:
    """Mean and deviation over time of the energy in 20 bands, in log, the level removed. Shape [40]."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::256] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.geomspace(2, 512, 21).round().astype(int)
    bands = np.stack([power[:, low : max(high, low + 1)].sum(1) for low, high in itertools.pairwise(edges)], axis=1)
    log_bands = np.log(bands / bands.sum(1).max() + 1e-5)
    return np.concatenate([log_bands.mean(0), log_bands.std(0)])


@pytest.mark.parametrize("name", SOUND_CLASSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), duration=st.floats(0.01, 3.0), sampling_rate=st.sampled_from([16_000, 22_050]))
def test_a_sound_has_the_asked_length_and_a_peak_within_the_levels(
    name: str, seed: int, duration: float, sampling_rate: int
) -> None:
    samples = SOUND_CLASSES[name](np.random.default_rng(seed), duration, sampling_rate)
    assert samples.dtype == np.float32
    assert samples.shape == (round(duration * sampling_rate),)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= PEAK_LEVELS[1] + 1e-6
    if duration >= 0.5:
        assert np.abs(samples).max() >= PEAK_LEVELS[0] - 1e-6


@pytest.mark.parametrize("name", SOUND_CLASSES)
def test_the_generator_determines_the_sound(name: str) -> None:
    first, again, other = (SOUND_CLASSES[name](np.random.default_rng(s), 1.0, SAMPLING_RATE) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-2)


def test_classes_are_told_apart_by_their_nearest_neighbor() -> None:
    rng = np.random.default_rng(0)

    def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
        sounds = [make(rng, rng.uniform(1, 3), SAMPLING_RATE) for make in SOUND_CLASSES.values() for _ in range(count)]
        return np.stack([spectral_features(sound) for sound in sounds]), np.repeat(list(SOUND_CLASSES), count)

    known, names = examples(15)
    heard, truth = examples(10)
    nearest = np.linalg.norm(heard[:, None] - known, axis=-1).argmin(1)  # [heard]
    for name in SOUND_CLASSES:
        assert np.mean(names[nearest[truth == name]] == name) >= 0.8, name


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="already a sound class 'a siren'"):
        register_sound("a siren")


@pytest.mark.parametrize(("duration", "sampling_rate"), [(0.0, 16_000), (-1.0, 16_000), (1.0, 8_000)])
def test_impossible_sounds_are_refused(duration: float, sampling_rate: int) -> None:
    with pytest.raises(ValueError, match="expected a positive duration and 16000 Hz or more"):
        SOUND_CLASSES["a bell"](np.random.default_rng(0), duration, sampling_rate)
