"""Downloads a list or a database over HTTP, within limits of size, time and redirects.

A redirect never leads from https to http or to another scheme. A truncated, oversized or slow answer raises
`FetchError`, whose message is one line and never contains a key or a proxy's password.

Uses the proxies that the environment names (`https_proxy`, `http_proxy`, `no_proxy`); urllib3 does not read these.
"""

from __future__ import annotations

import threading
import time
import zlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from policyd import __version__
from policyd.config.files import MAX_LIST_BYTES
from policyd.config.key_file import KEY
from policyd.config.list_sources import url_problem
from policyd.core.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

# Maximum number of redirects.
MAX_REDIRECTS = 5

# Maximum seconds of a download with its redirects, and of one connection or read.
MAX_SECONDS = 300.0
READ_SECONDS = 30.0

# Seconds beyond MAX_SECONDS in which the thread may itself report that the time is up.
_GRACE_SECONDS = 1.0

# Maximum seconds of Retry-After that are obeyed; a longer wait would leave the list outdated.
MAX_WAIT = 86400.0

# Maximum bytes read or decompressed at once.
_PIECE = 1 << 16
_GZIP = b"\x1f\x8b"
_REDIRECTS = {301, 302, 303, 307, 308}


class FetchError(Exception):
    """The file cannot be fetched. The message is one line; `retry_after` is how long the server asks to wait (s)."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(printable(message))
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Validators:
    """Headers that tell the server which copy is already here (RFC 9110 section 8.8)."""

    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer: the file's bytes (None if they have not changed), and the validators for the next fetch."""

    content: bytes | None
    validators: Validators


def get(url: str, key: str, validators: Validators, max_bytes: int = MAX_LIST_BYTES) -> Fetched:
    """Gets the file at `url`, in which `{key}` stands for the key. Raises FetchError.

    A thread does the work and is left behind, with its connection, if it takes too long. The timeouts of a socket are
    not enough: they start again with each byte, so a server that sends a byte now and then never reaches them.
    """
    found: list[Fetched | Exception] = []

    def run() -> None:
        try:
            found.append(_get(url, key, validators, max_bytes))
        except Exception as error:  # noqa: BLE001 - raised by the caller's thread
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS + _GRACE_SECONDS)
    if not found:
        raise FetchError(f"did not arrive within {MAX_SECONDS:.0f} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _get(url: str, key: str, validators: Validators, max_bytes: int) -> Fetched:
    deadline = time.monotonic() + MAX_SECONDS
    headers = {"User-Agent": f"policyd/{__version__}", "Accept-Encoding": "gzip"}
    if validators.etag:
        headers["If-None-Match"] = validators.etag
    if validators.last_modified:
        headers["If-Modified-Since"] = validators.last_modified
    address = url.replace(KEY, key)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with _pool(address) as pool:
                response = pool.request("GET", address, headers=headers, redirect=False, preload_content=False)
                try:
                    if response.status not in _REDIRECTS:
                        return _read(response, deadline, max_bytes)
                    address = _redirected(address, response.headers.get("Location", ""), key)
                finally:
                    response.close()
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")
    except urllib3.exceptions.HTTPError as error:
        raise FetchError(_without_key(_describe(error), key)) from None
    except (ValueError, OSError) as error:  # an unreadable certificate store, an invalid header
        raise FetchError(_without_key(f"cannot be fetched: {error}", key)) from None


def _pool(address: str) -> urllib3.PoolManager:
    """Connections for one address: to the server, or to the proxy that the environment names. Raises FetchError."""
    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    timeout = urllib3.Timeout(READ_SECONDS)
    if not proxy or proxy_bypass(parts.netloc):
        return urllib3.PoolManager(retries=False, timeout=timeout)
    name = f"{parts.scheme}_proxy"
    try:
        url = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
    except urllib3.exceptions.LocationParseError:
        raise FetchError(f"the environment's {name} is not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise FetchError(f"the environment's {name} is not a URL that begins with http:// or https://")
    headers = urllib3.make_headers(proxy_basic_auth=unquote(url.auth)) if url.auth else None
    return urllib3.ProxyManager(url._replace(auth=None).url, proxy_headers=headers, retries=False, timeout=timeout)


def _read(response: urllib3.BaseHTTPResponse, deadline: float, max_bytes: int) -> Fetched:
    if response.status == 304:
        return Fetched(None, Validators())
    if response.status != 200:
        reason = f" {response.reason}" if response.reason else ""
        wait = _retry_after(response.headers.get("Retry-After", ""))
        asks = "" if wait is None else f"; the server asks to wait {wait:.0f} s"
        raise FetchError(f"the server answers {response.status}{reason}{asks}", wait)
    pieces: list[bytes] = []
    size = 0
    for piece in _plain(_pieces(response, deadline)):
        size += len(piece)
        if size > max_bytes:
            raise FetchError(f"is longer than {max_bytes >> 20} MiB")
        pieces.append(piece)
    found = Validators(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
    return Fetched(b"".join(pieces), found)


def _pieces(response: urllib3.BaseHTTPResponse, deadline: float) -> Iterator[bytes]:
    """The body as sent; `_plain` decompresses it, so that the size limit applies to the decompressed bytes."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip", "x-gzip", ""}:
        raise FetchError(f"Content-Encoding {encoding[:40]!r} was not asked for")
    while piece := response.read1(_PIECE, decode_content=False):
        if time.monotonic() > deadline:
            raise FetchError(f"did not arrive within {MAX_SECONDS:.0f} s")
        yield piece


def _plain(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The body without gzip, whether the transfer or the file was compressed."""
    first = b""
    while len(first) < len(_GZIP) and (piece := next(pieces, b"")):
        first += piece
    if not first.startswith(_GZIP):
        yield first
        yield from pieces
        return
    inflater = zlib.decompressobj(wbits=31)
    piece = first
    try:
        while piece:
            if inflater.eof:  # concatenated gzip files are one file (RFC 1952 section 2.2)
                inflater = zlib.decompressobj(wbits=31)
            yield inflater.decompress(piece, _PIECE)
            piece = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            piece = piece or next(pieces, b"")
        yield inflater.flush()
    except zlib.error:
        raise FetchError("the compressed data are damaged") from None
    if not inflater.eof:
        raise FetchError("was cut short: the compressed data have no end")


def _redirected(address: str, location: str, key: str) -> str:
    """Returns the address to which a redirect leads. Raises FetchError if it must not be followed."""
    if not location:
        raise FetchError("a redirect names no address")
    target = urljoin(address, location)
    shown = _without_key(repr(target[:200]), key)
    if problem := url_problem(target):
        raise FetchError(f"the redirect to {shown} is not followed: it {problem}")
    if urlsplit(address).scheme == "https" and urlsplit(target).scheme != "https":
        raise FetchError(f"the redirect to {shown} is not followed: it leads from https to http")
    return target


def _retry_after(text: str) -> float | None:
    """Seconds to wait (RFC 9110 section 10.2.3), at most MAX_WAIT; None if the server does not say."""
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return min(float(text), MAX_WAIT)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), MAX_WAIT)
    except (ValueError, TypeError):
        return None


def _describe(error: urllib3.exceptions.HTTPError) -> str:
    match error:
        case urllib3.exceptions.ProxyError():
            return f"the proxy that the environment names does not connect: {error.original_error}"
        case urllib3.exceptions.IncompleteRead() | urllib3.exceptions.ProtocolError():
            return "was cut short: the connection ended before the file did"
        case urllib3.exceptions.SSLError():
            return f"the server's certificate or TLS is not accepted: {error}"
        case urllib3.exceptions.ConnectTimeoutError() | urllib3.exceptions.ReadTimeoutError():
            return f"the server does not answer within {READ_SECONDS:.0f} s"
        case urllib3.exceptions.NewConnectionError():
            return "no connection to the server"
        case _:
            return f"cannot be fetched: {error}"


def _without_key(text: str, key: str) -> str:
    return text.replace(key, KEY) if key else text
