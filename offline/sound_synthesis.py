"""Everyday sounds, synthesized with numpy from a random generator.

A sound class is a function that is registered under the words that describe it:

    from offline.sound_synthesis import SOUND_CLASSES

    samples = SOUND_CLASSES["a siren"](np.random.default_rng(0), duration=2.0, sampling_rate=16_000)
"""

from collections.abc import Callable

import numpy as np


Sound = Callable[[np.random.Generator, float, int], np.ndarray]

# Name of each class -> function(rng, duration in seconds, sampling_rate in Hz) -> float32 samples of shape [samples].
SOUND_CLASSES: dict[str, Sound] = {}

PEAK_LEVELS = (0.15, 0.9)


def register_sound(name: str) -> Callable[[Sound], Sound]:
    """
    Decorator that registers a sound class and normalizes its samples.

    The function draws all of its parameters from the generator and returns samples at any level. The registered function
    returns float32 samples with a peak drawn uniformly between 0.15 and 0.9 and fades of 10 ms at both ends. It raises
    `ValueError` if the sound would have no samples, or for a sampling rate below 16 kHz, which some classes need.

    Args:
        name (`str`): words that describe the sound.

    Raises:
        ValueError: if the name is already registered.
    """
    if name in SOUND_CLASSES:
        raise ValueError(f"There is already a sound class {name!r}. Register the new one under another name.")

    def register(function: Sound) -> Sound:
        def leveled(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
            if duration * sampling_rate < 1 or sampling_rate < 16_000:
                raise ValueError(
                    f"Cannot synthesize {name!r} of {duration} s at {sampling_rate} Hz: expected a positive duration and "
                    "16000 Hz or more. Resample the sound for a lower rate."
                )
            samples = function(rng, duration, sampling_rate)
            fade = min(round(0.01 * sampling_rate), samples.size // 2)
            if fade:
                samples[:fade] *= np.linspace(0, 1, fade)
                samples[-fade:] *= np.linspace(1, 0, fade)
            return (samples * rng.uniform(*PEAK_LEVELS) / max(np.abs(samples).max(), 1e-9)).astype(np.float32)

        SOUND_CLASSES[name] = leveled
        return leveled

    return register


@register_sound("a siren")
def siren(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """A tone with overtones that sweeps up and down between two pitches."""
    time = _time(duration, sampling_rate)
    low, high = rng.uniform(400, 700), rng.uniform(1000, 1600)
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(0.5, 1.5) * time + rng.uniform(0, 2 * np.pi))
    phase = _phase(low + (high - low) * sweep, sampling_rate)
    return np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)


@register_sound("beeps")
def beeps(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """A steady tone, switched on and off."""
    time = _time(duration, sampling_rate)
    period, share = rng.uniform(0.25, 0.5), rng.uniform(0.35, 0.6)
    on = (time + rng.uniform(0, period)) % period < share * period
    return np.sin(2 * np.pi * rng.uniform(800, 2000) * time) * on


@register_sound("a bell")
def bell(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """One or two strikes of inharmonic partials; the higher a partial, the faster it decays."""
    time = _time(duration, sampling_rate)
    fundamental, decay = rng.uniform(300, 900), rng.uniform(1.5, 3.0)
    samples = np.zeros_like(time)
    strikes = rng.integers(1, 3)
    for strike in range(strikes):
        since = time - (0.05 + strike * duration / strikes * rng.uniform(0.9, 1.0))
        for ratio, level in ((0.5, 0.4), (1.0, 1.0), (1.19, 0.6), (2.0, 0.7), (2.74, 0.5), (4.07, 0.3)):
            ring = np.exp(-decay * np.sqrt(ratio) * np.maximum(since, 0)) * (since >= 0)
            samples += level * ring * np.sin(2 * np.pi * ratio * fundamental * since)
    return samples


@register_sound("an engine")
def engine(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """A low, slightly unsteady buzz with a rumble."""
    time = _time(duration, sampling_rate)
    speed = rng.uniform(35, 80) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.3, 2.0) * time))
    phase = _phase(speed, sampling_rate)
    buzz = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 25))
    rumble = _filtered_noise(rng, time.size, sampling_rate, 20, 300)
    return buzz + rng.uniform(0.3, 0.8) * rumble * (1 + 0.5 * np.sin(phase))


@register_sound("the wind")
def wind(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """Noise in a narrow band of low frequencies, swelling and fading slowly."""
    time = _time(duration, sampling_rate)
    center = rng.uniform(250, 600)
    noise = _filtered_noise(rng, time.size, sampling_rate, 0.6 * center, 1.5 * center)
    gusts = 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.3, 1.0) * time + rng.uniform(0, 2 * np.pi))
    return noise * gusts


@register_sound("rain")
def rain(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """A steady hiss of high frequencies with single, louder drops."""
    time = _time(duration, sampling_rate)
    samples = 0.4 * _filtered_noise(rng, time.size, sampling_rate, rng.uniform(800, 1500), 7500)
    for start in rng.uniform(0, duration, rng.poisson(rng.uniform(15, 40) * duration)):
        since = time - start
        ring = np.exp(-rng.uniform(150, 400) * np.maximum(since, 0)) * (since >= 0)
        samples += rng.uniform(0.5, 2.0) * ring * np.sin(2 * np.pi * rng.uniform(1500, 5000) * since)
    return samples


@register_sound("knocking")
def knocking(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """Short, dull blows at regular intervals."""
    time = _time(duration, sampling_rate)
    interval, resonance = rng.uniform(0.18, 0.35), rng.uniform(120, 350)
    samples = np.zeros_like(time)
    for start in np.arange(rng.uniform(0.02, 0.15), duration - 0.05, interval):
        since = time - start - rng.uniform(0, 0.02)
        blow = np.exp(-rng.uniform(35, 60) * np.maximum(since, 0)) * (since >= 0)
        click = np.exp(-400 * np.maximum(since, 0)) * (since >= 0) * rng.standard_normal(time.size)
        samples += rng.uniform(0.7, 1.0) * (blow * np.sin(2 * np.pi * resonance * since) + 0.5 * click)
    return samples


@register_sound("birds")
def birds(rng: np.random.Generator, duration: float, sampling_rate: int) -> np.ndarray:
    """Quick, high chirps that glide up or down, with pauses."""
    time = _time(duration, sampling_rate)
    center, samples = rng.uniform(2800, 4500), np.zeros(time.size)
    start = rng.uniform(0.02, 0.2)
    while start < duration - 0.05:
        length, glide = rng.uniform(0.05, 0.14), rng.uniform(-1200, 1200)
        share = np.clip((time - start) / length, 0, 1)
        phase = _phase(center + glide * (share - 0.5), sampling_rate)
        samples += np.sin(np.pi * share) * np.sin(phase)
        start += length + rng.uniform(0.03, 0.2)
    return samples


def _time(duration: float, sampling_rate: int) -> np.ndarray:
    return np.arange(round(duration * sampling_rate)) / sampling_rate


def _phase(frequency: np.ndarray, sampling_rate: int) -> np.ndarray:
    return 2 * np.pi * np.cumsum(frequency) / sampling_rate


def _filtered_noise(rng: np.random.Generator, size: int, sampling_rate: int, low: float, high: float) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.fft.rfftfreq(size, 1 / sampling_rate)
    noise = np.fft.irfft(spectrum * ((frequency >= low) & (frequency <= high)), size)
    return noise / max(noise.std(), 1e-9)
