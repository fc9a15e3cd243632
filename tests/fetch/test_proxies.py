"""`policyd fetch` behind an HTTP proxy, which the environment names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policyd.fetch.source import FetchError, Validators, get
from tests.fetch.proxy import Proxy, proxy
from tests.fetch.web import Web, answer, make_certificate, serve
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIST = b"8.8.8.0/24\n"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as server:
        server.pages["/drop"] = answer(LIST)
        yield server


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that the environment names for both schemes."""
    with proxy() as server:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        yield server


def content_of(url: str) -> bytes | None:
    return get(url, "", Validators()).content


def test_http_goes_through_the_proxy(web: Web, between: Proxy) -> None:
    assert content_of(web.url("/drop")) == LIST
    assert between.requests == [f"GET {web.url('/drop')}"]


def test_https_uses_a_tunnel_with_certificate_checks_and_without_redirects_to_http(
    web: Web, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(make_certificate(tmp_path)) as secure:
        secure.pages |= {"/drop": answer(LIST), "/down": answer(b"", 302, Location=web.url("/drop"))}
        with pytest.raises(FetchError, match="the server's certificate or TLS is not accepted"):
            content_of(secure.url("/drop"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
        assert content_of(secure.url("/drop")) == LIST
        with pytest.raises(FetchError, match="it leads from https to http"):
            content_of(secure.url("/down"))
    assert set(between.requests) == {f"CONNECT 127.0.0.1:{secure.server_port}"}


def test_hosts_in_no_proxy_are_asked_directly(web: Web, between: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "lists.example, 127.0.0.1")
    assert content_of(web.url("/drop")) == LIST
    assert between.requests == []


def test_each_redirect_uses_the_proxy_of_its_scheme(
    web: Web, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
    with serve(make_certificate(tmp_path)) as secure:
        secure.pages["/drop"] = answer(LIST)
        web.pages["/up"] = answer(b"", 302, Location=secure.url("/drop"))
        assert content_of(web.url("/up")) == LIST
    assert between.requests == [f"CONNECT 127.0.0.1:{secure.server_port}"]


def test_a_proxy_gets_its_password_and_no_message_shows_it(
    web: Web, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    between.credentials = "mx:se cret"
    with pytest.raises(FetchError, match="the server answers 407 Proxy Authentication Required"):
        content_of(web.url("/drop"))
    monkeypatch.setenv("http_proxy", f"http://mx:se%20cret@127.0.0.1:{between.server_port}")
    assert content_of(web.url("/drop")) == LIST
    monkeypatch.setenv("https_proxy", f"http://mx:wrong-word@127.0.0.1:{between.server_port}")
    with pytest.raises(FetchError, match=r"^the proxy that the environment names does not connect: .*407") as caught:
        content_of("https://127.0.0.1/drop")
    monkeypatch.setenv("http_proxy", f"http://mx:wrong-word@127.0.0.1:{free_port()}")
    with pytest.raises(FetchError, match="the proxy that the environment names does not connect") as away:
        content_of(web.url("/drop"))
    assert "wrong-word" not in f"{caught.value} {away.value}"


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "http://", "http://[::1", "file:///etc/passwd"])
def test_an_invalid_proxy_is_named_by_its_variable(value: str, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(FetchError, match=r"^the environment's http_proxy is not a URL"):
        content_of(web.url("/drop"))
