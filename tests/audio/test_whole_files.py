"""A file is read whole or refused: the counts in its header are hints."""

import functools
import io
import struct

import numpy as np
import pytest
import soundfile

from peft_listen.audio import load_audio
from tests.audio.shorten import sphere_with_shorten
from tests.audio.signals import SAMPLING_RATE, encode, encode_by_av, loudness_of_seconds, sine


SECONDS = 8


@functools.cache
def speech_like(seconds=SECONDS, sampling_rate=SAMPLING_RATE):
    """A quiet tone, then a tone in noise, so that a variable bit rate varies."""
    waveform = sine(seconds=seconds, sampling_rate=sampling_rate) * 0.3
    start = len(waveform) // 3
    waveform[start:] += 0.1 * np.random.default_rng(0).standard_normal(len(waveform) - start).astype("f4")
    return waveform


def mp3_without_number_of_frames():
    content = encode(speech_like(), format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    tag = max(content.find(b"Xing"), content.find(b"Info"))
    assert tag > 0
    # The frames of an MP3 follow one another, and the first one contains no audio but this tag.
    return content[content.index(content[:2], tag) :]


def with_bytes(content, position, replacement):
    return content[:position] + replacement + content[position + len(replacement) :]


def flac_of_unknown_length(num_samples=0):
    """FLAC as a program writes it to a pipe; or with a wrong number of samples."""
    content = encode(speech_like(), format="FLAC")
    (rate_to_length,) = struct.unpack(">Q", content[18:26])
    content = with_bytes(content, 18, struct.pack(">Q", rate_to_length >> 36 << 36 | num_samples))
    # A program that does not know the length does not know the checksum either.
    return with_bytes(content, 26, bytes(16))


def wav_with_size(difference=None, size=None, metadata=b"", riff_size=None):
    content = encode(speech_like())
    size = len(content) - 44 + difference if size is None else size
    content = with_bytes(content, 40, struct.pack("<I", size))
    if riff_size is not None:
        content = with_bytes(content, 4, struct.pack("<I", riff_size))
    return content + metadata


def with_chunk_size(container, name, format_of_size, size, **kwargs):
    content = encode(speech_like(), format=container, **kwargs)
    return with_bytes(content, content.index(name) + len(name), struct.pack(format_of_size, size))


def au_with_size(size):
    return with_bytes(encode(speech_like(), format="AU"), 8, struct.pack(">I", size))


WHOLE_FILES = {
    "MP3 without a number of frames": mp3_without_number_of_frames,
    "FLAC from a pipe": flac_of_unknown_length,
    "FLAC that declares a third": lambda: flac_of_unknown_length(SECONDS * SAMPLING_RATE // 3),
    "FLAC that declares a few samples more": lambda: flac_of_unknown_length(SECONDS * SAMPLING_RATE + 5),
    "WAV in GSM 6.10": lambda: encode(speech_like(), subtype="GSM610"),
    "WAV in G.721": lambda: encode(speech_like(), subtype="G721_32"),
    "WAV in NMS ADPCM": lambda: encode(speech_like(), subtype="NMS_ADPCM_32"),
    "WAV in Microsoft's ADPCM": lambda: encode(speech_like(), subtype="MS_ADPCM"),
    "AU in G.721": lambda: encode(speech_like(), format="AU", subtype="G721_32"),
    "AU in G.723": lambda: encode(speech_like(), format="AU", subtype="G723_24"),
    "WAV of size 0": lambda: wav_with_size(size=0),
    "WAV of size 0 twice": lambda: wav_with_size(size=0, riff_size=0),
    "WAV of size -1": lambda: wav_with_size(size=0xFFFFFFFF, riff_size=0xFFFFFFFF),
    "WAV that declares a second": lambda: wav_with_size(size=2 * SAMPLING_RATE),
    "WAV of RIFF size 0": lambda: wav_with_size(difference=0, riff_size=0),
    "WAV of odd size": lambda: wav_with_size(difference=1),
    "WAV of size 3 too large": lambda: wav_with_size(difference=3),
    "WAV of size with the header": lambda: wav_with_size(difference=44),
    "WAV of size without the header": lambda: wav_with_size(difference=-44),
    "WAV of size 1 too small": lambda: wav_with_size(difference=-1),
    "WAV with metadata at its end": lambda: wav_with_size(
        difference=0, metadata=b"LIST" + struct.pack("<I", 400) + b"INFOISFT" + b"\x01" * 392
    ),
    "WAV with zeros at its end": lambda: encode(speech_like()) + bytes(4096),
    "WAV with a tag at its end": lambda: encode(speech_like()) + b"TAG" + b"A" * 125,
    "FLAC with tags at both ends": lambda: (
        b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128) + encode(speech_like(), format="FLAC") + b"TAG" + bytes(125)
    ),
    "MP3 with a tag at its end": lambda: encode(speech_like(), format="MP3") + b"TAG" + bytes(125),
    "MP3 after zeros": lambda: bytes(4096) + encode(speech_like(), format="MP3"),
    "MP3 after noise": lambda: np.random.default_rng(0).bytes(3000) + mp3_without_number_of_frames(),
    "MP3 before zeros": lambda: encode(speech_like(), format="MP3") + bytes(4096),
    "Ogg before zeros": lambda: encode(speech_like(), format="OGG") + bytes(2048),
    "M4A before zeros": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "ipod", "aac") + bytes(4096),
    "AIFF of size 0": lambda: with_chunk_size("AIFF", b"SSND", ">I", 0),
    "AIFF of size 4 too large": lambda: with_chunk_size("AIFF", b"SSND", ">I", 8 + 2 * SECONDS * SAMPLING_RATE + 4),
    "AU of size 0": lambda: au_with_size(0),
    "AU of size -1": lambda: au_with_size(0xFFFFFFFF),
    "AU that declares a second": lambda: au_with_size(2 * SAMPLING_RATE),
    "CAF from a pipe": lambda: with_chunk_size("CAF", b"data", ">q", -1),
    "W64 from a pipe": lambda: with_bytes(
        with_bytes(encode(speech_like(), format="W64"), 16, b"\xff" * 8),
        encode(speech_like(), format="W64").index(b"data") + 16,
        b"\xff" * 7 + b"\x7f",
    ),
    "RF64 from a pipe": lambda: with_bytes(encode(speech_like(), format="RF64"), 20, bytes(24)),
    "RF64": lambda: encode(speech_like(), format="RF64"),
    "CAF that declares nothing": lambda: with_chunk_size("CAF", b"data", ">q", 0),
    "WMA from a pipe": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "asf", "wmav2", pipe=True),
    "Matroska of samples from a pipe": lambda: encode_by_av(
        speech_like(), SAMPLING_RATE, "matroska", "pcm_s16le", pipe=True
    ),
    "FLV from a pipe": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "flv", "aac", pipe=True),
    "NUT from a pipe": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "nut", "libopus", pipe=True),
    "WavPack from a pipe": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "wv", "wavpack", pipe=True),
    "TTA from a pipe": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "tta", "tta", pipe=True),
    "SPHERE with Shorten": lambda: sphere_with_shorten((speech_like() * 32767).astype("i2"), SAMPLING_RATE),
    "SPHERE": lambda: encode(speech_like(), format="NIST"),
    "WebM from a pipe": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "webm", "libopus", pipe=True),
    "M4A in fragments": lambda: encode_by_av(
        speech_like(), SAMPLING_RATE, "mp4", "aac", movflags="frag_keyframe+empty_moov"
    ),
    "AAC without a container": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "adts", "aac"),
    "AVI": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "avi", "libmp3lame"),
    "WMA": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "asf", "wmav2"),
    "AC-3": lambda: encode_by_av(speech_like(sampling_rate=48_000), 48_000, "ac3", "ac3"),
    "MPEG-TS": lambda: encode_by_av(speech_like(), SAMPLING_RATE, "mpegts", "aac"),
}


@pytest.mark.parametrize("case", WHOLE_FILES)
def test_a_whole_file_is_read_to_its_end(case):
    pytest.importorskip("av")
    waveform = load_audio(WHOLE_FILES[case]())
    assert abs(len(waveform) / SAMPLING_RATE - SECONDS) < 0.15
    # No second is silent or, by wrong sizes, noise at full scale.
    loudness = loudness_of_seconds(waveform)[: SECONDS - 1]
    expected = loudness_of_seconds(speech_like())[: SECONDS - 1]
    np.testing.assert_allclose(loudness, expected, rtol=0.3)


def test_silence_that_an_encoder_left_out_is_not_damage():
    """Discontinuous transmission of Opus sends a packet each 0.4 seconds of silence."""
    waveform = speech_like() * (np.arange(len(speech_like())) % (4 * SAMPLING_RATE) < SAMPLING_RATE)
    options = {"b": "16k", "application": "voip", "dtx": "1"}
    content = encode_by_av(waveform, SAMPLING_RATE, "webm", "libopus", codec_options=options)
    assert abs(len(load_audio(content)) / SAMPLING_RATE - SECONDS) < 0.15


def test_metadata_after_an_empty_recording_are_not_audio():
    content = encode(np.zeros(0, "f4")) + b"LIST" + struct.pack("<I", 12) + b"INFOISFT" + bytes(4)
    with pytest.raises(ValueError, match=r"the audio is empty \(0 samples\)"):
        load_audio(content)


# Container -> bytes of a clip of some seconds at some rate.
ENCODERS = {
    "MP3": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="MP3"),
    "MP3 with tags": lambda seconds, rate: (
        b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128) + encode(speech_like(seconds, rate), rate, format="MP3")
    ),
    "Ogg Vorbis": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="OGG", subtype="VORBIS"),
    "Ogg Opus": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="OGG", subtype="OPUS"),
    "FLAC": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="FLAC"),
    "WAV": lambda seconds, rate: encode(speech_like(seconds, rate), rate),
    "AIFF": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="AIFF"),
    "AU": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="AU"),
    "CAF": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="CAF"),
    "W64": lambda seconds, rate: encode(speech_like(seconds, rate), rate, format="W64"),
    "AAC": lambda seconds, rate: encode_by_av(speech_like(seconds, rate), rate, "adts", "aac"),
    "M4A": lambda seconds, rate: encode_by_av(speech_like(seconds, rate), rate, "ipod", "aac"),
    "WebM": lambda seconds, rate: encode_by_av(speech_like(seconds, rate), rate, "webm", "libopus"),
    "WavPack": lambda seconds, rate: encode_by_av(speech_like(seconds, rate), rate, "wv", "wavpack"),
    "TTA": lambda seconds, rate: encode_by_av(speech_like(seconds, rate), rate, "tta", "tta"),
    "WMA": lambda seconds, rate: encode_by_av(speech_like(seconds, rate), rate, "asf", "wmav2"),
}


@pytest.mark.parametrize("rates", [(16_000, 16_000), (16_000, 24_000)], ids=["one rate", "two rates"])
@pytest.mark.parametrize("case", ENCODERS)
def test_joined_files_are_read_to_the_end_of_the_last(case, rates):
    pytest.importorskip("av")
    content = ENCODERS[case](3, rates[0]) + ENCODERS[case](2, rates[1]) + ENCODERS[case](1, rates[0])
    waveform = load_audio(content)
    assert abs(len(waveform) / SAMPLING_RATE - 6) < 0.3
    assert loudness_of_seconds(waveform).min() > 0.05
    # All parts have the same tone.
    spectrum = np.abs(np.fft.rfft(waveform[-SAMPLING_RATE // 2 :]))
    assert abs(2 * int(spectrum.argmax()) - 440) <= 4


@functools.cache
def whole_file(case):
    container, codec, options = DAMAGED[case]
    if options is None:
        return encode(speech_like(), format=container, subtype=codec)
    # AC-3 has no lower rate.
    rate = 32_000 if codec == "ac3" else SAMPLING_RATE
    return encode_by_av(speech_like(sampling_rate=rate), rate, container, codec, **options)


def damage(content, kind):
    third = len(content) // 3
    noise = np.random.default_rng(1).bytes(third)
    return {
        "its end is missing": content[: 2 * third],
        "its middle is missing": content[:third] + content[2 * third :],
        "its middle is zero": content[:third] + bytes(third) + content[2 * third :],
        "its middle is noise": content[:third] + noise + content[2 * third :],
        "its end is zero": content[: 2 * third] + bytes(len(content) - 2 * third),
        "its end is noise": content[: 2 * third] + noise,
    }[kind]


DAMAGED = {
    "WebM": ("webm", "libopus", {}),
    "Matroska": ("matroska", "ac3", {}),
    "WMA": ("asf", "wmav2", {}),
    "M4A": ("ipod", "aac", {}),
    "M4A in fragments": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "1000000"}),
    "Ogg Vorbis": ("OGG", "VORBIS", None),
    "Ogg Opus": ("OGG", "OPUS", None),
    "FLAC": ("FLAC", "PCM_16", None),
    "MP3": ("MP3", "MPEG_LAYER_III", None),
    "WavPack": ("wv", "wavpack", {}),
}


@pytest.mark.parametrize(
    "kind",
    [
        "its end is missing",
        "its middle is missing",
        "its middle is zero",
        "its middle is noise",
        "its end is zero",
        "its end is noise",
    ],
)
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_its_name(tmp_path, case, kind):
    pytest.importorskip("av")
    content = whole_file(case)
    path = tmp_path / "recording.audio"
    path.write_bytes(content)
    assert abs(len(load_audio(path)) / SAMPLING_RATE - SECONDS) < 0.15
    path.write_bytes(damage(content, kind))
    with pytest.raises(OSError, match=r"recording\.audio is .*(damaged|truncated)") as caught:
        load_audio(path)
    assert str(caught.value).count("recording.audio") == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["its middle is missing", "its middle is zero", "its end is zero", "its end is noise"]
)
def test_damage_of_a_live_recording_without_a_length(kind):
    content = encode_by_av(speech_like(), SAMPLING_RATE, "webm", "libopus", pipe=True)
    with pytest.raises(OSError, match="damaged or truncated WebM"):
        load_audio(damage(content, kind))


@pytest.mark.parametrize("container", ["WAV", "AIFF", "AU", "CAF", "W64"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9])
def test_truncated_files_without_compression(container, kept):
    content = encode(speech_like(), format=container)
    with pytest.raises(
        OSError, match=r"is truncated: \d+ bytes of audio that it declares are missing|damaged or trunc"
    ):
        load_audio(content[: int(kept * len(content))])


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, OverflowError, AssertionError, KeyError])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
def test_after_any_error_of_one_decoder_the_other_is_tried(monkeypatch, error, container):
    pytest.importorskip("av")

    def fail(*args, **kwargs):
        raise error("a failure of this decoder")

    content = encode(sine(seconds=1.0), format=container)
    monkeypatch.setattr(soundfile, "SoundFile", fail)
    assert abs(len(load_audio(content)) - SAMPLING_RATE) < 200
    with pytest.raises(OSError, match=r"noise\.x .*soundfile: .*a failure of this decoder.*FFmpeg: \w+"):
        load_audio({"path": "noise.x", "bytes": np.random.default_rng(0).bytes(5000)})


class TestWithoutAv:
    """soundfile alone refuses what it cannot read to the end."""

    @pytest.fixture(autouse=True)
    def without_av(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "av", None)

    @pytest.mark.parametrize("case", ["MP3", "Ogg Vorbis", "Ogg Opus", "FLAC", "WAV", "AIFF"])
    def test_whole_files_are_read(self, case):
        assert abs(len(load_audio(ENCODERS[case](3, 16_000))) / SAMPLING_RATE - 3) < 0.1

    @pytest.mark.parametrize(
        "case",
        ["CAF from a pipe", "W64 from a pipe", "RF64 from a pipe", "WAV of size 0", "AIFF of size 0", "AU of size 0"],
    )
    def test_sizes_are_corrected(self, case):
        assert abs(len(load_audio(WHOLE_FILES[case]())) / SAMPLING_RATE - SECONDS) < 0.01

    def test_an_mp3_without_a_number_of_frames(self):
        with pytest.raises(OSError, match=r"PyAV is not installed: pip install \"peft-listen\[audio\]\""):
            load_audio(mp3_without_number_of_frames())

    @pytest.mark.parametrize("case", ["MP3", "Ogg Vorbis", "FLAC", "WAV"])
    def test_joined_files(self, case):
        content = ENCODERS[case](3, 16_000) + ENCODERS[case](2, 16_000)
        assert abs(len(load_audio(io.BytesIO(content))) / SAMPLING_RATE - 5) < 0.2
