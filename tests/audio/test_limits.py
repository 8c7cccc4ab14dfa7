"""Files that are endless, enormous or not files, and the limits within which `load_audio` reads."""

import base64
import io
import math
import os
import socket
import stat
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from peft_listen.audio import AudioLimits, LimitError, load_audio, set_default_limits
from peft_listen.audio.ffmpeg_decoding import decode_by_ffmpeg
from peft_listen.audio.limits import DecodingBudget
from tests.audio.signals import SAMPLING_RATE, assert_is_the_sine, encode, encode_by_av, sine


@pytest.fixture
def deadline():
    """Fails, instead of waiting for ever, if a test takes longer than 20 seconds."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20


def data_uri(content, header="data:audio/wav;base64"):
    return f"{header},{base64.b64encode(content).decode()}"


class TestRegularFiles:
    @pytest.fixture
    def special_file(self, request, tmp_path):
        path = tmp_path / "clip.wav"
        if request.param == "FIFO":
            os.mkfifo(path)
        elif request.param == "link to a FIFO":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
        elif request.param == "socket":
            # The path of a socket may have about 100 characters only.
            server = socket.socket(socket.AF_UNIX)
            folder = os.getcwd()
            os.chdir(tmp_path)
            try:
                server.bind("clip.wav")
            finally:
                os.chdir(folder)
            request.addfinalizer(server.close)
        elif request.param == "link to a device":
            path.symlink_to("/dev/zero")
        elif request.param == "end of a pipe":
            reader, writer = os.pipe()
            request.addfinalizer(lambda: (os.close(reader), os.close(writer)))
            return f"/proc/self/fd/{reader}"
        else:
            return request.param
        return path

    @pytest.mark.parametrize(
        ("special_file", "kind"),
        [
            ("/dev/zero", "character device"),
            ("/dev/urandom", "character device"),
            ("/dev/null", "character device"),
            ("/dev/tty", "character device"),
            ("link to a device", "character device"),
            ("FIFO", "named pipe"),
            ("link to a FIFO", "named pipe"),
            ("end of a pipe", "named pipe"),
            ("socket", "socket"),
        ],
        indirect=["special_file"],
    )
    @pytest.mark.parametrize("form", ["path", "dictionary"])
    def test_only_regular_files_are_read(self, deadline, special_file, kind, form):
        if str(special_file).startswith("/dev") and not Path(special_file).is_char_device():
            pytest.skip(f"{special_file} is not a device here")
        source = {"path": str(special_file), "bytes": None} if form == "dictionary" else special_file
        with pytest.raises(OSError, match=rf"{special_file} is a {kind}.*; expected a regular file"):
            load_audio(source)

    def test_a_file_that_becomes_a_pipe_between_check_and_opening(self, deadline, tmp_path, wav_path, monkeypatch):
        status = os.stat(wav_path)
        os.mkfifo(tmp_path / "pipe")
        original = os.stat
        monkeypatch.setattr(
            os, "stat", lambda path, **kw: status if str(path).endswith("pipe") else original(path, **kw)
        )
        assert not stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
        with pytest.raises(OSError, match="pipe is a named pipe"):
            load_audio(tmp_path / "pipe")

    def test_links_to_regular_files_are_followed(self, tmp_path, wav_path):
        (tmp_path / "link").symlink_to(wav_path)
        assert_is_the_sine(load_audio(tmp_path / "link"))

    @pytest.mark.parametrize("path", ["a\0b.wav", "x" * 5000, "clip.wav/inside.wav", ""])
    def test_strings_that_are_not_paths(self, path):
        with pytest.raises(OSError) as caught:
            load_audio(path)
        assert len(str(caught.value)) < 2000

    def test_a_file_without_permission(self, tmp_path, wav_path, monkeypatch):
        def refuse(path, *args, **kwargs):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError, match=r"clip\.wav: the audio file cannot be opened \(Permission denied\)"):
            load_audio(wav_path)


class TestSize:
    @pytest.mark.parametrize("form", ["path", "bytes", "bytearray", "memoryview", "file", "dictionary", "data URI"])
    def test_encoded_bytes(self, wav_path, form):
        content = wav_path.read_bytes()
        make_source = {
            "path": lambda: wav_path,
            "bytes": lambda: content,
            "bytearray": lambda: bytearray(content),
            "memoryview": lambda: memoryview(content),
            "file": lambda: io.BytesIO(content),
            "dictionary": lambda: {"bytes": content, "path": None},
            "data URI": lambda: data_uri(content),
        }[form]
        assert_is_the_sine(load_audio(make_source(), limits=AudioLimits(max_bytes=4 * 4000)))
        with pytest.raises(LimitError, match=r"larger than the limit of 8000 bytes.*raise `max_bytes`"):
            load_audio(make_source(), limits=AudioLimits(max_bytes=8000))

    def test_an_endless_file_object(self, deadline):
        class Endless:
            read_bytes = 0

            def read(self, size=-1):
                assert size > 0
                Endless.read_bytes += size
                return bytes(size)

        with pytest.raises(LimitError, match="larger than the limit of 5000000 bytes"):
            load_audio(Endless(), limits=AudioLimits(max_bytes=5_000_000))
        assert Endless.read_bytes < 8_000_000

    def test_an_endless_device_as_a_file_object(self, deadline):
        with open("/dev/zero", "rb") as file, pytest.raises(LimitError, match="larger than the limit"):
            load_audio(file, limits=AudioLimits(max_bytes=5_000_000))

    def test_a_file_object_that_returns_fewer_bytes_than_asked(self, wav_path):
        class Slow(io.BytesIO):
            def read(self, size=-1):
                return super().read(min(size, 1000) if size > 0 else size)

        assert_is_the_sine(load_audio(Slow(wav_path.read_bytes())))

    def test_a_large_sparse_file_is_refused_before_it_is_read(self, deadline, tmp_path):
        with open(tmp_path / "sparse.wav", "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(LimitError, match=r"sparse\.wav: the file is larger than the limit of 1073741824 bytes"):
            load_audio(tmp_path / "sparse.wav")


# Small files that contain hours of silence.
HOURS = {
    "FLAC": lambda silence: encode(silence, 8000, format="FLAC"),
    "Ogg Vorbis": lambda silence: encode(silence, 8000, format="OGG", subtype="VORBIS"),
    "MP3": lambda silence: encode(silence, 8000, format="MP3", bitrate_mode="VARIABLE", compression_level=0.99),
    "WebM": lambda silence: encode_by_av(silence, 8000, "webm", "libopus"),
    "M4A": lambda silence: encode_by_av(silence, 8000, "ipod", "alac"),
    "WavPack": lambda silence: encode_by_av(silence, 8000, "wv", "wavpack"),
}


class TestDuration:
    @pytest.fixture(scope="class")
    def bombs(self):
        pytest.importorskip("av")
        silence = np.zeros(90 * 8000, "f4")
        return {name: encode_hours(silence) for name, encode_hours in HOURS.items()}

    @pytest.mark.parametrize("case", HOURS)
    def test_long_silence_in_a_small_file(self, bombs, case):
        content = bombs[case]
        with pytest.raises(LimitError, match=r"longer than the limit of 60 seconds.*raise `max_seconds`"):
            load_audio(content, limits=AudioLimits(max_seconds=60))

    @pytest.mark.parametrize("case", HOURS)
    def test_decoded_bytes(self, bombs, case):
        content = bombs[case]
        limits = AudioLimits(max_bytes=len(content) + 100_000, max_seconds=math.inf)
        with pytest.raises(LimitError, match="the decoded audio is larger than the limit"):
            load_audio(content, limits=limits)

    @pytest.mark.parametrize("case", ["FLAC", "WebM", "MP3"])
    def test_decoding_stops_at_the_limit(self, bombs, case):
        """Memory stays near the limit, and does not grow to all of the decoded samples (29 MB for WebM)."""
        import tracemalloc

        tracemalloc.start()
        with pytest.raises(LimitError):
            load_audio(bombs[case], limits=AudioLimits(max_seconds=1))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5_000_000

    @pytest.mark.parametrize("case", ["FLAC", "WebM", "MP3"])
    def test_the_time_of_decoding(self, bombs, case):
        with pytest.raises(LimitError, match=r"longer than the limit of 0\.0001 seconds.*`decoding_seconds`"):
            load_audio(bombs[case], limits=AudioLimits(decoding_seconds=1e-4))

    def test_the_files_of_a_joined_file_count_together(self):
        content = encode(sine(seconds=1.0)) * 3
        assert len(load_audio(content, limits=AudioLimits(max_seconds=3))) == 3 * SAMPLING_RATE
        with pytest.raises(LimitError, match="longer than the limit of 2.5 seconds"):
            load_audio(content, limits=AudioLimits(max_seconds=2.5))

    def test_an_attempt_that_failed_does_not_count(self):
        """The FLAC is decoded twice, because its header declares too little for soundfile."""
        pytest.importorskip("av")
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8 * SAMPLING_RATE).astype("f4")
        content = bytearray(encode(noise, format="FLAC"))
        content[21:26] = (content[21] & 0xF0).to_bytes(1, "big") + (6 * SAMPLING_RATE).to_bytes(4, "big")
        assert len(load_audio(content, limits=AudioLimits(max_seconds=8))) == 8 * SAMPLING_RATE

    def test_the_declared_length_of_a_torchcodec_decoder(self):
        class AudioDecoder:
            metadata = type("Metadata", (), {"duration_seconds": 7200.0})()

            def get_all_samples(self):
                raise AssertionError("all samples are decoded")

        with pytest.raises(LimitError, match=r"the clip of 7200\.0 seconds is longer than the limit of 3600 seconds"):
            load_audio(AudioDecoder())


class TestPictures:
    """FFmpeg decodes pictures and videos to find out their format, and they can be bombs too."""

    @staticmethod
    def picture(width, height):
        def chunk(name, content):
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        compressor = zlib.compressobj(9)
        pixels = b"".join(compressor.compress(bytes(1 + 3 * width)) for _ in range(height)) + compressor.flush()
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    @pytest.mark.parametrize("container", ["MP3", "FLAC"])
    def test_a_cover_is_not_decoded(self, container):
        pytest.importorskip("av")
        picture = self.picture(6_000, 6_000)
        content = encode(sine(seconds=2.0), format=container)
        if container == "MP3":
            frame = b"\0image/png\0\x03\0" + picture
            frame = b"APIC" + struct.pack(">I", len(frame)) + b"\0\0" + frame
            size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
            content = b"ID3\x03\0\0" + size + frame + content
        else:
            block = struct.pack(">II", 3, 9) + b"image/png" + struct.pack(">IIIII", 0, 0, 0, 0, 0)
            block += struct.pack(">I", len(picture)) + picture
            # After STREAMINFO.
            content = content[:42] + b"\x06" + len(block).to_bytes(3, "big") + block + content[42:]
        refs = Path("/proc/self/clear_refs")
        if not os.access(refs, os.W_OK):
            pytest.skip("the peak of memory cannot be reset here")
        refs.write_text("5")
        before = peak_megabytes()
        decoded = decode_by_ffmpeg(content, DecodingBudget("clip", AudioLimits()))
        assert decoded.problem is None and abs(len(decoded.segments[0].waveform) / SAMPLING_RATE - 2) < 0.1
        assert peak_megabytes() - before < 60


def peak_megabytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class TestDefaults:
    @pytest.fixture(autouse=True)
    def restore(self):
        previous = set_default_limits(AudioLimits())
        yield
        set_default_limits(previous)

    def test_the_default_holds_for_calls_without_limits(self, wav_path):
        previous = set_default_limits(AudioLimits(max_seconds=0.1))
        assert previous == AudioLimits()
        with pytest.raises(LimitError, match="longer than the limit of 0.1 seconds"):
            load_audio(wav_path)
        assert_is_the_sine(load_audio(wav_path, limits=AudioLimits()))
        assert set_default_limits(previous) == AudioLimits(max_seconds=0.1)
        assert_is_the_sine(load_audio(wav_path))

    def test_the_default_holds_in_other_threads(self, wav_path):
        set_default_limits(AudioLimits(max_seconds=0.1))
        errors = []

        def load():
            try:
                load_audio(wav_path)
            except LimitError as error:
                errors.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        assert len(errors) == 1

    @pytest.mark.parametrize("value", [0, -1, math.nan, "60", None, True, [1]])
    @pytest.mark.parametrize("name", ["max_seconds", "max_bytes", "download_seconds", "decoding_seconds"])
    def test_invalid_limits(self, name, value):
        with pytest.raises(ValueError, match=f"AudioLimits: `{name}` must be a number above 0"):
            AudioLimits(**{name: value})

    def test_invalid_types(self, wav_path):
        with pytest.raises(ValueError, match="`allow_private_addresses` must be True or False"):
            AudioLimits(allow_private_addresses="no")
        with pytest.raises(TypeError, match="`limits` must be an `AudioLimits`, got a dict"):
            load_audio(wav_path, limits={"max_seconds": 3})
        with pytest.raises(TypeError, match="`limits` must be an `AudioLimits`, got a NoneType"):
            set_default_limits(None)


class TestDataUris:
    @pytest.mark.parametrize(
        "header",
        [
            "data:audio/wav;base64",
            "data:;base64",
            "DATA:audio/x-wav;codecs=1;BASE64",
            "data:application/octet-stream;base64",
        ],
    )
    def test_base64(self, header):
        assert_is_the_sine(load_audio(data_uri(encode(sine()), header)))

    @pytest.mark.parametrize("form", ["url-safe", "without padding", "escaped", "in lines"])
    def test_spellings(self, form):
        uri = data_uri(encode(sine()))
        header, payload = uri.split(",")
        assert "+" in payload or "/" in payload
        payload = {
            "url-safe": payload.replace("+", "-").replace("/", "_"),
            "without padding": payload.rstrip("="),
            "escaped": payload.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
            "in lines": "\n".join(payload[i : i + 76] for i in range(0, len(payload), 76)),
        }[form]
        assert_is_the_sine(load_audio(f"{header},{payload}"))

    @pytest.mark.parametrize(
        "uri", ["data:audio/wav,RIFF", "data:audio/wav;base64", "data:", "data:audio/wav;base64,R!FF"]
    )
    def test_refusals(self, uri):
        with pytest.raises(ValueError, match=r"data:[\w/]*: the data URI is not (in|valid) base64"):
            load_audio(uri)

    def test_messages_do_not_contain_the_content(self):
        with pytest.raises(OSError, match=r"^data:audio/wav is not an audio file") as caught:
            load_audio(data_uri(b"These are notes, and not sound.\n" * 1000))
        assert len(str(caught.value)) < 500
