import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from peft_listen.audio import AudioLimits, load_audio
from tests.audio.signals import SAMPLING_RATE, assert_is_the_sine, encode, sine


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
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    release.set()
    httpd.shutdown()


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
            """The two members of torchcodec's decoder that are used; torchcodec itself needs system libraries."""

            def get_all_samples(self):
                stereo = torch.tensor(np.stack([sine(), sine()]))
                return type("AudioSamples", (), {"data": stereo, "sample_rate": SAMPLING_RATE})()

        assert_is_the_sine(load_audio(AudioDecoder()))

    def test_an_http_url(self, server):
        assert_is_the_sine(load_audio(f"{server}/clip.wav"))
        assert_is_the_sine(load_audio(f"{server}/moved.wav"))
        assert_is_the_sine(load_audio(f"{server}/without_length.wav"))

    def test_the_rate_of_a_file_takes_precedence_over_the_argument(self, wav_path):
        assert_is_the_sine(load_audio(wav_path, sampling_rate=8000))


class TestRefusals:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"missing\.wav: no such audio file"):
            load_audio(tmp_path / "missing.wav")

    def test_a_directory(self, tmp_path):
        with pytest.raises(IsADirectoryError, match="is a directory; expected an audio file"):
            load_audio(tmp_path)

    def test_a_file_object_in_text_mode(self):
        with pytest.raises(ValueError, match=r"returns text. Open it in binary mode"):
            load_audio(io.StringIO("RIFF"))

    def test_http_404(self, server):
        with pytest.raises(OSError, match=rf"{server}/none\.wav: the server answered with HTTP status 404"):
            load_audio(f"{server}/none.wav")

    def test_an_incomplete_download(self, server):
        with pytest.raises(OSError, match=r"cut\.wav: the download ended after 500 of \d+ bytes"):
            load_audio(f"{server}/cut.wav")

    def test_a_download_beyond_the_limit(self, server):
        for name in ("clip", "without_length"):
            with pytest.raises(OSError, match=rf"{name}\.wav: the file is larger than the limit of 1000 bytes"):
                load_audio(f"{server}/{name}.wav", limits=AudioLimits(max_bytes=1000))

    def test_a_server_that_does_not_answer(self, server):
        with pytest.raises(OSError, match=r"slow\.wav: the audio could not be downloaded \(.*timed out"):
            load_audio(f"{server}/slow.wav", limits=AudioLimits(download_seconds=0.2))

    def test_a_server_that_does_not_exist(self):
        with pytest.raises(OSError, match=r"http://127\.0\.0\.1:1/a\.wav: the audio could not be downloaded"):
            load_audio("http://127.0.0.1:1/a.wav")

    def test_the_message_names_the_file_with_nan(self, tmp_path):
        path = tmp_path / "damaged.wav"
        path.write_bytes(encode(np.array([0, np.nan], "f4"), subtype="FLOAT"))
        with pytest.raises(ValueError, match=r"damaged\.wav: 1 of 2 audio samples are NaN"):
            load_audio(path)

    @pytest.mark.parametrize("source", [None, 3, object()])
    def test_objects_that_are_not_audio(self, source):
        with pytest.raises(ValueError, match=f"a {type(source).__name__} cannot be read as audio"):
            load_audio(source)

    @pytest.mark.parametrize("source", [{}, {"path": None, "bytes": None}, {"text": "hello"}])
    def test_dictionaries_without_audio(self, source):
        with pytest.raises(ValueError, match="contains no audio"):
            load_audio(source)

    @pytest.mark.parametrize("module", ["soundfile", "soxr"])
    def test_the_message_names_the_missing_extra(self, monkeypatch, module):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'needs {module}: pip install "peft-listen\[audio\]"'):
            load_audio(encode(sine(sampling_rate=8000), 8000) if module == "soundfile" else sine(), 8000)

    def test_arrays_at_the_target_rate_need_no_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "soundfile", None)
        monkeypatch.setitem(sys.modules, "soxr", None)
        assert_is_the_sine(load_audio(sine(), SAMPLING_RATE))
