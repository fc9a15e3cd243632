"""`policyd fetch` against a real web server: the message of every guard, and the old list in force, byte for byte."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import time
import zlib
from typing import TYPE_CHECKING

import pytest

from policyd.config.list_sources import state_path
from policyd.config.load import load
from policyd.fetch import source as source_module
from policyd.fetch.guards import Rules
from policyd.fetch.run import Choice, fetch
from tests.fetch.web import PageRequest, Web, answer, make_certificate, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLD = b"# the old list\n198.51.100.0/24\n203.0.113.0/24\n"
NEW = b"198.51.100.0/24\n203.0.113.0/24\n8.8.8.0/24\n"
RULES = """\
lists:
  own: 192.0.2.0/24
  drop:
    file: drop.txt
    from: {{url: '{url}', never: [own]{more}}}
rules:
  - {{name: drop, match: {{cidr: $drop}}, action: REJECT}}
tests:
  - {{given: {{client_address: 1.2.3.4}}, expect: DUNNO}}
"""


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as server:
        yield server


def write(folder: Path, url: str, more: str = "") -> Rules:
    (folder / "rules.yaml").write_text(RULES.format(url=url, more=more))
    return Rules(str(folder / "rules.yaml"), None)


def slow(request: PageRequest) -> None:
    """Sends a body in small pieces, for two seconds."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    for _ in range(40):
        request.wfile.write(b"8.8.8.8\n")
        request.wfile.flush()
        time.sleep(0.05)


def trickle(request: PageRequest) -> None:
    """Sends a header byte by byte, for more than three seconds, without its end."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + bytes(b"x" * 60):
        request.wfile.write(bytes([byte]))
        request.wfile.flush()
        time.sleep(0.05)


def zeros(size: int) -> bytes:
    """Returns this number of NUL bytes, compressed with gzip."""
    packer = zlib.compressobj(wbits=31)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


def records(count: int) -> bytes:
    """Returns a list of two networks whose last line says that there are `count`."""
    lines = [json.dumps({"cidr": "8.8.8.0/24"}), json.dumps({"cidr": "8.8.4.0/24"})]
    return "\n".join([*lines, json.dumps({"type": "metadata", "records": count}), ""]).encode()


def chunk_cut_short(request: PageRequest) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"400\r\n8.8.8.0/24\n")


GUARDS: dict[str, tuple[Callable[[Web], Callable[[PageRequest], None]], str, str]] = {
    "an error page with 200": (
        lambda _: answer(b"<html>Sorry</html>"),
        "",
        "an HTML or XML page arrived instead of a list",
    ),
    "nothing": (lambda _: answer(b"\n"), "", "nothing arrived"),
    "comments only": (
        lambda _: answer(b"# nothing today\n"),
        ", format: plain",
        "the answer: has no entry in the format plain",
    ),
    "binary data": (lambda _: answer(b"\0\1\2"), "", "binary data arrived instead of a list"),
    "half a body": (lambda _: answer(NEW, length=500), "", "was cut short: the connection ended before the file did"),
    "half a chunk": (lambda _: chunk_cut_short, "", "was cut short: the connection ended before the file did"),
    "half a compressed body": (
        lambda _: answer(gzip.compress(NEW)[:-9], Content_Encoding="gzip"),
        "",
        "was cut short: the compressed data have no end",
    ),
    "damaged compressed data": (lambda _: answer(b"\x1f\x8b garbage"), "", "the compressed data are damaged"),
    "another encoding": (lambda _: answer(NEW, Content_Encoding="br"), "", "Content-Encoding 'br' was not asked for"),
    "fewer records than the last line says": (
        lambda _: answer(records(3)),
        ", format: spamhaus-drop",
        "the answer:3: the list has 3 records, and 2 of them are in the file; nothing was imported; get the file again",
    ),
    "a line that is not an entry": (
        lambda _: answer(NEW + b"not an entry\n"),
        "",
        "line 4 is not an entry: 'not an entry': more than one word; an entry is a single word",
    ),
    "not found": (lambda _: answer(b"", 404), "", "the server answers 404 Not Found"),
    "a server that asks to wait": (
        lambda _: answer(b"", 429, Retry_After="3600"),
        "",
        "the server answers 429 Too Many Requests; the server asks to wait 3600 s",
    ),
    "a redirect to file:": (
        lambda _: answer(b"", 302, Location="file:///etc/passwd"),
        "",
        "the redirect to 'file:///etc/passwd' is not followed: it does not begin with https:// or http://",
    ),
    "a redirect to nowhere": (lambda _: answer(b"", 302), "", "a redirect names no address"),
    "a redirect loop": (lambda _: answer(b"", 301, Location="/drop"), "", "more than 5 redirects"),
    "a gigabyte of zeros": (lambda _: answer(zeros(1 << 30), Content_Encoding="gzip"), "", "is longer than 256 MiB"),
    "a slow body": (lambda _: slow, "", "did not arrive within 1 s"),
    "a header without end": (lambda _: trickle, "", "did not arrive within 1 s"),
    "too few entries": (lambda _: answer(NEW), ", min_entries: 500", "has 3 entries, fewer than min_entries 500"),
    "too many changes": (
        lambda _: answer(b"8.8.8.0/24\n203.0.113.0/24\n"),
        ", max_change: 30%",
        "changes 100% of 2 entries (+1 -1), more than max_change 30%",
    ),
    "a network that is too large": (
        lambda _: answer(b"8.0.0.0/7\n198.51.100.0/24\n203.0.113.0/24\n"),
        "",
        "8.0.0.0/7 is larger than a /8",
    ),
    "an IPv6 network that is too large": (
        lambda _: answer(b"2400::/18\n198.51.100.0/24\n203.0.113.0/24\n"),
        "",
        "2400::/18 is larger than a /19",
    ),
    "a private network": (
        lambda _: answer(OLD + b"10.0.0.0/8\n"),
        "",
        "10.0.0.0/8 covers or lies in 10.0.0.0/8 of the reserved networks (allow_reserved)",
    ),
    "part of link-local": (
        lambda _: answer(OLD + b"fe80::/64\n"),
        "",
        "fe80::/64 covers or lies in fe80::/10 of the reserved networks (allow_reserved)",
    ),
    "part of an own network": (
        lambda _: answer(OLD + b"192.0.2.128/25\n"),
        "",
        "192.0.2.128/25 covers or lies in 192.0.2.0/24 of list 'own' (never)",
    ),
    "a network that covers an own network": (
        lambda _: answer(OLD + b"192.0.0.0/16\n"),
        "",
        "192.0.0.0/16 covers or lies in 192.0.2.0/24 of list 'own' (never)",
    ),
}


@pytest.mark.parametrize("case", list(GUARDS))
@pytest.mark.slow
def test_a_refused_copy_leaves_the_old_list_in_force(
    case: str, tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, more, reason = GUARDS[case]
    web.pages["/drop"] = make(web)
    monkeypatch.setattr(source_module, "MAX_SECONDS", 1.0 if case in {"a slow body", "a header without end"} else 60.0)
    (tmp_path / "drop.txt").write_bytes(OLD)
    outcome = fetch(write(tmp_path, web.url("/drop"), more), Choice())
    assert outcome.refused == [f"drop: refused: {reason}"]
    assert (outcome.messages, outcome.changed) == ([], [])
    assert (tmp_path / "drop.txt").read_bytes() == OLD
    left = {path.name for path in tmp_path.iterdir()} - {".drop.txt.retry"}
    assert left == {"drop.txt", "rules.yaml"}


def test_a_list_that_makes_a_test_of_the_ruleset_fail_is_refused(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(OLD + b"1.2.3.0/24\n")
    (tmp_path / "drop.txt").write_bytes(OLD)
    (refused,) = fetch(write(tmp_path, web.url("/drop")), Choice()).refused
    assert refused.startswith(f"drop: refused: the ruleset does not accept it: {tmp_path / 'rules.yaml'}:9:")
    assert (tmp_path / "drop.txt").read_bytes() == OLD


def test_a_good_copy_replaces_the_old_list_and_keeps_it_as_previous(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(NEW, ETag='"1"', Last_Modified="Sun, 29 Nov 2026 12:00:00 GMT")
    (tmp_path / "drop.txt").write_bytes(OLD)
    (tmp_path / "drop.txt").chmod(0o604)
    rules = write(tmp_path, web.url("/drop"))
    assert fetch(rules, Choice(dry_run=True)).messages == ["drop: 3 entries (+1 -0) (dry run: not put in place)"]
    assert (tmp_path / "drop.txt").read_bytes() == OLD
    outcome = fetch(rules, Choice())
    assert (outcome.messages, outcome.refused, outcome.changed) == (["drop: 3 entries (+1 -0)"], [], ["drop"])
    assert (tmp_path / "drop.txt").read_bytes().endswith(b"8.8.8.0/24\n")
    assert (tmp_path / "drop.txt").stat().st_mode & 0o777 == 0o604
    assert (tmp_path / "drop.txt.previous").read_bytes() == OLD
    assert fetch(rules, Choice()).messages == ["drop: not due for 24.0 h"]
    before = len(web.requests)
    old = time.time() - 2 * 86400
    os.utime(state_path(str(tmp_path / "drop.txt")), (old, old))
    web.pages["/drop"] = answer(b"", 304)
    assert fetch(rules, Choice()).messages == ["drop: unchanged"]
    _, headers = web.requests[before]
    assert (headers["If-None-Match"], headers["If-Modified-Since"]) == ('"1"', "Sun, 29 Nov 2026 12:00:00 GMT")
    assert fetch(rules, Choice()).messages == ["drop: not due for 24.0 h"]


def test_a_run_does_not_replace_a_list_that_another_run_has_just_replaced(tmp_path: Path, web: Web) -> None:
    (tmp_path / "drop.txt").write_bytes(OLD)
    rules = write(tmp_path, web.url("/drop"))
    other_outcomes = []

    def answer_late(request: PageRequest) -> None:
        web.pages["/drop"] = answer(NEW)
        other_outcomes.append(fetch(rules, Choice()))
        answer(OLD + b"8.8.4.0/24\n")(request)

    web.pages["/drop"] = answer_late
    outcome = fetch(rules, Choice())
    assert [other.changed for other in other_outcomes] == [["drop"]]
    assert (outcome.changed, outcome.refused) == ([], [])
    assert outcome.messages == ["drop: left alone: it was replaced while this ran"]
    assert (tmp_path / "drop.txt").read_bytes().endswith(b"8.8.8.0/24\n")
    assert (tmp_path / "drop.txt.previous").read_bytes() == OLD
    assert not [*tmp_path.glob(".*checked")]


def test_an_edited_list_is_fetched_even_if_the_source_has_not_changed(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(NEW, ETag='"1"')
    rules = write(tmp_path, web.url("/drop"))
    fetch(rules, Choice())
    (tmp_path / "drop.txt").write_bytes(OLD)
    os.utime(state_path(str(tmp_path / "drop.txt")), (0, 0))
    assert fetch(rules, Choice()).changed == ["drop"]
    assert "If-None-Match" not in web.requests[-1][1]


def test_a_server_that_asks_to_wait_is_not_asked_again(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(b"", 429, Retry_After="3600")
    rules = write(tmp_path, web.url("/drop"))
    fetch(rules, Choice())
    assert fetch(rules, Choice()).messages == ["drop: not due for 1.0 h"]
    assert len(web.requests) == 1


def test_accept_skips_the_guards_on_the_size_of_a_list(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(b"8.8.8.0/24\n")
    (tmp_path / "drop.txt").write_bytes(OLD)
    rules = write(tmp_path, web.url("/drop"), ", min_entries: 5")
    assert fetch(rules, Choice()).refused
    assert fetch(rules, Choice(accept=["drop"])).changed == ["drop"]


def test_max_change_does_not_apply_to_a_first_copy_and_gzip_is_accepted(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(gzip.compress(NEW[:30]) + gzip.compress(NEW[30:]))
    assert fetch(write(tmp_path, web.url("/drop")), Choice()).messages == ["drop: 3 entries (+3 -0)"]


def test_a_failed_source_does_not_stop_another(tmp_path: Path, web: Web) -> None:
    web.pages |= {"/good": answer(NEW), "/bad": answer(b"", 500)}
    (tmp_path / "rules.yaml").write_text(
        f"lists:\n  good: {{file: good.txt, from: {{url: '{web.url('/good')}'}}}}\n"
        f"  bad: {{file: bad.txt, from: {{url: '{web.url('/bad')}'}}}}\n"
        "rules:\n  - {name: both, match: {cidr: [$good, $bad]}, action: REJECT}\n"
    )
    outcome = fetch(Rules(str(tmp_path / "rules.yaml"), None), Choice())
    assert (outcome.changed, outcome.refused) == (
        ["good"],
        ["bad: refused: the server answers 500 Internal Server Error"],
    )


def test_a_fetched_list_that_was_removed_is_fetched_again(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(NEW)
    rules = write(tmp_path, web.url("/drop"))
    fetch(rules, Choice())
    (tmp_path / "drop.txt").unlink()
    assert fetch(rules, Choice()).changed == ["drop"]


def test_names_are_kept_as_written_and_protected_names_are_refused(tmp_path: Path, web: Web) -> None:
    web.pages["/names"] = answer(b"bad.example\n# comment\nworse.example\n")
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "lists:\n  own: mail.bad.example\n"
        f"  names: {{file: names.txt, from: {{url: '{web.url('/names')}', never: own}}}}\n"
        "rules:\n  - {name: names, match: {hostname_suffix: $names}, action: REJECT}\n"
    )
    refused = fetch(Rules(str(rules), None), Choice()).refused
    assert refused == ["names: refused: bad.example covers or lies in mail.bad.example of list 'own' (never)"]
    rules.write_text(rules.read_text().replace("mail.bad", "mail.good"))
    assert fetch(Rules(str(rules), None), Choice()).changed == ["names"]
    assert (tmp_path / "names.txt").read_bytes() == b"bad.example\n# comment\nworse.example\n"


def test_certificates_are_checked_and_redirects_to_http_refused(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    web.pages["/drop"] = answer(NEW)
    with serve(certificate) as secure:
        secure.pages |= {"/drop": answer(NEW), "/down": answer(b"", 302, Location=web.url("/drop"))}
        web.pages["/up"] = answer(b"", 302, Location=secure.url("/drop"))
        (refused,) = fetch(write(tmp_path, secure.url("/drop")), Choice()).refused
        assert refused.startswith("drop: refused: the server's certificate or TLS is not accepted: ")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
        down = fetch(write(tmp_path, secure.url("/down")), Choice()).refused
        assert down == [
            f"drop: refused: the redirect to '{web.url('/drop')}' is not followed: it leads from https to http"
        ]
        assert fetch(write(tmp_path, web.url("/up")), Choice()).changed == ["drop"]


def test_the_key_is_sent_and_never_shown(tmp_path: Path, web: Web) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    web.pages["/s3cret/drop"] = answer(b"", 302, Location="file:///s3cret")
    (refused,) = fetch(write(tmp_path, web.url("/{key}/drop"), ", key_file: key"), Choice()).refused
    assert web.requests[0][0] == "/s3cret/drop"
    assert "s3cret" not in refused
    assert "{key}" in refused


def test_check_warns_of_a_list_that_is_not_kept_current(tmp_path: Path, web: Web) -> None:
    web.pages["/drop"] = answer(NEW)
    rules = write(tmp_path, web.url("/drop"))
    fetch(rules, Choice())
    today = datetime.date(2026, 11, 29)
    assert load(rules_path=rules.path, warnings_on=today).warning_lines == ()
    old = time.time() - 3 * 86400
    os.utime(state_path(str(tmp_path / "drop.txt")), (old, old))
    (warning,) = load(rules_path=rules.path, warnings_on=today).warning_lines
    assert warning == (
        f"{tmp_path / 'drop.txt'}: warning: list 'drop' has not been fetched for 3.0 days, more than twice its "
        "interval; run policyd fetch"
    )
