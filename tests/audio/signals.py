"""The sine wave of the audio tests: as samples, as an encoded file, and as the expected result."""

import io

import numpy as np
import soundfile


SAMPLING_RATE = 16_000


def sine(frequency=440.0, seconds=0.25, sampling_rate=SAMPLING_RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sampling_rate)) / sampling_rate)).astype("f4")


def encode(waveform, sampling_rate=SAMPLING_RATE, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, waveform, sampling_rate, **{"format": "WAV", **kwargs})
    return file.getvalue()


def assert_is_the_sine(waveform):
    assert waveform.dtype == np.float32 and waveform.shape == (4000,)
    np.testing.assert_allclose(waveform, sine(), atol=1e-4)
