"""The page of `policyd stats --html` in a real browser: Debian's package chromium, headless, without network access.

Every request of the browser goes to a proxy in this file, which only records requests.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from policyd.tools.stats.collect import collect
from policyd.tools.stats.html import page
from tests.requirements import require
from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow  # starts programs

CHROMIUM = shutil.which("chromium")


@pytest.fixture(autouse=True)
def _needs_a_browser() -> None:
    require("chromium")


class Outside:
    """A proxy in place of the network: records requests, and answers none."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def _record(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection:
                connection.settimeout(2)
                try:
                    self.requests.append(connection.recv(4096).partition(b"\r\n")[0])
                except TimeoutError:
                    self.requests.append(b"(nothing)")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def outside() -> Iterator[Outside]:
    made = Outside()
    yield made
    made.close()


def is_for_vendor(request: bytes) -> bool:
    """Whether a request is one that the browser makes to its vendor by itself, for example for the time."""
    return b"google" in request


class Rendered(NamedTuple):
    dom: str
    console: list[str]


def show(html: Path, outside: Outside, profile: Path) -> Rendered:
    """Opens a page; returns its document in the browser, and the output on the browser's console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-default-apps",
            "--disable-extensions",
            "--disable-domain-reliability",
            "--no-pings",
            f"--user-data-dir={profile}",
            f"--proxy-server=http://{outside.address}",
            "--proxy-bypass-list=<-loopback>",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            "--dump-dom",
            html.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Rendered(done.stdout, [text for text in done.stderr.splitlines() if "CONSOLE" in text])


def test_the_page_is_drawn_without_an_error_and_without_any_request(tmp_path: Path, outside: Outside) -> None:
    log = tmp_path / "decisions.log"
    evil = r"\x3cimg\x20src=http://outside.example/x.png\x20onerror=alert(1)\x3e"
    log.write_text(line() + line("DEFER", rule="slow") + line(sender=f"a@{evil}", rule=evil) + line("DUNNO", rule=""))
    html = tmp_path / "stats.html"
    html.write_text(page(collect([str(log)])))
    shown = show(html, outside, tmp_path / "profile")
    assert shown.console == []
    assert [request for request in outside.requests if not is_for_vendor(request)] == []
    assert shown.dom.count("<svg") == 5
    assert "4 decisions" in shown.dom
    assert "<img" not in shown.dom


def test_requests_and_failing_scripts_are_detected(tmp_path: Path, outside: Outside) -> None:
    html = tmp_path / "bad.html"
    html.write_text("<body><img src='http://outside.example/x.png'><script>throw new Error('broken')</script></body>")
    shown = show(html, outside, tmp_path / "profile")
    assert any("broken" in text for text in shown.console)
    assert any(b"outside.example" in request for request in outside.requests)
