"""An HTTP proxy for tests: forwards requests for http:// (RFC 9112 section 3.2.2), and opens tunnels for https://."""

from __future__ import annotations

import base64
import contextlib
import selectors
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from collections.abc import Iterator


class _ProxyRequest(BaseHTTPRequestHandler):
    server: Proxy

    def _is_authorized(self) -> bool:
        """Whether the client may use the proxy; if not, sends the refusal."""
        self.server.requests.append(f"{self.command} {self.path}")
        self.close_connection = True
        wanted = self.server.credentials
        if not wanted or self.headers["Proxy-Authorization"] == f"Basic {base64.b64encode(wanted.encode()).decode()}":
            return True
        self.send_error(407)
        return False

    def do_GET(self) -> None:
        if self._is_authorized():
            with build_opener(ProxyHandler({})).open(self.path) as page:
                body = page.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_CONNECT(self) -> None:
        if not self._is_authorized():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as server, contextlib.suppress(OSError):
            self.send_response(200)
            self.end_headers()
            self._tunnel(server)

    def _tunnel(self, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, self.connection)
            while True:
                for key, _ in selector.select(10):
                    assert isinstance(key.fileobj, socket.socket)
                    piece = key.fileobj.recv(1 << 16)
                    if not piece:
                        return
                    key.data.sendall(piece)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


class Proxy(ThreadingHTTPServer):
    """The proxy: its `requests`, and the `credentials` (`user:password`) that it requires, if any."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyRequest)
        self.requests: list[str] = []
        self.credentials = ""


@contextlib.contextmanager
def proxy() -> Iterator[Proxy]:
    """A running proxy."""
    server = Proxy()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
