import sys

import numpy as np
import pytest

from peft_listen.audio import load_audio
from tests.audio.signals import SAMPLING_RATE, assert_is_the_sine, encode, encode_by_av, sine


class TestSoundfile:
    @pytest.mark.parametrize(
        ("container", "subtype", "tolerance"),
        [
            ("WAV", "PCM_24", 1e-4),
            ("WAV", "PCM_U8", 1e-2),
            ("WAV", "FLOAT", 1e-6),
            ("WAV", "ULAW", 3e-2),
            ("FLAC", "PCM_16", 1e-4),
            ("AIFF", "PCM_16", 1e-4),
            ("OGG", "VORBIS", 5e-2),
            ("OGG", "OPUS", 5e-2),
            ("MP3", "MPEG_LAYER_III", 5e-2),
        ],
    )
    def test_containers_that_soundfile_reads(self, container, subtype, tolerance):
        waveform = load_audio(encode(sine(seconds=1.0), format=container, subtype=subtype))
        assert abs(len(waveform) - SAMPLING_RATE) < 1200
        middle = slice(4000, 8000)
        np.testing.assert_allclose(np.abs(waveform[middle]).max(), 0.5, atol=tolerance)

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "empty.wav").touch()
        with pytest.raises(OSError, match=r"empty\.wav is empty \(0 bytes\)"):
            load_audio(tmp_path / "empty.wav")

    def test_a_file_without_samples(self):
        with pytest.raises(ValueError, match=r"audio bytes: the audio is empty \(0 samples\)"):
            load_audio(encode(np.zeros(0, "f4")))

    def test_a_text_file_named_wav_without_av(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        (tmp_path / "notes.wav").write_text("These are notes, and not sound.\n" * 10)
        with pytest.raises(
            OSError, match=r"notes\.wav is not an audio file .* container is text.*PyAV is not installed"
        ):
            load_audio(tmp_path / "notes.wav")

    def test_the_message_names_a_container_that_needs_av(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        for head, name in ((b"\0\0\0\x20ftypM4A ", "MP4/M4A"), (b"\x1a\x45\xdf\xa3", "WebM"), (b"#!AMR\n", "AMR")):
            with pytest.raises(OSError, match=rf"truncated {name}.*PyAV is not installed: pip install"):
                load_audio(head + bytes(100))

    @pytest.mark.parametrize("kept", [0.01, 0.5, 0.8])
    @pytest.mark.parametrize(
        ("container", "subtype"),
        [("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
    )
    def test_a_truncated_file(self, tmp_path, container, subtype, kept):
        content = encode(sine(seconds=3.0), format=container, subtype=subtype)
        path = tmp_path / "cut.audio"
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(OSError, match=r"cut\.audio (is|cannot) .*(truncated|not an audio file)"):
            load_audio(path)

    def test_a_wav_of_undeclared_length_is_not_truncated(self):
        content = bytearray(encode(sine()))
        content[4:8] = content[40:44] = b"\xff" * 4
        assert_is_the_sine(load_audio(content))

    def test_channels_of_a_file_shorter_than_its_channels_are_averaged(self):
        samples = np.random.default_rng(0).uniform(-1, 1, (3, 6)).astype("f4")
        np.testing.assert_allclose(load_audio(encode(samples, subtype="FLOAT")), samples.mean(axis=1), atol=1e-6)


class TestFfmpeg:
    @pytest.mark.parametrize("suffix", ["m4a", "webm", "mka"])
    def test_ffmpeg_reads_containers_that_soundfile_cannot_read(self, tmp_path, suffix):
        path = tmp_path / f"clip.{suffix}"
        container, codec = {"m4a": ("ipod", "aac"), "webm": ("webm", "libopus"), "mka": ("matroska", "ac3")}[suffix]
        path.write_bytes(encode_by_av(sine(seconds=1.0, sampling_rate=48_000), 48_000, container, codec))
        for source in (path, path.read_bytes()):
            waveform = load_audio(source)
            assert abs(len(waveform) - SAMPLING_RATE) < 1200
            np.testing.assert_allclose(np.abs(waveform[4000:8000]).max(), 0.5, atol=5e-2)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(OSError, match=rf"clip\.{suffix} is .*truncated"):
            load_audio(path)

    @pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1", "hexadecagonal"])
    @pytest.mark.parametrize(("container", "codec"), [("wv", "wavpack"), ("ipod", "aac"), ("matroska", "pcm_s16le")])
    def test_any_number_of_channels(self, container, codec, layout):
        """PyAV itself crashes when it converts planes of eight or more channels."""
        if codec == "aac" and layout == "hexadecagonal":
            pytest.skip("FFmpeg encodes no AAC of this layout")
        content = encode_by_av(sine(seconds=1.0), SAMPLING_RATE, container, codec, layout)
        waveform = load_audio(content)
        assert abs(len(waveform) - SAMPLING_RATE) < 2048
        np.testing.assert_allclose(np.abs(waveform[4000:8000]).max(), 0.5, atol=0.15)

    def test_a_text_file_is_refused(self, tmp_path):
        pytest.importorskip("av")
        (tmp_path / "notes.wav").write_text("These are notes, and not sound.\n" * 10)
        with pytest.raises(OSError, match=r"notes\.wav is not an audio file that soundfile or FFmpeg can read"):
            load_audio(tmp_path / "notes.wav")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nFILE\n#EXT-X-ENDLIST\n"),
            ("a.ffconcat", "ffconcat version 1.0\nfile FILE\n"),
            ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n"),
            ("a.mpd", '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>FILE</BaseURL></MPD>'),
            ("a.pls", "[playlist]\nFile1=FILE\nNumberOfEntries=1\n"),
            ("a.vqf", "lavfi: amovie=FILE"),
        ],
    )
    def test_a_playlist_is_not_followed(self, wav_path, name, content):
        path = wav_path.with_name(name)
        path.write_text(content.replace("FILE", str(wav_path)))
        with pytest.raises(OSError, match=f"{name} is not an audio file that soundfile or FFmpeg can read"):
            load_audio(path)
