import io
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.audio import check_audio, load_audio, loading


SAMPLING_RATE = 16_000


def sine(frequency=440.0, seconds=0.25, sampling_rate=SAMPLING_RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sampling_rate)) / sampling_rate)).astype("f4")


def encode(waveform, sampling_rate=SAMPLING_RATE, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, waveform, sampling_rate, **{"format": "WAV", **kwargs})
    return file.getvalue()


@pytest.fixture
def wav_path(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(encode(sine()))
    return path


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = encode(sine())
            if self.path == "/clip.wav":
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            elif self.path == "/moved.wav":
                self.send_response(302)
                self.send_header("Location", "/clip.wav")
                self.end_headers()
            elif self.path == "/cut.wav":
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:500])
            elif self.path == "/without_length.wav":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)
            elif self.path == "/slow.wav":
                release.wait(5)
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    release = threading.Event()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    release.set()
    httpd.shutdown()


def assert_is_the_sine(waveform):
    assert waveform.dtype == np.float32 and waveform.shape == (4000,)
    np.testing.assert_allclose(waveform, sine(), atol=1e-4)


class TestSources:
    def test_a_path_as_string_or_path_object(self, wav_path):
        assert_is_the_sine(load_audio(str(wav_path)))
        assert_is_the_sine(load_audio(wav_path))

    def test_bytes_and_file_objects(self, wav_path):
        content = wav_path.read_bytes()
        assert_is_the_sine(load_audio(content))
        assert_is_the_sine(load_audio(bytearray(content)))
        assert_is_the_sine(load_audio(memoryview(content)))
        assert_is_the_sine(load_audio(io.BytesIO(content)))
        with open(wav_path, "rb") as file:
            assert_is_the_sine(load_audio(file))

    def test_arrays_tensors_and_lists(self):
        for samples in (
            sine(),
            sine().astype("f8"),
            sine().tolist(),
            tuple(sine().tolist()),
            torch.tensor(sine(), requires_grad=True),
        ):
            assert_is_the_sine(load_audio(samples, SAMPLING_RATE))

    def test_half_precision(self):
        np.testing.assert_allclose(load_audio(sine().astype("f2"), SAMPLING_RATE), sine(), atol=1e-3)
        np.testing.assert_allclose(load_audio(torch.tensor(sine()).bfloat16(), SAMPLING_RATE), sine(), atol=4e-3)

    def test_dictionaries_of_samples(self):
        assert_is_the_sine(load_audio({"array": sine(), "sampling_rate": SAMPLING_RATE, "path": "clip.wav"}))
        assert_is_the_sine(load_audio({"array": sine().tolist(), "sampling_rate": SAMPLING_RATE}))
        assert_is_the_sine(load_audio({"raw": sine(), "sampling_rate": SAMPLING_RATE}))
        assert_is_the_sine(load_audio({"array": sine()}, SAMPLING_RATE))
        assert_is_the_sine(load_audio({"array": sine(), "sampling_rate": None}, SAMPLING_RATE))
        assert_is_the_sine(load_audio({"array": sine(), "sampling_rate": SAMPLING_RATE}, 8_000))

    def test_dictionaries_of_an_undecoded_file(self, wav_path):
        assert_is_the_sine(load_audio({"path": str(wav_path), "bytes": None}))
        assert_is_the_sine(load_audio({"path": None, "bytes": wav_path.read_bytes()}))
        assert_is_the_sine(load_audio({"path": "name_inside_the_archive.wav", "bytes": wav_path.read_bytes()}))

    def test_both_forms_of_a_datasets_column(self, wav_path):
        datasets = pytest.importorskip("datasets")
        column = datasets.Dataset.from_dict({"audio": [str(wav_path)]}).cast_column(
            "audio", datasets.Audio(decode=False)
        )
        assert_is_the_sine(load_audio(column[0]["audio"]))

        class AudioDecoder:
            """The two members of torchcodec's decoder that matter; torchcodec itself needs system libraries."""

            def get_all_samples(self):
                stereo = torch.tensor(np.stack([sine(), sine()]))
                return type("AudioSamples", (), {"data": stereo, "sample_rate": SAMPLING_RATE})()

        assert_is_the_sine(load_audio(AudioDecoder()))

    def test_an_http_url(self, server):
        assert_is_the_sine(load_audio(f"{server}/clip.wav"))
        assert_is_the_sine(load_audio(f"{server}/moved.wav"))
        assert_is_the_sine(load_audio(f"{server}/without_length.wav"))

    def test_the_rate_of_a_file_outranks_the_argument(self, wav_path):
        assert_is_the_sine(load_audio(wav_path, sampling_rate=8000))

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

    def test_channels_of_a_file_shorter_than_its_channels_are_averaged(self):
        samples = np.random.default_rng(0).uniform(-1, 1, (3, 6)).astype("f4")
        np.testing.assert_allclose(load_audio(encode(samples, subtype="FLOAT")), samples.mean(axis=1), atol=1e-6)

    @pytest.mark.parametrize("sampling_rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
    def test_every_common_rate_is_resampled(self, sampling_rate):
        waveform = load_audio(sine(seconds=0.5, sampling_rate=sampling_rate), sampling_rate)
        assert abs(len(waveform) - 8000) <= 1
        inner = slice(500, 7500)
        np.testing.assert_allclose(waveform[inner], sine(seconds=0.5)[inner], atol=2e-3)

    def test_the_target_rate_can_be_chosen(self):
        assert load_audio(sine(seconds=1.0), SAMPLING_RATE, target_sampling_rate=8_000).shape == (8_000,)

    def test_silence_is_allowed(self):
        assert load_audio(np.zeros(100, "f4"), SAMPLING_RATE).tolist() == [0.0] * 100

    @pytest.mark.parametrize("sampling_rate", [8_000, 16_000, 96_000])
    def test_one_sample_is_allowed(self, sampling_rate):
        waveform = load_audio([0.25], sampling_rate)
        assert waveform.size >= 1 and np.isfinite(waveform).all()

    def test_overdriven_floats_are_kept(self):
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
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"missing\.wav: no such audio file"):
            load_audio(tmp_path / "missing.wav")

    def test_a_directory(self, tmp_path):
        with pytest.raises(IsADirectoryError, match="is a directory; expected an audio file"):
            load_audio(tmp_path)

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "empty.wav").touch()
        with pytest.raises(OSError, match=r"empty\.wav is empty \(0 bytes\)"):
            load_audio(tmp_path / "empty.wav")

    def test_a_file_without_samples(self):
        with pytest.raises(ValueError, match=r"audio bytes: the audio is empty \(0 samples\)"):
            load_audio(encode(np.zeros(0, "f4")))

    def test_a_text_file_named_wav_without_ffmpeg(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        (tmp_path / "notes.wav").write_text("These are notes, and not sound.\n" * 10)
        with pytest.raises(OSError, match=r"notes\.wav is not an audio file .* container is text.* install `ffmpeg`"):
            load_audio(tmp_path / "notes.wav")

    def test_a_container_that_needs_ffmpeg_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        for head, name in ((b"\0\0\0\x20ftypM4A ", "MP4/M4A"), (b"\x1a\x45\xdf\xa3", "WebM"), (b"#!AMR\n", "AMR")):
            with pytest.raises(OSError, match=f"container is {name}.* install `ffmpeg`"):
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

    def test_a_wav_of_unstated_length_is_not_taken_for_truncated(self):
        content = bytearray(encode(sine()))
        content[4:8] = content[40:44] = b"\xff" * 4
        assert_is_the_sine(load_audio(content))

    def test_a_file_object_in_text_mode(self):
        with pytest.raises(ValueError, match=r"returns text. Open it in binary mode"):
            load_audio(io.StringIO("RIFF"))

    def test_http_404(self, server):
        with pytest.raises(OSError, match=rf"{server}/none\.wav: the server answered with HTTP status 404"):
            load_audio(f"{server}/none.wav")

    def test_a_download_that_breaks_off(self, server):
        with pytest.raises(OSError, match=r"cut\.wav: the download ended after 500 of \d+ bytes"):
            load_audio(f"{server}/cut.wav")

    def test_a_download_beyond_the_limit(self, server, monkeypatch):
        monkeypatch.setattr(loading, "MAX_DOWNLOAD_BYTES", 1000)
        for name in ("clip", "without_length"):
            with pytest.raises(OSError, match=rf"{name}\.wav: the file is larger than the limit of 1000 bytes"):
                load_audio(f"{server}/{name}.wav")

    def test_a_server_that_does_not_answer(self, server, monkeypatch):
        monkeypatch.setattr(loading, "DOWNLOAD_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(OSError, match=r"slow\.wav: the audio could not be downloaded \(.*timed out"):
            load_audio(f"{server}/slow.wav")

    def test_a_server_that_does_not_exist(self):
        with pytest.raises(OSError, match=r"http://127\.0\.0\.1:1/a\.wav: the audio could not be downloaded"):
            load_audio("http://127.0.0.1:1/a.wav")

    @pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
    def test_empty_arrays(self, shape):
        with pytest.raises(ValueError, match=r"audio: the audio is empty \(0 samples\)"):
            load_audio(np.zeros(shape, "f4"), SAMPLING_RATE)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_samples_that_are_not_finite(self, value):
        with pytest.raises(ValueError, match="audio: 1 of 3 audio samples are NaN or infinite"):
            load_audio([0.0, value, 0.1], SAMPLING_RATE)

    def test_the_file_with_nan_is_named(self, tmp_path):
        path = tmp_path / "damaged.wav"
        path.write_bytes(encode(np.array([0, np.nan], "f4"), subtype="FLOAT"))
        with pytest.raises(ValueError, match=r"damaged\.wav: 1 of 2 audio samples are NaN"):
            load_audio(path)

    def test_float64_beyond_float32(self):
        with pytest.raises(ValueError, match="NaN or infinite"):
            load_audio(np.array([1e300]), SAMPLING_RATE)

    def test_integer_ranges_stored_as_floats(self):
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

    @pytest.mark.parametrize("source", [None, 3, object()])
    def test_things_that_are_not_audio(self, source):
        with pytest.raises(ValueError, match=f"a {type(source).__name__} cannot be read as audio"):
            load_audio(source)

    @pytest.mark.parametrize("source", [{}, {"path": None, "bytes": None}, {"text": "hello"}])
    def test_dictionaries_without_audio(self, source):
        with pytest.raises(ValueError, match="contains no audio"):
            load_audio(source)

    @pytest.mark.parametrize("module", ["soundfile", "soxr"])
    def test_a_missing_extra_names_what_to_install(self, monkeypatch, module):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'needs {module}: pip install "peft-listen\[audio\]"'):
            load_audio(encode(sine(sampling_rate=8000), 8000) if module == "soundfile" else sine(), 8000)

    def test_arrays_at_the_target_rate_need_no_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "soundfile", None)
        monkeypatch.setitem(sys.modules, "soxr", None)
        assert_is_the_sine(load_audio(sine(), SAMPLING_RATE))


class TestFfmpeg:
    @pytest.mark.parametrize("suffix", ["m4a", "webm", "mka"])
    def test_what_soundfile_cannot_read_is_read_by_ffmpeg(self, ffmpeg, tmp_path, suffix):
        wav, path = tmp_path / "clip.wav", tmp_path / f"clip.{suffix}"
        wav.write_bytes(encode(sine(seconds=1.0, sampling_rate=48_000), 48_000))
        codec = {"m4a": "aac", "webm": "libopus", "mka": "ac3"}[suffix]
        assert os.spawnv(os.P_WAIT, ffmpeg, ["ffmpeg", "-v", "error", "-i", str(wav), "-c:a", codec, str(path)]) == 0
        for source in (path, path.read_bytes()):
            waveform = load_audio(source)
            assert abs(len(waveform) - SAMPLING_RATE) < 1200
            np.testing.assert_allclose(np.abs(waveform[4000:8000]).max(), 0.5, atol=5e-2)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(OSError, match=rf"clip\.{suffix} cannot be decoded by soundfile or ffmpeg"):
            load_audio(path)

    def test_a_text_file_is_refused(self, ffmpeg, tmp_path):
        (tmp_path / "notes.wav").write_text("These are notes, and not sound.\n" * 10)
        with pytest.raises(OSError, match=r"notes\.wav cannot be decoded by soundfile or ffmpeg"):
            load_audio(tmp_path / "notes.wav")

    def test_a_playlist_is_not_followed(self, ffmpeg, wav_path):
        playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.wav\n#EXT-X-ENDLIST\n"
        for name, content in (("a.m3u8", playlist), ("a.ffconcat", "ffconcat version 1.0\nfile clip.wav\n")):
            path = wav_path.with_name(name)
            path.write_text(content)
            with pytest.raises(OSError, match=f"{name} cannot be decoded by soundfile or ffmpeg"):
                load_audio(path)


class TestCheckAudio:
    def test_good_audio_passes(self):
        assert check_audio(sine(), "clip") is None
        assert check_audio(torch.zeros(1), "clip") is None
        assert check_audio(np.zeros((2, 3), "i2"), "clip") is None

    def test_bad_audio_is_named(self):
        with pytest.raises(ValueError, match=r"a\.wav: the audio is empty"):
            check_audio(np.zeros(0), "a.wav")
        with pytest.raises(ValueError, match=r"b\.wav: 2 of 3 audio samples are NaN or infinite"):
            check_audio(torch.tensor([float("nan"), float("inf"), 0.0]), "b.wav")
