"""The administrator's files: rules, list files, settings."""

from __future__ import annotations

import datetime
import pickle
import re
from typing import TYPE_CHECKING, Any

from policyd.config.conditions import CONDITIONS, Form
from policyd.config.entries import fold_entry, parse_entries
from policyd.config.load import Loaded, load
from policyd.config.problems import ConfigErrors
from policyd.config.settings import MAX_PORT, InetAddress
from policyd.core.dns_lists import NOT_LISTED
from policyd.core.engine import Decision, Outcome, decide, decide_fully, trace
from policyd.core.facts import Facts, Greylisted, Needs
from policyd.core.identity import Identity, Reason, Status
from policyd.core.protocol import Request, encode_reply
from policyd.core.reply import reply_text
from policyd.core.ruleset import Verb
from policyd.core.tables import Networks
from policyd.memory.counting import first_counts
from tests.fuzz.targets.protocol import request_of

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.index import Ruleset

TODAY = datetime.date(2026, 11, 21)

# Maximum characters of a message, which shows at most the file's name and a few pieces of 80 characters.
LONGEST_LINE = 2_000


def load_and_check_messages(rules: Path, settings: Path | None = None) -> Loaded | None:
    """The loaded files; None if they have errors. Each line of errors or warnings must be printable and short."""
    loaded: Loaded | None
    try:
        loaded = load(settings, rules, warnings_on=TODAY)
        lines = loaded.warning_lines
    except ConfigErrors as errors:
        lines = errors.lines
        assert errors.exit_status in {1, 2}
        loaded = None
    assert loaded is not None or lines
    for line in lines:
        assert line.isprintable(), line
        assert len(line) <= LONGEST_LINE, line
    return loaded


# --- Rules ------------------------------------------------------------------------------------------------------------

_PART = re.compile(rb"(?m)^=== .*\n")


def rules(content: bytes, folder: Path) -> None:
    """A ruleset that does not load gives readable errors; one that loads decides any request, the same by the index as
    rule by rule, and the same with and without DNS if no rule needs it; a lie never exempts, and a DNS failure never
    rejects a client that an answer would let through.
    """
    # The input has the rules, then after a line `=== list.txt` the content of this file, then after `=== request` the
    # request.
    yaml, list_file, request = [*_PART.split(content, maxsplit=2), b"", b""][:3]
    (folder / "rules.yaml").write_bytes(yaml)
    (folder / "list.txt").write_bytes(list_file)
    loaded = load_and_check_messages(folder / "rules.yaml")
    if loaded is None:
        return
    parsed, identity = request_of(request)
    names = tuple(sorted({*identity.verified, *identity.claimed} or {b"a.example"}))
    _check_decisions(loaded.ruleset, parsed, names)


def _check_decisions(ruleset: Ruleset, request: Request, names: tuple[bytes, ...]) -> None:
    truths = [
        Identity(Status.VERIFIED, names),
        Identity(Status.VERIFIED, names[:1], names[1:]),
        Identity(Status.MISMATCH, claimed=names),
    ]
    nothing_known = Identity(Status.ERROR, reason=Reason.SERVFAIL, names_known=False)
    names_known = Identity(Status.ERROR, claimed=names, reason=Reason.TIMEOUT)
    missing = Identity(Status.MISSING)
    decided = {
        identity: _decided(ruleset, request, identity) for identity in (*truths, nothing_known, names_known, missing)
    }

    without_dns = decide(ruleset, request, _facts(ruleset, request, None), TODAY)
    if not isinstance(without_dns, Needs):
        assert all(decision == without_dns for decision in decided.values())
    # The first principle: another name that a client claims does not let it in.
    honest = Identity(Status.MISMATCH, claimed=(b"x",))
    liar = Identity(Status.MISMATCH, claimed=tuple(sorted({b"x", *names})))
    if _decided(ruleset, request, honest).verb is not Verb.DUNNO:
        assert _decided(ruleset, request, liar).verb is not Verb.DUNNO
    # The second principle: a REJECT under a failure is not a DUNNO under any possible answer.
    for failure, answers in ((nothing_known, [*truths, missing]), (names_known, truths)):
        if decided[failure].verb is Verb.REJECT:
            assert all(decided[answer].verb is not Verb.DUNNO for answer in answers)


def _facts(ruleset: Ruleset, request: Request, identity: Identity | None) -> Facts:
    """The facts of a client that no DNS list lists and that comes for the first time."""
    lists = {dns_list.name: NOT_LISTED for dns_list in ruleset.dns_lists}
    return Facts(identity, lists, None, first_counts(ruleset, request), Greylisted.NEW)


def _decided(ruleset: Ruleset, request: Request, identity: Identity) -> Decision:
    facts = _facts(ruleset, request, identity)
    decision = decide(ruleset, request, facts, TODAY)
    assert isinstance(decision, Decision)
    tried_rules = trace(ruleset, request, facts, TODAY)
    held = [tried for tried in tried_rules if tried.outcome in {Outcome.YES, Outcome.IN_DOUBT}]
    assert decision.observed == tuple(tried.rule.name for tried in held if tried.rule.observe)
    deciding = [tried for tried in held if not tried.rule.observe]
    assert [tried.rule for tried in deciding] == ([decision.rule] if decision.rule is not None else [])
    text = reply_text(decision, request, identity, b"7Q4K2M9X")
    assert encode_reply(decision.verb, text)[:-2].decode("ascii").isprintable()
    return decision


# --- List files -------------------------------------------------------------------------------------------------------

# A condition for each form of entry.
_CONDITIONS = (
    "cidr",
    "hostname",
    "hostname_suffix",
    "hostname_regex",
    "helo_name",
    "sender",
    "recipient",
    "client_port",
    "reverse_dns",
)

# A line up to a `#` or `;` at its beginning or after a blank.
_ENTRY = re.compile(rb"(?![#;])(?:[^ \t]|[ \t](?![#;]))*+|")

# Maximum number of entries of a list that are also read one by one, which takes a hundred times as long.
ONE_BY_ONE = 300

# Maximum number of entries of a list for which requests are made.
_REQUESTS = 20


def list_file(content: bytes, folder: Path) -> None:
    """A list file gives the same result line by line and as a whole, names the line of each invalid entry, and a
    request with an entry's value matches the entry.
    """
    # The first byte, a digit, chooses the condition.
    condition = _CONDITIONS[(content[0] - ord("0")) % len(_CONDITIONS)] if content else "cidr"
    form = CONDITIONS[condition].form
    lines = [_entry(line) for line in content[1:].removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    written = [line for line in lines if line]
    first = written[:ONE_BY_ONE]
    together, bad = parse_entries(form, first)
    alone = [parse_entries(form, [line]) for line in first]
    assert bad == [place for place, (_, wrong) in enumerate(alone) if wrong]
    assert _flat(together) == [entry for entries, _ in alone for entry in _flat(entries)] or isinstance(
        together, Networks
    )
    assert sorted(_flat(together)) == sorted(entry for entries, _ in alone for entry in _flat(entries))

    (folder / "list.txt").write_bytes(content[1:])
    (folder / "rules.yaml").write_text(
        f"lists: {{x: {{file: list.txt}}}}\nrules: [{{name: r, match: {{{condition}: $x}}, action: DEFER}}]\n"
    )
    loaded = load_and_check_messages(folder / "rules.yaml")
    if loaded is None:
        return
    assert written
    assert not parse_entries(form, written)[1]
    assert [entry.text.encode() for entry in loaded.lists["x"].entries()] == written
    assert [entry.line for entry in loaded.lists["x"].entries()] == [n for n, line in enumerate(lines, 1) if line]
    for text in written[:_REQUESTS]:
        matching = _request_for(form, condition, text)
        if matching is not None:
            request, identity = matching
            assert decide_fully(loaded.ruleset, request, Facts(identity), TODAY).rule is not None, text


def _entry(line: bytes) -> bytes:
    match = _ENTRY.match(line)
    assert match is not None
    return match[0].strip()


def _flat(entries: object) -> list[Any]:
    if isinstance(entries, Networks):
        return [(4, packed) for packed in entries.v4] + [(6, packed) for packed in entries.v6]
    assert isinstance(entries, list)
    return entries


def _request_for(form: Form, condition: str, entry: bytes) -> tuple[Request, Identity] | None:
    """A request, and the identity of its client, that an entry must match; None if there is no obvious one."""
    nameless = Identity(Status.MISSING)
    match form:
        case Form.NETWORK:
            return Request.of({"client_address": entry.partition(b"/")[0]}), nameless
        case Form.HOST_NAME | Form.DOMAIN:
            name = b"mail" + entry if entry.startswith(b".") else entry
            (folded,) = fold_entry(Form.HOST_NAME, name) or (None,)
            return None if folded is None else (Request.of({}), Identity(Status.VERIFIED, (folded,)))
        case Form.STATUS if entry in {Status.MISSING.encode(), Status.ERROR.encode()}:
            return Request.of({}), Identity(Status(entry.decode()))
        case Form.SENDER | Form.RECIPIENT:
            return Request.of({"protocol_state": b"RCPT", condition: b"" if entry == b"<>" else entry}), nameless
        case Form.HELO_NAME | Form.TEXT:
            return Request.of({condition: entry}), nameless
        case _:
            return None


# --- Settings ---------------------------------------------------------------------------------------------------------


def settings(content: bytes, folder: Path) -> None:
    """Settings that do not load give errors, and settings that load are within the limits of settings.md and can be
    passed from the loading process to the daemon.
    """
    (folder / "policyd.yaml").write_bytes(content)
    (folder / "rules.yaml").write_text("rules: []\n")
    loaded = load_and_check_messages(folder / "rules.yaml", folder / "policyd.yaml")
    if loaded is None:
        return
    of = loaded.settings
    assert pickle.loads(pickle.dumps(of)) == of
    for address in (*of.listen, *([of.metrics] if of.metrics is not None else [])):
        if isinstance(address, InetAddress):
            assert 0 < address.port <= MAX_PORT
            assert address.host.isascii()
    assert of.listen
    assert 0 <= of.socket_mode <= 0o777
    assert all(0 < server.port <= MAX_PORT for server in of.dns.servers)
    assert 0 < of.dns.timeout <= 300
    assert of.limits.idle_timeout > 0
    assert of.limits.request_timeout > 0
    assert 1024 <= of.limits.request_bytes <= 1 << 24
