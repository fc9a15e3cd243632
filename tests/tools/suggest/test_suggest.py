from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.config.load import load
from policyd.tools.suggest import candidates as suggest_module
from policyd.tools.suggest.candidates import Suggestions, suggest
from policyd.tools.suggest.output import as_json, as_yaml
from tests.examples import examples
from tests.tools.replay.test_replay import log_of, mail

if TYPE_CHECKING:
    from policyd.core.index import Ruleset

DATA = Path(__file__).parents[2] / "data"
SHIPPED = Path(__file__).parents[3] / "config" / "rules.yaml"
INCIDENTS = [str(DATA / "maillog.sendmail"), str(DATA / "maillog.postfix")]
TODAY = datetime.date(2026, 11, 21)

REFUSED = "554 5.7.1 no"


def rules(found: Suggestions) -> list[tuple[str, str, dict[str, list[str]]]]:
    return [(candidate.condition, candidate.value, candidate.exceptions) for candidate in found.candidates]


def load_strictly(folder: Path, text: str) -> Ruleset:
    """Loads a ruleset in which `policyd check --strict` finds no error and no warning."""
    path = folder / "candidates.yaml"
    path.write_text(text)
    loaded = load(rules_path=path, warnings_on=TODAY)
    assert loaded.warning_lines == ()
    return loaded.ruleset


def test_the_incidents_give_the_known_candidates(tmp_path: Path) -> None:
    found = suggest(INCIDENTS)
    assert rules(found) == [
        ("hostname_suffix", "vs.sakura.ne.jp", {}),
        ("cidr", "180.222.51.0/24", {}),
        ("sender_regex", r"^rainbow\+err[a-z0-9]+@", {}),
    ]
    phishing, bulk, _ = found.candidates
    assert (phishing.evidence.refused, phishing.evidence.clients, phishing.evidence.delivered) == (27, 26, 0)
    assert (
        "2 of the mails were retried from another address of this network; up to 5 addresses for one mail"
        in bulk.remarks
    )
    text = as_yaml(found, 20)
    assert re.search(r"27 mails refused or deferred, from 26 clients, \d+-02-05 to \d+-03-09; none was delivered", text)
    ruleset = load_strictly(tmp_path, text)
    assert [(rule.name, rule.observe) for rule in ruleset.rules] == [
        ("names-vs-sakura-ne-jp", True),
        ("network-180-222-51-0-24", True),
        ("senders-rainbow-err", True),
    ]


def test_nothing_is_suggested_for_mails_that_the_ruleset_decides() -> None:
    found = suggest(INCIDENTS, ruleset=load(rules_path=SHIPPED).ruleset, today=TODAY)
    assert (found.candidates, found.refused, found.covered) == ([], 35, 34)


def refused_hosts(count: int, pattern: str = "h{}.dyn.isp.example", start: int = 0) -> list[str]:
    return [mail(n, f"{pattern.format(n)}[198.{n}.100.7]", status=REFUSED) for n in range(start, start + count)]


@pytest.mark.parametrize(
    ("others", "suffix"),
    [
        ([], "dyn.isp.example"),
        # One client elsewhere in the domain does not widen the suffix.
        (refused_hosts(1, "www{}.isp.example", 50), "dyn.isp.example"),
        # Many clients elsewhere in the domain widen it.
        (refused_hosts(9, "x{}.cable.isp.example", 50), "isp.example"),
    ],
)
def test_a_suffix_is_the_narrowest_with_nearly_all_clients(tmp_path: Path, others: list[str], suffix: str) -> None:
    found = suggest(log_of(tmp_path, *refused_hosts(9), *others))
    assert rules(found) == [("hostname_suffix", suffix, {})]


def test_a_public_suffix_is_never_suggested(tmp_path: Path) -> None:
    found = suggest(log_of(tmp_path, *refused_hosts(9, "mail.company{}.co.jp")))
    assert rules(found) == []


def test_a_suffix_of_unrelated_customers_gets_a_remark(tmp_path: Path) -> None:
    found = suggest(log_of(tmp_path, *refused_hosts(9, "www{}ue.sakura.ne.jp")))
    assert rules(found) == [("hostname_suffix", "sakura.ne.jp", {})]
    assert found.candidates[0].remarks == ["unrelated customers have names under this suffix"]


def test_clients_with_delivered_mail_are_proposed_as_exceptions(tmp_path: Path) -> None:
    warning = "warning: hostname c.dyn.isp.example does not resolve to address 192.0.2.1"
    logs = log_of(
        tmp_path,
        *refused_hosts(9),
        mail(80, "good.dyn.isp.example[203.0.113.80]"),
        f"Nov 20 10:00:00 mx postfix/smtpd[90]: {warning}\n",
        mail(90, "unknown[192.0.2.1]"),
    )
    found = suggest(logs)
    # A claimed name never exempts, so the exception has the address.
    exceptions = {"hostname": ["good.dyn.isp.example"], "cidr": ["192.0.2.1"]}
    assert rules(found) == [("hostname_suffix", "dyn.isp.example", exceptions)]
    text = as_yaml(found, 20)
    assert "but 2 delivered, from 2 clients" in text
    assert "except: {hostname: good.dyn.isp.example, cidr: 192.0.2.1}" in text
    load_strictly(tmp_path, text)


def test_nothing_is_suggested_if_most_mail_was_delivered(tmp_path: Path) -> None:
    wanted = [mail(n, f"h{n}.dyn.isp.example[198.{n}.100.7]") for n in range(20, 40)]
    assert rules(suggest(log_of(tmp_path, *refused_hosts(9), *wanted))) == []


def test_too_many_exceptions_are_not_proposed(tmp_path: Path) -> None:
    wanted = [mail(n, f"h{n}.dyn.isp.example[198.{n}.100.7]") for n in range(60, 85)]
    (candidate,) = suggest(log_of(tmp_path, *refused_hosts(40), *wanted)).candidates
    assert candidate.exceptions == {}
    assert "mail was delivered from 25 clients in it: too many to list as exceptions" in candidate.remarks


def test_candidates_are_ranked_by_refused_and_delivered_mails(tmp_path: Path) -> None:
    logs = log_of(
        tmp_path,
        *[mail(n, f"unknown[192.0.2.{n}]", sender="x@c", status=REFUSED) for n in range(5)],
        *[mail(n, f"unknown[198.51.100.{n}]", sender="x@c", status=REFUSED) for n in range(30)],
        mail(77, "unknown[198.51.100.77]", sender="x@c"),
        *[mail(n, f"unknown[203.0.113.{n}]", sender="x@c", status=REFUSED) for n in range(4)],
    )
    assert [candidate.value for candidate in suggest(logs).candidates] == [
        "192.0.2.0/24",
        "203.0.113.0/24",
        "198.51.100.0/24",
    ]


@pytest.mark.parametrize(("min_clients", "count"), [(1, 1), (3, 1), (4, 0)])
def test_the_minimum_number_of_clients_can_be_chosen(tmp_path: Path, min_clients: int, count: int) -> None:
    logs = log_of(tmp_path, *[mail(n, f"unknown[192.0.2.{n}]", sender="x@c", status=REFUSED) for n in range(3)])
    assert len(suggest(logs, min_clients=min_clients).candidates) == count


@pytest.mark.parametrize("client", ["unknown[127.0.0.1]", "h[10.1.2.3]", "h[192.168.3.4]", "h[::1]", "h[fe80::1]"])
def test_private_addresses_are_not_suggested(tmp_path: Path, client: str) -> None:
    logs = log_of(tmp_path, *[mail(n, client, status=REFUSED) for n in range(5)])
    assert rules(suggest(logs, min_clients=1)) == []


def test_a_short_pattern_needs_the_domain(tmp_path: Path) -> None:
    mails = [mail(n, f"unknown[198.{n}.100.7]", sender=f"news{n}@bulk.example", status=REFUSED) for n in range(5)]
    assert rules(suggest(log_of(tmp_path, *mails))) == [("sender_regex", r"^news[0-9]+@bulk\.example$", {})]


def test_a_name_that_is_invalid_in_a_rule_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    log.write_text(
        "".join(
            f"2026-11-20T10:00:00Z REJECT id=7Q4K2M9X client=unknown[198.{n}.100.7]"
            f" claimed=a{n}.b\\x0a\\x22c.example rdns=mismatch state=RCPT from=<x@c> to=<d@e> ruleset=3f9c2a1b\n"
            for n in range(9)
        )
    )
    assert rules(suggest([str(log)])) == []


def test_names_of_rules_differ_from_existing_names() -> None:
    text = as_yaml(suggest(INCIDENTS), 20, ["names-vs-sakura-ne-jp"])
    assert "name: names-vs-sakura-ne-jp-2\n" in text


def test_the_best_candidates_are_shown_and_the_rest_counted() -> None:
    text = as_yaml(suggest(INCIDENTS), 1)
    assert text.startswith(
        "# 1 candidate from 35 mails, 35 of them refused or deferred; 2 weaker candidates are not shown"
    )
    assert "cidr" not in text


def test_the_rarest_values_are_dropped_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggest_module, "_MAX_KEPT", 20)
    often = [mail(n, f"unknown[192.0.2.{n}]", sender="x@c", status=REFUSED) for n in range(5)] * 3
    once = [mail(n, f"unknown[198.{n}.100.7]", sender="x@c", status=REFUSED) for n in range(100)]
    found = suggest(log_of(tmp_path, *often, *once))
    assert rules(found) == [("cidr", "192.0.2.0/24", {})]
    assert found.forgotten > 50
    assert "seen too rarely" in as_yaml(found, 20)


def test_a_sender_with_control_characters_is_escaped_and_appears_only_in_a_comment(tmp_path: Path) -> None:
    mails = [
        mail(n, f"unknown[192.0.2.{n}]", sender="x\n  - name: evil\x1b@c", status=REFUSED).replace("\n  -", "\\n  -")
        for n in range(3)
    ]
    path = tmp_path / "mail.log"
    path.write_bytes("".join(mails).encode().replace(b"\\n  -", b"\x0b  -"))
    text = as_yaml(suggest([str(path)]), 20)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert len(load_strictly(tmp_path, text).rules) == 1


addresses = st.builds("{}.{}.{}.{}".format, st.integers(1, 3), st.integers(0, 1), st.integers(0, 2), st.integers(0, 5))
host_names = st.from_regex(r"([a-z0-9_'\"#{}%:-]{1,5}\.){1,4}(example|jp|co\.jp|com)", fullmatch=True)
local_parts = st.from_regex(r"[!-?A-~]{1,12}", fullmatch=True)


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(
        st.tuples(addresses, host_names, local_parts, st.sampled_from(["a.example", "b.jp"]), st.booleans()),
        max_size=40,
    )
)
def test_the_yaml_is_valid_for_any_log(
    tmp_path_factory: pytest.TempPathFactory, mails: list[tuple[str, str, str, str, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    logs = log_of(
        folder,
        *(
            mail(n, f"{name}[{address}]", sender=f"{local}@{domain}", status="sent" if wanted else REFUSED)
            for n, (address, name, local, domain, wanted) in enumerate(mails)
        ),
    )
    found = suggest(logs, min_clients=1)
    as_json(found, 20)
    if found.candidates:
        assert len(load_strictly(folder, as_yaml(found, 100)).rules) == len(found.candidates)
