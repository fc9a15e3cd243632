"""The tables in tests/cases: each has a ruleset, and rows with a request, DNS answers, and the expected decision.

`given` has attributes, `hostname`, `claimed` and `reverse_dns` as in a ruleset's own tests, `names_known: no` if the
PTR lookup itself failed, the DNS lists that list the client (`listed`) or failed (`listed_unknown`), and `date`. The
expected decision is `expect` and, if they matter, `rule`, `reply` (the complete text), `observed`, `downgraded`, and
`asks_dns` (whether the decision needed the client's identity).

Run one table or one row by its name: `pytest tests/test_cases.py -k 'cidr and mapped'`.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from policyd.config.load import load
from policyd.core.dns_lists import NOT_LISTED, ListAnswer, ListStatus, unknown
from policyd.core.engine import Decision, decide
from policyd.core.facts import NOTHING_KNOWN, Facts, Needs
from policyd.core.identity import Identity, Reason, Status
from policyd.core.normalize import fold_name
from policyd.core.protocol import RequestParser
from policyd.core.reply import reply_text

if TYPE_CHECKING:
    from policyd.core.index import Ruleset
    from policyd.core.protocol import Request

CASES = Path(__file__).parent / "cases"
# Keys of `given` that are not attributes of the request.
NOT_ATTRIBUTES = {"hostname", "claimed", "reverse_dns", "names_known", "date", "listed", "listed_unknown"}
LISTED, LIST_UNKNOWN = ListAnswer(ListStatus.LISTED, ("127.0.0.2",)), unknown("servfail")
ROW_KEYS = {"row", "given", "expect", "rule", "reply", "observed", "downgraded", "asks_dns"}


def tables() -> dict[str, dict[str, Any]]:
    loaded = {}
    for path in sorted(CASES.glob("*.yaml")):
        loaded[path.stem] = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # every scalar is a str
    return loaded


TABLES = tables()
ROWS = [pytest.param(name, row, id=f"{name}: {row['row']}") for name, table in TABLES.items() for row in table["rows"]]


@pytest.fixture(scope="session")
def rulesets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ruleset]:
    """Each table's ruleset, loaded as the daemon does."""
    folder = tmp_path_factory.mktemp("cases")
    built = {}
    for name, table in TABLES.items():
        for file, content in table.get("files", {}).items():
            (folder / file).write_text(content)
        path = folder / f"{name}.yaml"
        path.write_text(table["ruleset"])
        built[name] = load(rules_path=str(path)).ruleset
    return built


def as_list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def request_of(given: dict[str, Any]) -> Request:
    """The request, parsed from the bytes that Postfix would send."""
    attributes = {"request": "smtpd_access_policy", "protocol_state": "RCPT"}
    attributes |= {name: value for name, value in given.items() if name not in NOT_ATTRIBUTES}
    parser = RequestParser()
    parser.receive_data("".join(f"{name}={value}\n" for name, value in attributes.items()).encode("latin-1") + b"\n")
    request = parser.next_request()
    assert request is not None
    return request


def identity_of(given: dict[str, Any]) -> Identity:
    """The DNS answers."""
    verified = tuple(sorted(fold_name(name.encode()) for name in as_list(given.get("hostname", []))))
    claimed = tuple(sorted(fold_name(name.encode()) for name in as_list(given.get("claimed", []))))
    implied = Status.VERIFIED if verified else Status.MISMATCH if claimed else Status.MISSING
    status = Status(given.get("reverse_dns", implied))
    failed = status is Status.ERROR
    known = given.get("names_known", "yes" if claimed or not failed else "no") == "yes"
    return Identity(status, verified, claimed, Reason.SERVFAIL if failed else None, known)


def lists_of(given: dict[str, Any], ruleset: Ruleset) -> dict[str, ListAnswer]:
    """The answers of DNS lists; lists that are not named answer *not listed*."""
    answers = dict.fromkeys((dns_list.name for dns_list in ruleset.dns_lists), NOT_LISTED)
    answers |= dict.fromkeys(as_list(given.get("listed", [])), LISTED)
    return answers | dict.fromkeys(as_list(given.get("listed_unknown", [])), LIST_UNKNOWN)


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_case(rulesets: dict[str, Ruleset], table: str, row: dict[str, Any]) -> None:
    assert set(row) <= ROW_KEYS, "a row has an unknown key"
    ruleset = rulesets[table]
    given = row["given"]
    request, identity = request_of(given), identity_of(given)
    today = datetime.date.fromisoformat(given.get("date", "2026-11-21"))
    without = decide(ruleset, request, NOTHING_KNOWN, today)
    decision = decide(ruleset, request, Facts(identity, lists_of(given, ruleset)), today)
    assert isinstance(decision, Decision)
    got = {
        "expect": decision.verb.value,
        "rule": decision.rule_name,
        "reply": reply_text(decision, request, identity, b"7Q4K2M9X").decode("ascii"),
        "observed": sorted(decision.observed),
        "downgraded": "yes" if decision.downgraded else "no",
        "asks_dns": "yes" if isinstance(without, Needs) and without.identity else "no",
    }
    wanted = {"downgraded": "no", **row}
    if "observed" in wanted:
        wanted["observed"] = sorted(as_list(wanted["observed"]))
    assert {key: got[key] for key in wanted if key in got} == {key: wanted[key] for key in wanted if key in got}
    if isinstance(without, Decision):
        assert (without.verb, without.rule_name) == (decision.verb, decision.rule_name), "DNS was not needed"


def test_each_of_the_common_conditions_has_a_table() -> None:
    """Each of these conditions is in the ruleset of a table."""
    named = [
        *("cidr", "reverse_dns", "hostname", "hostname_suffix", "hostname_regex"),
        *("helo_name", "helo_name_suffix", "helo_name_regex", "sender", "sender_regex", "sender_domain"),
        *("recipient", "recipient_domain", "recipient_regex"),
        *("asn", "asn_name_regex", "country", "hostname_generic"),
        *("protocol_state", "sasl_username", "policy_context", "reverse_client_name_regex"),
    ]
    rulesets = "\n".join(table["ruleset"] for table in TABLES.values())
    assert [name for name in named if f"{{{name}:" not in rulesets and f" {name}:" not in rulesets] == []
