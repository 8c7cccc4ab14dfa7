"""A web page of another site cannot ask a server without a key by the name of that site."""

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette

from peft_listen.serving import ServerSettings
from peft_listen.serving.host_check import HostCheck
from tests.serving.conftest import MODEL, running


def ask(url, host, method="POST", headers=None):
    """Status, headers and content of the answer to a request with this `Host`."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname, address.port, timeout=60)
    path = {"POST": "/v1/chat/completions", "GET": "/v1/models", "OPTIONS": "/v1/chat/completions"}[method]
    connection.putrequest(method, path, skip_host=True)
    body = json.dumps({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "What?"}]}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    for name, value in {"Host": host, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "192.168.1.7:1"],
)
def test_addresses_and_localhost_are_known(url, host):
    assert ask(url, host)[0] == 200
    assert ask(url, host, "GET")[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[::1",
        "",
        "a b",
        "1.2.3",
    ],
)
def test_the_name_of_another_site_is_refused(url, host):
    for method in ("POST", "GET"):
        status, _, content = ask(url, host, method)
        error = json.loads(content)["error"]
        assert (status, error["code"]) == (403, "unknown_host") and "--allowed-host" in error["message"]


def test_further_names_can_be_allowed(models):
    with running(models, allowed_hosts=["My-Server.example"]) as url:
        assert ask(url, "my-server.EXAMPLE:8000")[0] == 200
        assert ask(url, "other.my-server.example")[0] == 403
        assert ask(url, "localhost")[0] == 200


def test_names_that_are_not_ascii_are_sent_in_ascii(models):
    with running(
        models, allowed_hosts=["Stra\N{LATIN SMALL LETTER SHARP S}e.example", "xn--mnchen-3ya.example."]
    ) as url:
        assert ask(url, "xn--strae-oqa.example")[0] == 200
        assert ask(url, "XN--MNCHEN-3YA.example:8000")[0] == 200
        assert ask(url, "strasse.example")[0] == 403


def test_a_server_with_a_key_may_have_any_name(models):
    with running(models, api_key="secret") as url:
        assert ask(url, "evil.example")[0] == 401
        assert ask(url, "public.example", headers={"Authorization": "Bearer secret"})[0] == 200


def test_other_sites_may_not_read_answers(url):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET", "POST"):
        _, found, _ = ask(url, "127.0.0.1", method, headers)
        assert not [name for name in found if name.lower().startswith("access-control")]
    assert ask(url, "127.0.0.1", "OPTIONS", headers)[0] == 405


@pytest.mark.parametrize(
    "hosts",
    ["a.example", ["http://a.example"], ["a.example:80"], ["*"], [""], ["\N{SNOWMAN}.example"], ["\N{EURO SIGN}:80"]],
)
def test_what_is_not_a_name_is_refused(hosts):
    for make in (lambda: ServerSettings(allowed_hosts=hosts), lambda: HostCheck(Starlette(), hosts)):
        with pytest.raises(
            ValueError, match=r"`allowed_hosts` \(.*\) must be a list of names without scheme and port"
        ):
            make()
    with pytest.raises(ValueError, match="^ServerSettings: `allowed_hosts`"):
        ServerSettings(allowed_hosts=hosts)
