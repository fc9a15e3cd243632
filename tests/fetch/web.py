"""A web server for tests: real sockets, one handler for each path, with or without TLS."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Handler = Callable[["PageRequest"], None]


class PageRequest(BaseHTTPRequestHandler):
    """A request; the `pages` of the server answer it."""

    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.server.pages[self.path](self)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


class Web(ThreadingHTTPServer):
    """The server: its `pages` by path, and its `requests`, each with path and headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PageRequest)
        self.pages: dict[str, Handler] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.scheme = "http"

    def url(self, path: str) -> str:
        """The address of a page."""
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"


def answer(body: bytes, status: int = 200, length: int | None = None, **headers: str) -> Handler:
    """Returns a handler that sends this page; `length` is the `Content-Length`, by default that of the body."""

    def handle(request: PageRequest) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return handle


@contextlib.contextmanager
def serve(certificate: Path | None = None) -> Iterator[Web]:
    """A running server; with a certificate (and its key in the same file) over TLS."""
    web = Web()
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        web.socket = context.wrap_socket(web.socket, server_side=True)
        web.scheme = "https"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


def make_certificate(folder: Path) -> Path:
    """Makes a certificate for 127.0.0.1. Returns the file with its key and itself; `c.pem` has no key."""
    path = folder / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    subprocess.run(
        [
            *command.split(),
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            str(path),
            "-out",
            str(folder / "c.pem"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + (folder / "c.pem").read_bytes())
    return path
