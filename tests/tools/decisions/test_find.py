"""`policyd find`: finds decisions and mails, and counts their distinct values."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from policyd.decision_log.reader import LoggedDecision, as_json, parse
from policyd.logs import files
from policyd.logs.files import LogError
from policyd.logs.timestamps import parse_since
from policyd.tools.decisions import tally as tallying
from policyd.tools.decisions.find import Search, as_line, every
from policyd.tools.decisions.networks import parse_networks
from policyd.tools.decisions.tally import By, Tally, ValueCount, tally
from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from collections.abc import Iterable

DATA = Path(__file__).parents[2] / "data"

MIDNIGHT = "2026-11-22T00:00:00.000Z"
LINES = (
    line(id="AAAAAAAA", client="h1.vs.sakura.ne.jp[49.212.201.1]", sender="", time="2026-03-01T00:00:00.500+01:00"),
    line(id="BBBBBBBB", client="H2.vs.sakura.ne.jp[49.212.201.2]", time="2026-11-21T17:16:00.123+01:00"),
    line(id="CCCCCCCC", client="unknown[2001:db8::7]", rule="", time="2026-07-01T12:00:00.000+02:00").replace(
        "rdns=verified", "claimed=x.vs.sakura.ne.jp,y.example rdns=mismatch"
    ),
    line("DUNNO", id="DDDDDDDD", rule="", client="unknown[198.51.100.1]", time="2026-07-01T13:30:00.000+02:00").replace(
        "rdns=verified ", ""
    ),
    line("DEFER", id="EEEEEEEE", sender="a\\x20b@Sub.B.example", recipient="C@d.example", time=MIDNIGHT),
    line(id="FFFFFFFF", more="queue_id=x", time="2026-11-22T00:00:01.000+01:00").replace(
        "ms=0.2", 'ms=0.2 reply="no client=evil.example[203.0.113.9] from=<evil@x.example> to=<e@x.example>"'
    ),
)  # fmt: skip


def decision_of(text: str) -> LoggedDecision:
    decision = parse(text.encode())
    assert decision is not None
    return decision


def json_lines(lines: Iterable[str]) -> str:
    return "".join(json.dumps(as_json(decision_of(text)), separators=(",", ":")) + "\n" for text in lines)


@pytest.fixture(params=["text", "json", "syslog", "journal"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A log with LINES, in each form that can be read."""
    path = tmp_path / "log"
    match request.param:
        case "text":
            path.write_text("".join(LINES))
        case "json":
            path.write_text(json_lines(LINES))
        case "syslog":
            path.write_text("".join(f"Nov 21 17:16:00 mx policyd[12]: {text}" for text in LINES))
        case _:
            path.write_text("".join(json.dumps({"MESSAGE": text.rstrip()}) + "\n" for text in LINES))
    return str(path)


def ids(log: str, **wanted: Any) -> str:
    found = every([log], Search(**wanted))
    return "".join(each.source.id.decode()[0] for each in found if isinstance(each.source, LoggedDecision))


def time(text: str) -> float:
    return parse_since(text, 0)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, "ABCDEF"),
        ({"networks": parse_networks(["49.212.201.0/30"])}, "AB"),
        ({"networks": parse_networks(["49.212.201.2"])}, "B"),
        ({"networks": parse_networks(["2001:db8::/32", "198.51.100.1"])}, "CD"),
        ({"networks": parse_networks(["203.0.113.9"])}, ""),
        ({"suffix": "Sakura.ne.jp."}, "ABCEF"),
        ({"suffix": "h1.vs.sakura.ne.jp"}, "A"),
        ({"suffix": ".h1.vs.sakura.ne.jp"}, ""),
        ({"suffix": "y.example"}, "C"),
        ({"suffix": "evil.example"}, ""),
        ({"sender": "<>"}, "A"),
        ({"sender": "A@b.example"}, "BCDF"),
        ({"sender": "b.example"}, "BCDEF"),
        ({"sender": "@sub.b.example"}, "E"),
        ({"sender": "a b@sub.b.example"}, "E"),
        ({"sender": "evil@x.example"}, ""),
        ({"recipient": "c@d.example"}, "ABCDEF"),
        ({"recipient": "x.example"}, ""),
        ({"since": time("2026-07-01T11:30:00+00:00")}, "BDEF"),
        ({"until": time("2026-07-01T11:30:00+00:00")}, "AC"),
        ({"suffix": "sakura.ne.jp", "since": time("2026-03-02"), "until": time("2026-11-01")}, "C"),
    ],
)
def test_matching_lines_are_found_in_every_form_of_the_log(log: str, wanted: dict[str, Any], found: str) -> None:
    assert ids(log, **wanted) == found


EXPECTED_COUNTS = {
    By.CLIENT: [
        ("49.212.201.177", 2), ("198.51.100.1", 1), ("2001:db8::7", 1), ("49.212.201.1", 1), ("49.212.201.2", 1),
    ],
    By.HOSTNAME: [
        ("os3-1-2.vs.sakura.ne.jp", 2), ("h1.vs.sakura.ne.jp", 1), ("h2.vs.sakura.ne.jp", 1), ("unknown", 1),
        ("x.vs.sakura.ne.jp", 1),
    ],
    By.NETWORK: [("49.212.201.0/24", 4), ("198.51.100.0/24", 1), ("2001:db8::/48", 1)],
    By.SENDER: [("a@b.example", 4), ("<>", 1), ("a b@Sub.B.example", 1)],
    By.SENDER_DOMAIN: [("b.example", 4), ("<>", 1), ("sub.b.example", 1)],
    By.RECIPIENT: [("c@d.example", 5), ("C@d.example", 1)],
}  # fmt: skip


@pytest.mark.parametrize("by", EXPECTED_COUNTS)
def test_distinct_values_are_counted_and_the_most_frequent_comes_first(log: str, by: By) -> None:
    counted = tally([log], Search(), by)
    assert [(each.value, each.count) for each in counted.counts()] == EXPECTED_COUNTS[by]
    assert (counted.found, counted.others) == (6, 0)
    assert [each.value for each in counted.counts() if not each.verified] == (
        ["x.vs.sakura.ne.jp"] if by is By.HOSTNAME else []
    )


@pytest.mark.parametrize("by", EXPECTED_COUNTS)
def test_counting_many_lines_at_once_gives_the_same_as_counting_line_by_line(
    log: str, by: By, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Search(since=time("2026-03-02T00:00:00+00:00"), until=time("2026-11-22T00:00:00+00:00"))
    at_once = [everything_of(tally([log], search, by)) for search in (Search(), some)]
    monkeypatch.setattr(tallying, "_TEXT", {})
    one_by_one = [everything_of(tally([log], search, by)) for search in (Search(), some)]
    assert at_once == one_by_one
    assert (at_once[0][0], at_once[1][0]) == (6, 4)


def everything_of(counted: Tally) -> tuple[int, int, list[ValueCount]]:
    return counted.found, counted.others, [*counted.counts()]


@pytest.mark.parametrize("order", ["in order", "nearly in order", "any order"])
@pytest.mark.parametrize("limit", [1_000_000, 700])
def test_first_last_and_count_are_right_in_any_order_of_time(
    order: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(7)
    disorder = {"in order": 0, "nearly in order": 30, "any order": 10_000}[order]
    milliseconds = [max(0, number + chance.randint(-disorder, disorder)) for number in range(5_000)]
    times = [f"2026-11-{1 + each // 1000:02}T10:00:00.{each % 1000:03}+01:00" for each in milliseconds]
    clients = [f"h.example[192.0.2.{chance.choice((9, chance.randrange(10_000)))}]" for _ in times]
    log = tmp_path / "log"
    log.write_text("".join(line(client=client, time=time) for client, time in zip(clients, times, strict=True)))
    monkeypatch.setattr(files, "BLOCK_BYTES", 16 * 1024)
    monkeypatch.setattr(tallying, "MAX_VALUES", limit)
    at_once = everything_of(tally([str(log)], Search(), By.CLIENT))
    monkeypatch.setattr(tallying, "_TEXT", {})
    assert at_once == everything_of(tally([str(log)], Search(), By.CLIENT))
    times_of_nine = sorted(
        time for client, time in zip(clients, times, strict=True) if client == "h.example[192.0.2.9]"
    )
    assert at_once[2][0] == ValueCount("192.0.2.9", len(times_of_nine), times_of_nine[0], times_of_nine[-1])
    assert (at_once[0], at_once[1] > 0, len(at_once[2]) == limit) == (5_000, limit == 700, limit == 700)


def test_first_and_last_are_compared_as_times_despite_different_offsets(log: str) -> None:
    (network, *_) = tally([log], Search(), By.NETWORK).counts()
    first, last = network.first, network.last
    assert time(first) == time("2026-03-01T00:00:00.500+01:00")
    assert time(last) == time("2026-11-22T00:00:00+00:00")


def test_requests_of_doctor_and_lines_without_a_decision_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join((*LINES, line(more="instance=policyd-doctor"), "2026-11-22 something else\n")))
    assert tally([str(path)], Search(), By.CLIENT).found == 6


def test_too_many_values_are_counted_together(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallying, "MAX_VALUES", 2)
    counted = tally([log], Search(), By.CLIENT)
    assert (len([*counted.counts()]), counted.found, counted.others) == (2, 6, 4)


# --- Mail logs --------------------------------------------------------------------------------------------------------


def test_the_hosts_of_the_first_incident_are_those_that_grep_sort_and_uniq_find(tmp_path: Path) -> None:
    script = r"grep ^Feb maillog.sendmail | grep -o 'relay=[^ ]*sakura.ne.jp'"
    script += " | sed s/relay=// | sort | uniq -c"
    done = subprocess.run(["sh", "-c", script], cwd=DATA, capture_output=True, text=True, check=True)
    expected = {(name, int(count)) for count, name in map(str.split, done.stdout.splitlines())}
    search = Search(suffix="sakura.ne.jp", since=time("2026-02-01"), until=time("2026-03-01"))
    counted = tally([str(DATA / "maillog.sendmail")], search, By.HOSTNAME)
    assert {(each.value, each.count) for each in counted.counts()} == expected
    assert all(each.verified and each.first.startswith("2026-02-") for each in counted.counts())


def test_mails_in_a_log_of_postfix_are_found_and_shown_as_lines() -> None:
    found = [*every([str(DATA / "maillog.postfix")], Search(networks=parse_networks(["180.222.51.40"])))]
    (text,) = (as_line(each.source).partition(" ")[2] for each in found)
    assert text == (
        "DEFERRED client=unknown[180.222.51.40] from=<rainbow+errnnn0@gbc001.mag-r.net> to=<xxxx@xxxx.xx.jp> "
        'helo=<r001-gbc001.mail-b.net> by=smtpd reply="450 4.7.1 Client host rejected: cannot find your '
        'hostname, [180.222.51.40]"'
    )


def test_decision_logs_and_mail_logs_may_be_mixed(log: str) -> None:
    counted = tally([log, str(DATA / "maillog.postfix"), str(DATA / "maillog.sendmail")], Search(), By.NETWORK)
    assert counted.found == 6 + 35
    assert {each.value: each.count for each in counted.counts()}["180.222.51.0/24"] == 7


def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("buy milk\n")
    with pytest.raises(LogError, match="neither a decision log of policyd nor a mail log"):
        tally([str(path)], Search(), By.CLIENT)


def test_no_client_text_is_shown_raw(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(line(sender="\\x1b]0;\\x07@\\xc3\\xa4.example", client="\\x1b.example[192.0.2.1]"))
    for by in By:
        assert all(
            each.value.isprintable() and each.value.isascii() for each in tally([str(path)], Search(), by).counts()
        )


def test_decisions_are_counted_by_autonomous_system(tmp_path: Path) -> None:
    known = line(client="h.example[192.0.2.1]").replace("rdns=", "asn=64500 country=JP rdns=")
    for text in ("".join((known, known, line())), json_lines((known, known, line()))):
        (tmp_path / "log").write_text(text)
        counted = tally([str(tmp_path / "log")], Search(), By.ASN)
        assert [(each.value, each.count) for each in counted.counts()] == [("64500", 2), ("-", 1)]
        assert [
            (each.value, each.count) for each in tally([str(tmp_path / "log")], Search(), By.HOSTNAME).counts()
        ] == [
            ("h.example", 2),
            ("os3-1-2.vs.sakura.ne.jp", 1),
        ]
