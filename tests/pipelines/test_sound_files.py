"""A tone reaches the model unchanged from files of every sampling rate, number of channels and container."""

import subprocess

import numpy as np
import pytest
import soundfile


SAMPLING_RATE = 16_000
QUESTION = "What?"


def tone(sampling_rate=SAMPLING_RATE):
    time = np.arange(sampling_rate) / sampling_rate
    return (0.5 * np.sin(2 * np.pi * 440 * time)).astype("f4")


def assert_reaches_the_model(pipe, path, tolerance, expected=None):
    (waveform,) = pipe.preprocess(path, text=QUESTION)["audio"]
    # Resamplers ring at both ends, and lossy codecs add or remove some milliseconds there.
    inner = slice(4000, 12000)
    expected = tone() if expected is None else expected
    offsets = range(-1200, 1201) if tolerance > 2e-3 else [0]
    errors = [np.abs(np.roll(waveform, offset)[inner] - expected[inner]).max() for offset in offsets]
    assert abs(len(waveform) - len(expected)) < 2400 and min(errors) < tolerance
    decoded = {"array": waveform, "sampling_rate": SAMPLING_RATE}
    assert pipe(path, text=QUESTION, max_new_tokens=2) == pipe(decoded, text=QUESTION, max_new_tokens=2)


@pytest.mark.parametrize("channels", [1, 2, 6], ids=["mono", "stereo", "5.1"])
@pytest.mark.parametrize("sampling_rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_every_rate_and_number_of_channels(pipe, tmp_path, sampling_rate, channels):
    # Loud in one channel and faint in another, as in a recording from the side.
    gains = np.linspace(0.2, 1.8, channels) if channels > 1 else np.ones(1)
    soundfile.write(tmp_path / "a.wav", tone(sampling_rate)[:, None] * gains, sampling_rate, subtype="FLOAT")
    assert_reaches_the_model(pipe, str(tmp_path / "a.wav"), 2e-3)


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "PCM_24", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("CAF", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 5e-2),
        ("OGG", "OPUS", 5e-2),
        ("MP3", "MPEG_LAYER_III", 5e-2),
    ],
)
def test_containers_that_soundfile_reads(pipe, tmp_path, container, subtype, tolerance):
    path = str(tmp_path / "clip")
    soundfile.write(path, tone(), SAMPLING_RATE, format=container, subtype=subtype)
    assert_reaches_the_model(pipe, path, tolerance)


@pytest.mark.parametrize(
    ("suffix", "codec", "channels", "kept"),
    [
        ("m4a", "aac", 2, 2),
        # AAC keeps only bass in the sixth channel of 5.1, so the tone remains in five of six.
        ("mp4", "aac", 6, 5),
        ("webm", "libopus", 2, 2),
        ("mka", "ac3", 6, 6),
        ("wma", "wmav2", 1, 1),
    ],
)
def test_containers_that_ffmpeg_reads(pipe, ffmpeg, tmp_path, suffix, codec, channels, kept):
    wav, path = tmp_path / "clip.wav", tmp_path / f"clip.{suffix}"
    soundfile.write(wav, np.stack([tone(48_000)] * channels, axis=1), 48_000, subtype="FLOAT")
    subprocess.run([ffmpeg, "-v", "error", "-i", wav, "-c:a", codec, path], check=True)
    assert_reaches_the_model(pipe, str(path), 2e-2, kept / channels * tone())
