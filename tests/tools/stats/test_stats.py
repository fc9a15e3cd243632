from __future__ import annotations

import datetime
import gzip
import io
import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from policyd.config.load import load
from policyd.decision_log.reader import as_text, parse
from policyd.logs.timestamps import parse_since
from policyd.tools.stats import collect as stats_module
from policyd.tools.stats.collect import Stats, collect, over_time
from policyd.tools.stats.html import page
from policyd.tools.stats.output import print_stats, stats_as_json
from tests.examples import examples
from tests.local_time import local_time
from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    with local_time("UTC"):
        yield


def stats_of(folder: Path, *lines: str, since: float | None = None, rules: str | None = None) -> Stats:
    log = folder / "decisions.log"
    log.write_text("".join(lines))
    ruleset = None
    if rules is not None:
        (folder / "rules.yaml").write_text(rules)
        ruleset = load(rules_path=folder / "rules.yaml").ruleset
    return collect([str(log)], since=since, ruleset=ruleset)


def printed(stats: Stats) -> str:
    screen = io.StringIO()
    print_stats(Console(file=screen, width=200), stats)
    return screen.getvalue()


def test_decisions_are_counted_by_action_and_rule(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        line(),
        line(client="os3-9.vs.sakura.ne.jp[49.212.201.178]"),
        line("DEFER", rule="no-reverse-dns", client="unknown[192.0.2.1]"),
        line("DUNNO", rule=""),
        "no decision at all\n",
    )
    assert dict(stats.actions) == {"REJECT": 2, "DEFER": 1, "DUNNO": 1}
    assert {name: (rule.hits, len(rule.clients)) for name, rule in stats.rules.items()} == {
        "sakura-vps": (2, 2),
        "no-reverse-dns": (1, 1),
        "default": (1, 1),
    }
    assert (stats.decisions, stats.counts.lines) == (4, 5)
    text = printed(stats)
    assert "4 decisions from 2026-11-21T17:16:00+00:00" in text
    assert "sakura-vps" in text


def test_origins_of_refused_mail_are_counted(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        line(),
        line(client="x.vs.sakura.ne.jp[49.212.201.9]", sender="z@B.Example"),
        line(client="h.isp.co.jp[2001:db8:1:2::3]"),
        line("DUNNO", client="fine.example.com[198.51.100.1]"),
    )
    assert stats.top_networks == [("49.212.201.0/24", 2), ("2001:db8:1::/48", 1)]
    assert stats.suffixes.most_common(5) == [("sakura.ne.jp", 2), ("isp.co.jp", 1)]
    assert stats.sender_domains.most_common(5) == [(b"b.example", 3)]


RULES = """
mode: observe
rules:
  - {name: first-try, match: {cidr: 49.212.0.0/16}, action: DEFER, mode: observe}
  - {name: sakura-vps, match: {hostname_suffix: vs.sakura.ne.jp}, action: REJECT}
  - {name: never, match: {cidr: 192.0.2.0/24}, action: REJECT}
"""


def test_observed_rules_and_rules_without_a_match_are_reported(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        line("DUNNO", more="observed=first-try", rule=""),
        line("DUNNO would=REJECT", more="observed=first-try"),
        rules=RULES,
    )
    assert stats.unmatched == ["never"]
    assert dict(stats.observed["first-try"].actions) == {"DUNNO": 1, "REJECT": 1}
    assert stats_as_json(stats)["observed"][0]["would"] == "DEFER"
    assert (dict(stats.actions), dict(stats.would)) == ({"DUNNO": 2}, {"REJECT": 1})
    text = printed(stats)
    assert "never matched: never" in text
    assert "not sent, because the file has `mode: observe`: REJECT 1" in text


def test_a_rule_whose_refused_mails_are_all_also_delivered_is_found(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        line("DEFER", rule="useless", sender="list@a.example"),
        line("DUNNO", rule="", sender="list@a.example", client="other.a.example[198.51.100.9]"),
        line(sender="spam@a.example"),
        line(sender="list@a.example"),
    )
    assert stats_as_json(stats)["only_elsewhere"] == ["useless"]
    assert (stats.rules["sakura-vps"].elsewhere, len(stats.rules["sakura-vps"].refused_mails)) == (1, 2)
    assert "refused only mails that were also delivered: useless" in printed(stats)


def hours(*starts: str) -> list[str]:
    return [line(time=f"{start}:00:00Z") for start in starts]


@pytest.mark.parametrize(
    ("starts", "unit", "steps", "first", "last"),
    [
        (["2026-11-21T17"], "hour", 1, "2026-11-21 17:00", "2026-11-21 17:00"),
        (["2026-11-21T17", "2026-11-22T03"], "hour", 11, "2026-11-21 17:00", "2026-11-22 03:00"),
        (["2026-11-01T17", "2026-11-21T03"], "day", 21, "2026-11-01", "2026-11-21"),
        (["2025-11-01T17", "2026-11-21T03"], "month", 13, "2025-11", "2026-11"),
    ],
)
def test_decisions_are_grouped_by_hour_day_or_month(
    tmp_path: Path, starts: list[str], unit: str, steps: int, first: str, last: str
) -> None:
    found_unit, found = over_time(stats_of(tmp_path, *hours(*starts)))
    assert (found_unit, len(found), found[0][0], found[-1][0]) == (unit, steps, first, last)
    assert sum(actions.total() for _, actions in found) == len(starts)


def test_a_bar_shows_every_action_without_colour(tmp_path: Path) -> None:
    lines = [line()] * 3 + [line("DEFER")] + [line("DUNNO", rule="")] * 200
    bar = next(text for text in printed(stats_of(tmp_path, *lines)).splitlines() if text.startswith("2026-11-21 17:00"))
    assert "#+" in bar
    assert bar.endswith(" 204")
    assert bar.count(".") in {58, 59}


def test_since_leaves_out_earlier_decisions(tmp_path: Path) -> None:
    since = parse_since("2026-11-21T12:00Z", 0)
    assert stats_of(tmp_path, *hours("2026-11-21T11", "2026-11-21T13"), since=since).decisions == 1


NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "ago"),
    [("7d", 7 * 86400), ("12h", 12 * 3600), ("90s", 90), ("2026-11-20", 36 * 3600), ("2026-11-21T11:00+00:00", 3600)],
)
def test_times_are_read_as_people_write_them(text: str, ago: int) -> None:
    assert parse_since(text, NOW) == NOW - ago


@pytest.mark.parametrize("text", ["", "yesterday", "7 d", "-1h", "2026-13-01"])
def test_an_invalid_time_gets_a_message_with_the_right_form(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write 7d, 12h"):
        parse_since(text, NOW)


def test_a_log_and_its_rotated_files_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "d.log").write_text(line())
    (tmp_path / "d.log.1.gz").write_bytes(gzip.compress(line().encode()))
    assert collect([str(tmp_path / "d.log"), str(tmp_path / "d.log.1.gz")]).decisions == 2


def test_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MAX_CLIENTS", "_MAX_MAILS", "_MAX_RULES"):
        monkeypatch.setattr(stats_module, name, 10)
    lines = [line(rule=f"r{n % 30}", client=f"x[192.0.2.{n}]", sender=f"{n}@b") for n in range(100)]
    stats = stats_of(tmp_path, *lines)
    assert len(stats.rules) == 10
    assert sum(len(rule.clients) for rule in stats.rules.values()) == 10
    assert any(rule.uncounted for rule in stats.rules.values())
    assert "+" in printed(stats)


def test_durations_of_decisions_are_given_by_percentile(tmp_path: Path) -> None:
    lines = [line().replace("ms=0.2", f"ms={ms}") for ms in [1.0] * 90 + [20.0] * 9 + [300.0]]
    stats = stats_of(tmp_path, *lines)
    assert [stats.percentile(share) for share in (0.5, 0.95, 0.99, 1.0)] == [1.0, 20.0, 20.0, 300.0]


# --- The page -------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """The tags, attributes and text of a page."""

    VOID = frozenset({"meta", "line", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(text: str) -> _Page:
    parsed = _Page()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []
    return parsed


def assert_nothing_to_load(text: str) -> None:
    parsed = read_page(text)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "a", "form", "base", "use", "image"}
    assert not {name for name in parsed.attributes if name.startswith("on") or name in {"src", "href", "xlink:href"}}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_page_shows_the_figures_and_loads_nothing(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        line(),
        line("DEFER", rule="no-reverse-dns", client="unknown[192.0.2.1]"),
        line("DUNNO", rule="", more="observed=first-try"),
        rules=RULES,
    )
    text = page(stats)
    assert text.isascii()
    assert_nothing_to_load(text)
    shown = read_page(text).text
    for expected in ("3 decisions", "sakura-vps", "first-try", "never", "49.212.201.0/24", "sakura.ne.jp", "b.example"):
        assert expected in shown
    assert text.count("<svg") == 5


def test_client_text_is_escaped_in_the_page(tmp_path: Path) -> None:
    evil = r"x@\x3cscript\x3ealert(1)\x3c/script\x3e\x22\x27&amp;"
    text = page(stats_of(tmp_path, line(sender=evil), line(rule="<b>&\"'")))
    assert "<script" not in text
    assert "<b>" not in text
    assert_nothing_to_load(text)
    assert "<script>alert(1)</script>\"'&amp;" in read_page(text).text


def test_a_page_without_decisions_is_valid() -> None:
    assert_nothing_to_load(page(Stats()))


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "time": st.sampled_from(
                    ["2026-11-21T17:16:00Z", "2026-11-01T00:00:00Z", "2020-02-29T12:00:00Z", "2026-99-99T99:99:99Z"]
                ),
                "action": st.sampled_from(["REJECT", "DEFER", "DUNNO", "DEFER_IF_PERMIT"]),
                "would": st.sampled_from(["", "REJECT", "odd"]),
                "rule": st.text(max_size=8),
                "client_address": st.text(max_size=8),
                "hostname": st.text(max_size=12),
                "sender": st.text(max_size=12),
                "recipient": st.text(max_size=8),
                "protocol_state": st.sampled_from(["RCPT", "CONNECT"]),
                "observed": st.lists(st.text(max_size=5), max_size=2),
                "reverse_dns": st.text(max_size=5),
                "dns_error": st.text(max_size=5),
                "ms": st.floats(),
            }
        ),
        max_size=10,
    )
)
def test_no_log_makes_the_output_unsafe(
    tmp_path_factory: pytest.TempPathFactory, decisions: list[dict[str, object]]
) -> None:
    log = tmp_path_factory.mktemp("any") / "decisions.log"
    log.write_text("".join(json.dumps(decision) + "\n" for decision in decisions))
    stats = collect([str(log)])
    assert stats.decisions == len(decisions)
    assert_nothing_to_load(page(stats))
    text = printed(stats).replace("\n", "")
    assert text.isprintable()
    json.dumps(stats_as_json(stats), allow_nan=False)
    for decision in decisions:
        read = parse(json.dumps(decision).encode())
        assert read is not None
        assert as_text(read).isprintable()
