"""The sine wave of the audio tests: as samples, as an encoded file, and as the expected result."""

import io

import numpy as np
import pytest
import soundfile


SAMPLING_RATE = 16_000


def sine(frequency=440.0, seconds=0.25, sampling_rate=SAMPLING_RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sampling_rate)) / sampling_rate)).astype("f4")


def encode(waveform, sampling_rate=SAMPLING_RATE, **kwargs):
    file = io.BytesIO()
    channels = waveform.shape[1] if waveform.ndim == 2 else 1
    with soundfile.SoundFile(file, "w", sampling_rate, channels, **{"format": "WAV", **kwargs}) as output:
        # libsndfile's Vorbis encoder keeps a block on the stack, which a long one overflows.
        for start in range(0, len(waveform), 65_536):
            output.write(waveform[start : start + 65_536])
    return file.getvalue()


def assert_is_the_sine(waveform):
    assert waveform.dtype == np.float32 and waveform.shape == (4000,)
    np.testing.assert_allclose(waveform, sine(), atol=1e-4)


def encode_by_av(
    waveform, sampling_rate, container, codec, layout="mono", *, pipe=False, codec_options=None, **container_options
):
    """
    The same by PyAV, for the containers that soundfile does not write.

    `pipe` hides from the muxer that it could go back and complete the header.
    """
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(Pipe(file) if pipe else file, "w", format=container, options=container_options) as output:
        stream = output.add_stream(
            codec, rate=sampling_rate, layout=layout, bit_rate=64_000, options=codec_options or {}
        )
        samples = np.repeat((waveform * 32767).astype("i2"), av.AudioLayout(layout).nb_channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = sampling_rate
        context = stream.codec_context
        converter = av.AudioResampler(context.format, layout, sampling_rate, context.frame_size)
        for converted in (*converter.resample(frame), *converter.resample(None), None):
            output.mux(stream.encode(converted))
    return file.getvalue()


class Pipe:
    """A file object that can only be written to."""

    def __init__(self, file):
        self.write = file.write


def loudness_of_seconds(waveform, sampling_rate=SAMPLING_RATE):
    """Root of the mean square of each whole second, by which a missing or silent second shows."""
    seconds = waveform[: len(waveform) // sampling_rate * sampling_rate].reshape(-1, sampling_rate)
    return np.sqrt((seconds**2).mean(axis=1))
