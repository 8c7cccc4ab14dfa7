"""Downloads: slow servers, redirects, addresses that are not public, and credentials."""

import base64
import logging
import socket
import threading
import time
import traceback
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from peft_listen.audio import AudioLimits, LimitError, display_name, is_url, load_audio
from peft_listen.audio.download import _is_public
from tests.audio.signals import assert_is_the_sine, encode, sine


CLIP = encode(sine())


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, target = self.path.partition("?to=")
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        if path == "/clip.wav":
            self.send_audio()
        elif path == "/private/clip.wav":
            if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"anna:s3cr:t").decode():
                self.send_audio()
            else:
                self.send_error(401, "Login needed")
        elif path.startswith("/redirect"):
            self.send_response(int(path[-3:]))
            self.send_header("Location", target)
            self.end_headers()
        elif path == "/body-drip.wav":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CLIP)))
            self.end_headers()
            self.drip(CLIP)
        elif path == "/endless-drip.wav":
            self.send_response(200)
            self.end_headers()
            self.drip(CLIP)
        elif path == "/chunked-drip.wav":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self.drip(b"1\r\nR\r\n" * 1000)
        elif path == "/header-drip.wav":
            self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Header: value\r\n" * 1000)
        elif path == "/status-drip.wav":
            self.drip(b"HTTP/1.1 200 " + b"O" * 10_000)
        elif path == "/silent.wav":
            self.server.stop.wait(10)
        elif path == "/moved-to-drip":
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /header-drip.wav\r\n\r\n")
        elif path == "/circle":
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /circle\r\n\r\n")
        elif path == "/wrong-length.wav":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nRIFF")
        elif path == "/endless-redirect":
            self.send_response(302)
            self.send_header("Location", "/clip.wav")
            self.end_headers()
            try:
                while not self.server.stop.is_set():
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
        elif path == "/endless.wav":
            self.send_response(200)
            self.end_headers()
            try:
                while not self.server.stop.is_set():
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
        else:
            self.send_error(404, "Nothing here")

    def send_audio(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CLIP)))
        self.end_headers()
        self.wfile.write(CLIP)

    def drip(self, content):
        """Sends a byte each 50 ms, which no timeout of a single read notices."""
        try:
            for byte in content:
                if self.server.stop.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.requests, httpd.stop = [], threading.Event()
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield httpd
    httpd.stop.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def host(server):
    server.requests.clear()
    return f"127.0.0.1:{server.server_port}"


class TestDeadline:
    @pytest.mark.parametrize(
        "name",
        [
            "body-drip.wav",
            "endless-drip.wav",
            "chunked-drip.wav",
            "header-drip.wav",
            "status-drip.wav",
            "silent.wav",
            "moved-to-drip",
        ],
    )
    def test_the_whole_download_has_one_deadline(self, host, name):
        start = time.monotonic()
        with pytest.raises(
            LimitError, match=rf"{name}: the audio could not be downloaded \(timed out.*of 0\.4 seconds"
        ):
            load_audio(f"http://{host}/{name}", limits=AudioLimits(download_seconds=0.4))
        assert time.monotonic() - start < 2

    def test_a_server_that_does_not_accept(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            start = time.monotonic()
            with pytest.raises(OSError, match=r"timed out"):
                load_audio(f"http://127.0.0.1:{listener.getsockname()[1]}/", limits=AudioLimits(download_seconds=0.3))
            with pytest.raises(OSError, match=r"timed out"):
                load_audio(f"https://127.0.0.1:{listener.getsockname()[1]}/", limits=AudioLimits(download_seconds=0.3))
            assert time.monotonic() - start < 3

    def test_no_timer_stays(self, host):
        def timers():
            return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]

        assert_is_the_sine(load_audio(f"http://{host}/clip.wav", limits=AudioLimits(download_seconds=300)))
        deadline = time.monotonic() + 5
        while timers() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not timers()

    def test_a_download_without_an_end(self, host):
        with pytest.raises(LimitError, match=r"endless\.wav: the file is larger than the limit of 1000000 bytes"):
            load_audio(f"http://{host}/endless.wav", limits=AudioLimits(max_bytes=1_000_000))

    def test_an_unlimited_deadline(self, host):
        assert_is_the_sine(load_audio(f"http://{host}/clip.wav", limits=AudioLimits(download_seconds=float("inf"))))

    def test_an_invalid_length(self, host):
        with pytest.raises(OSError, match=r"wrong-length\.wav: the audio could not be downloaded"):
            load_audio(f"http://{host}/wrong-length.wav")


class TestRedirects:
    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize(
        "target", ["/clip.wav", "http://HOST/clip.wav", "HTTP://HOST/clip.wav", "//HOST/clip.wav"]
    )
    def test_redirects_to_http_are_followed(self, host, code, target):
        assert_is_the_sine(load_audio(f"http://{host}/redirect{code}?to={target.replace('HOST', host)}"))

    @pytest.mark.parametrize(
        "target",
        [
            "ftp://HOST/clip.wav",
            "FTP://anna:s3cret@HOST/clip.wav",
            "file:///etc/hostname",
            "file:PATH",
            "data:audio/wav;base64,UklGRg==",
            "gopher://HOST/",
            "javascript:alert(1)",
        ],
    )
    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_redirects_to_other_protocols_are_refused(self, host, wav_path, code, target):
        target = target.replace("HOST", host).replace("PATH", str(wav_path))
        with pytest.raises(
            OSError, match=rf"redirect{code}\?\.\.\.: the server redirects to another protocol"
        ) as caught:
            load_audio(f"http://{host}/redirect{code}?to={target}")
        assert "s3cret" not in str(caught.value)

    def test_the_body_of_a_redirect_is_not_read(self, host):
        begin = time.monotonic()
        assert_is_the_sine(load_audio(f"http://{host}/endless-redirect"))
        assert time.monotonic() - begin < 5

    def test_a_circle(self, host):
        with pytest.raises(OSError, match="answered with HTTP status 302"):
            load_audio(f"http://{host}/circle")


class TestPrivateAddresses:
    LIMITS = AudioLimits(allow_private_addresses=False)

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433"])
    def test_this_machine(self, server, host, name):
        with pytest.raises(OSError, match=r"(is not public|could not be downloaded)"):
            load_audio(f"http://{name}:{server.server_port}/clip.wav", limits=self.LIMITS)
        assert server.requests == []

    @pytest.mark.parametrize(
        "address",
        [
            *("10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.53", "0.0.0.0"),
            *(
                "224.0.0.1",
                "::1",
                "::",
                "fe80::1%eth0",
                "fd00::1",
                "::ffff:10.0.0.1",
                "ff02::1",
                "2002:7f00:1::",
                "64:ff9b::10.0.0.1",
            ),
        ],
    )
    def test_addresses_that_are_not_public(self, monkeypatch, address):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", (address, 80))]
        )
        monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was made"))
        with pytest.raises(OSError, match="has the address .*, which is not public"):
            load_audio("http://innocent.example/clip.wav", limits=self.LIMITS)

    @pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
    def test_public_addresses(self, address):
        assert _is_public(address)

    def test_a_redirect_from_a_public_address(self, server, host, monkeypatch):
        """The name of the first server is public for the check; its redirect leads to this machine by number."""
        from peft_listen.audio import download

        monkeypatch.setattr(download, "_is_public", lambda address: not server.requests)
        with pytest.raises(
            OSError,
            match=r"redirect302\?\.\.\.: the host 127\.0\.0\.1 has the address 127\.0\.0\.1, which is not public",
        ):
            load_audio(f"http://{host}/redirect302?to=http://{host}/clip.wav", limits=self.LIMITS)
        assert len(server.requests) == 1

    def test_they_are_allowed_by_default(self, host):
        assert_is_the_sine(load_audio(f"http://{host}/clip.wav"))

    def test_a_proxy_of_the_environment_is_not_used(self, server, host, monkeypatch):
        monkeypatch.setenv("http_proxy", f"http://{host}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
        with pytest.raises(OSError, match="which is not public"):
            load_audio("http://innocent.example/clip.wav", limits=self.LIMITS)
        assert server.requests == []


SECRET_URLS = [
    "http://anna:s3cret@HOST/missing.wav",
    "http://s3cret@HOST/missing.wav",
    "HTTP://anna:s3cret@HOST/missing.wav",
    "http://anna:s3%63ret-s3cret@HOST/missing.wav",
    "http://HOST/missing.wav?token=s3cret",
    "http://HOST/missing.wav?X-Amz-Signature=s3cret&b=s3cret",
    "http://HOST/missing.wav#s3cret",
    "http://anna:s3cret@HOST/body-drip.wav",
    "http://anna:s3cret@HOST/redirect302?to=ftp://anna:s3cret@HOST/",
    "http://anna:s3cret@HOST/redirect302?to=http://anna:s3cret@127.0.0.1:1/s.wav",
    "http://anna:s3cret@HOST/redirect302?to=http://anna:s3cret@[bad/",
    "http://anna:s3cret@127.0.0.1:1/clip.wav",
    "http://anna:s3cret@host:port/clip.wav",
    "http://anna:/s3cret@HOST/missing.wav",
    "http://anna:#s3cret@HOST/missing.wav",
    "http://anna:s3cret@[::1/clip.wav",
    "http://anna:s3cret@/clip.wav",
    "http://anna:s3cret@no such host/clip.wav",
    "ftp://anna:s3cret@HOST/clip.wav",
    "sftp://anna:s3cret@HOST/clip.wav",
    " http://anna:s3cret@HOST/missing.wav",
]


class TestCredentials:
    @pytest.mark.parametrize("url", SECRET_URLS)
    @pytest.mark.parametrize("form", ["string", "dictionary"])
    def test_no_message_contains_them(self, host, caplog, recwarn, url, form):
        url = url.replace("HOST", host)
        source = {"path": url, "bytes": None} if form == "dictionary" else url
        with caplog.at_level(logging.DEBUG), pytest.raises((OSError, ValueError)) as caught:
            load_audio(source, limits=AudioLimits(download_seconds=0.3))
        # The chain of errors is what a traceback shows; its lines of code contain no values.
        shown = (
            "".join(traceback.format_exception(caught.value)) + caplog.text + str([str(w.message) for w in recwarn])
        )
        assert "s3cret" not in shown and "anna" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["http://anna:s3cr%3At@HOST/private/clip.wav", "http://anna:s3cr:t@HOST/private/clip.wav"]
    )
    def test_they_are_sent_as_basic_authentication(self, host, url):
        assert_is_the_sine(load_audio(url.replace("HOST", host)))

    def test_a_redirect_keeps_them_on_the_same_host(self, host):
        assert_is_the_sine(load_audio(f"http://anna:s3cr:t@{host}/redirect302?to=/private/clip.wav"))

    def test_a_redirect_does_not_send_them_to_another_host(self, server, host):
        other = f"localhost:{server.server_port}"
        assert_is_the_sine(load_audio(f"http://anna:s3cr:t@{host}/redirect302?to=http://{other}/clip.wav"))
        assert [authorization is not None for _, authorization in server.requests] == [True, False]

    def test_names(self):
        assert display_name("http://anna:pw@example.org:80/a@b.wav?x=1#y") == "http://example.org:80/a@b.wav?..."
        assert display_name("https://example.org/a@b.wav") == "https://example.org/a@b.wav"
        assert display_name("folder/a@b?c.wav") == "folder/a@b?c.wav"
        assert display_name("data:audio/mp3;base64,SUQz") == "data:audio/mp3"


class TestUrls:
    @pytest.mark.parametrize("scheme", ["http", "HTTP", "Http", "hTTp"])
    def test_schemes_in_any_letters(self, host, scheme):
        assert_is_the_sine(load_audio(f"{scheme}://{host}/clip.wav"))

    @pytest.mark.parametrize("url", ["http://a/b", "HTTPS://a/b", "Http://a", "data:audio/wav;base64,", "DATA:,"])
    def test_urls(self, url):
        assert is_url(url)

    @pytest.mark.parametrize(
        "path", ["http", "http:/a", "httpx://a", "ftp://a/b", "file:///a", "a/http://b", "data", ""]
    )
    def test_paths(self, path):
        assert not is_url(path)

    def test_spaces_and_letters_outside_ascii_are_escaped(self, server, host):
        with warnings.catch_warnings(), pytest.raises(OSError, match="status 404"):
            warnings.simplefilter("error")
            load_audio(f"http://{host}/größe und klang.wav")
        assert server.requests[0][0] == "/gr%C3%B6%C3%9Fe%20und%20klang.wav"
