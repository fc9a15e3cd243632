"""`policyd explain`: the decision for one request, and why.

The engine decides and traces; this module turns the trace into tables for people, or into a JSON object. The caller
asks DNS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table
from rich.text import Text

from policyd.config.comparison import parse_comparison
from policyd.config.entries import parse_entries
from policyd.config.lists import WrittenEntry
from policyd.config.public_suffixes import registrable_domains
from policyd.core.engine import Decision, Outcome, trace
from policyd.core.identity import Status
from policyd.core.owners import NO_OWNER
from policyd.core.printable import printable
from policyd.core.reply import reply_text
from policyd.core.ruleset import Action, Condition, Kind, Rule, Subject, Verb
from policyd.decision_log.lists import format_answers
from policyd.decision_log.record import as_object
from policyd.tables.build import build_tables
from policyd.tables.index import build_index

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterator, Mapping, Sequence

    from policyd.config.load import Loaded
    from policyd.config.written import WrittenCondition
    from policyd.core.dns_lists import ListAnswer
    from policyd.core.engine import RuleTrace
    from policyd.core.facts import Facts
    from policyd.core.identity import Identity
    from policyd.core.owners import Owner
    from policyd.core.protocol import Request

# The value of {id} in an explanation; a daemon's decisions have real ids.
NO_ID = b"00000000"

_STYLES = {Verb.REJECT: "bold red", Verb.DEFER: "bold yellow", Verb.DEFER_IF_PERMIT: "bold yellow"}

# The words between the compared value and the wanted value: if the condition holds, and if it does not hold.
_COMPARED = {
    Kind.NETWORK: ("is in", "is not in"),
    Kind.STATUS: ("is", "is not"),
    Kind.NAME: ("is", "is not"),
    Kind.DOMAIN: ("is under", "is not under"),
    Kind.VALUE: ("is", "is not"),
    Kind.EXPRESSION: ("matches", "does not match"),
    Kind.LISTED: ("is listed by", "is not listed by"),
    Kind.GENERIC: ("contains", "does not contain"),
    Kind.COUNTER: ("reaches", "does not reach"),
}


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """One condition of one rule: whether it holds, and the compared values.

    `entry` is the entry that makes the condition hold; None if it does not hold, and for counters and DNS lists.
    `unproven` means that the client's names are only claimed, so this condition ignores them.
    """

    condition: Condition
    outcome: Outcome
    seen: tuple[bytes, ...]
    entry: WrittenEntry | None
    unproven: bool


class OwnerRecord(NamedTuple):
    """The owner of the client's address, the network of the database's record (empty without one), and the database."""

    owner: Owner
    network: str
    source: str


class Query(NamedTuple):
    """One query to DNS (`1.2.0.192.in-addr.arpa PTR`) with its answers (perhaps none), or the reason of its failure."""

    question: str
    answers: tuple[str, ...]
    failure: str | None
    seconds: float
    meaning: str = ""  # the meaning of a DNS list's answer


class CounterValue(NamedTuple):
    """The value of a counter that counts the request, and the source of the value."""

    name: str
    value: int
    source: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision with its reasons.

    `identity` is the client's reverse DNS, None if the decision did not need it, and `source` is the source of that
    identity. `queries` has the DNS queries. `record` is None if the ruleset declares no database of networks, and no
    owner was given.
    """

    loaded: Loaded
    request: Request
    decision: Decision
    identity: Identity | None
    lists: Mapping[str, ListAnswer]
    source: str
    queries: tuple[Query, ...]
    rules: tuple[
        tuple[RuleTrace, tuple[ConditionResult, ...], tuple[ConditionResult, ...]], ...
    ]  # reasons of match and of except
    record: OwnerRecord | None = None
    counters: tuple[CounterValue, ...] = ()

    @property
    def hostname(self) -> bytes:
        """The client's verified name; empty if there is none."""
        return self.identity.hostname if self.identity is not None else b""

    @property
    def reply(self) -> str:
        """The code and text of the decision."""
        return reply_text(self.decision, self.request, self.identity, NO_ID).decode("ascii")

    @property
    def place(self) -> str:
        """File and line of the deciding rule; only the file if no rule decided."""
        rule = self.decision.rule
        return f"{self.loaded.rules_file.path}:{rule.line}" if rule is not None else self.loaded.rules_file.path


def explain(
    loaded: Loaded,
    request: Request,
    decision: Decision,
    facts: Facts,
    today: datetime.date,
    *,
    source: str,
    queries: tuple[Query, ...] = (),
    owner_given: bool = False,
    counters: tuple[CounterValue, ...] = (),
) -> Explanation:
    """Collects the reasons of a decision; `today` is the date in UTC.

    `owner_given` means that the owner in `facts` is not from the databases of the ruleset.
    """
    rules = []
    identity = facts.identity
    for rule_trace in trace(loaded.ruleset, request, facts, today):
        written = loaded.rules_file.rules[rule_trace.rule.number]
        lets_through = rule_trace.rule.action.verb is Verb.DUNNO
        rules.append(
            (
                rule_trace,
                tuple(
                    _reason(condition, outcome, loaded, request, facts, exempting=lets_through)
                    for condition, (_, outcome) in zip(written.match, rule_trace.match, strict=True)
                ),
                tuple(
                    _reason(condition, outcome, loaded, request, facts, exempting=not lets_through)
                    for condition, (_, outcome) in zip(written.exceptions, rule_trace.exceptions, strict=True)
                ),
            )
        )
    record = (
        OwnerRecord(facts.owner, *_network(loaded, request, owner_given=owner_given))
        if facts.owner is not None
        else None
    )
    lists = facts.lists
    return Explanation(loaded, request, decision, identity, lists, source, queries, tuple(rules), record, counters)


def _network(loaded: Loaded, request: Request, *, owner_given: bool) -> tuple[str, str]:
    """Returns the network of the client's record (empty without one), and the names of the databases."""
    if owner_given:
        return "", "as given"
    databases = loaded.rules_file.databases
    files = {database.info.shown: None for _, database in sorted(databases.items())}
    networks = (database.network_of(request) for _, database in sorted(databases.items()))
    return next(filter(None, networks), ""), ", ".join(files)


def _reason(
    written: WrittenCondition,
    outcome: Outcome,
    loaded: Loaded,
    request: Request,
    facts: Facts,
    *,
    exempting: bool,
) -> ConditionResult:
    """Returns the reason of a condition's outcome; `exempting` means that the condition would let mail through."""
    condition, identity = written.condition, facts.identity
    if condition.kind is Kind.LISTED:
        answers = format_answers({n: facts.lists[n] for n in written.dns_list_names if n in facts.lists})
        return ConditionResult(condition, outcome, answers, None, unproven=False)
    if condition.kind is Kind.COUNTER:
        values = facts.counters or {}
        names = dict.fromkeys(term[0] for value in condition.values if (term := parse_comparison(value)) is not None)
        seen = tuple(f"{name} = {values[name]}".encode() for name in names if name in values)
        return ConditionResult(condition, outcome, seen or (b"a request that is not counted",), None, unproven=False)
    unproven = (
        exempting
        and condition.subject == Subject.HOSTNAME
        and identity is not None
        and identity.status is not Status.VERIFIED
    )
    entry = _entry(written, outcome, loaded.rules_file.path, request, facts)
    return ConditionResult(condition, outcome, _seen(condition, request, facts), entry, unproven)


def _seen(condition: Condition, request: Request, facts: Facts) -> tuple[bytes, ...]:
    """Returns the values that a condition compared; empty if there are none."""
    identity, owner = facts.identity, facts.owner or NO_OWNER
    match condition.subject:
        case Subject.ASN:
            return (b"AS%d" % owner.asn,) if owner.asn else ()
        case Subject.ASN_NAME:
            return (owner.asn_name.encode("utf-8", "replace"),) if owner.asn else ()
        case Subject.COUNTRY:
            return (owner.country.encode(),) if owner.country else ()
    if condition.subject == Subject.REVERSE_DNS:
        return (identity.status.encode(),) if identity is not None else ()
    if condition.subject == Subject.HOSTNAME:
        return identity.verified or identity.claimed if identity is not None else ()
    return (request.get(condition.subject),)


def _entry(
    written: WrittenCondition, outcome: Outcome, path: str, request: Request, facts: Facts
) -> WrittenEntry | None:
    """Returns the first entry that makes a condition hold; None if it does not hold. Finds it by binary search."""
    if outcome is not Outcome.YES:
        return None
    entries = [WrittenEntry(value.text, path, value.line, value.column) for value in written.values]
    for _, definition in written.lists:
        entries += definition.entries()
    while len(entries) > 1:
        half = len(entries) // 2
        holds = _holds_with(written, entries[:half], request, facts)
        entries = entries[:half] if holds else entries[half:]
    return entries[0]


def _holds_with(written: WrittenCondition, entries: Sequence[WrittenEntry], request: Request, facts: Facts) -> bool:
    """Returns whether a condition would hold if it had these entries only."""
    collection, _ = parse_entries(written.type.form, [entry.text.encode() for entry in entries])
    condition = Condition(written.type.name, written.type.subject, written.type.kind, (), 0)
    rule = Rule("alone", 0, (condition,), (), Action(Verb.DUNNO))
    index = build_index([rule], {0: [collection]}, build_tables, domains=registrable_domains())
    return 0 in index.lookups[0].find(request, facts).conditions


def readable(value: bytes) -> str:
    """Returns a value from a client or DNS in a form safe for a terminal: unprintable bytes are escaped."""
    return printable(value.decode("utf-8", "backslashreplace"))


# --- As JSON ----------------------------------------------------------------------------------------------------------


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Returns the explanation as a JSON object; the keys are those of the decision log if it has them."""
    decision, identity, ruleset = explanation.decision, explanation.identity, explanation.loaded.ruleset
    result: dict[str, Any] = {
        "action": decision.word if decision.action is decision.verb else decision.action,
        "would": decision.word if ruleset.observe else None,
        "reply": explanation.reply,
        "rule": decision.rule_name,
        "place": explanation.place,
        "downgraded": decision.downgraded,
        "observed": list(decision.observed),
        "client_address": readable(explanation.request.get("client_address")),
        "ruleset": ruleset.hash,
        "dns": None,
        "rules": [
            {
                "name": rule_trace.rule.name,
                "line": rule_trace.rule.line,
                "action": rule_trace.rule.action.verb,
                "mode": "observe" if rule_trace.rule.observe else "enforce",
                "expired": rule_trace.expired,
                "outcome": rule_trace.outcome.value,
                "match": [_reason_as_json(reason) for reason in match],
                "except": [_reason_as_json(reason) for reason in exceptions],
            }
            for rule_trace, match, exceptions in explanation.rules
        ],
    }
    if explanation.lists:
        result["lists"] = as_object({"lists": format_answers(explanation.lists)}, 1 << 20).get("lists", {})
        result["list_queries"] = [_query_as_json(query) for query in explanation.queries if query.meaning]
    if explanation.counters:
        result["counters"] = {name: {"value": value, "source": source} for name, value, source in explanation.counters}
    if explanation.record is not None:
        owner, network, source = explanation.record
        result["network"] = {
            "asn": owner.asn or None,
            "asn_name": printable(owner.asn_name) or None,
            "country": owner.country or None,
            "network": network or None,
            "source": source,
        }
    if identity is not None:
        result["dns"] = {
            "source": explanation.source,
            "reverse_dns": identity.status,
            "dns_error": identity.reason,
            "verified": [readable(name) for name in identity.verified],
            "claimed": [readable(name) for name in identity.claimed],
            "names_known": identity.names_known,
            "dns_ms": round(identity.seconds * 1000, 1),
            "queries": [_query_as_json(query) for query in explanation.queries if not query.meaning],
        }
    return result


def _query_as_json(query: Query) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "question": query.question,
        "answers": list(query.answers),
        "failure": query.failure,
        "ms": round(query.seconds * 1000, 1),
    }
    return {**fields, "meaning": query.meaning} if query.meaning else fields


def _reason_as_json(reason: ConditionResult) -> dict[str, Any]:
    entry = reason.entry
    return {
        "condition": reason.condition.name,
        "values": list(reason.condition.values),
        "outcome": reason.outcome.value,
        "seen": [readable(text) for text in reason.seen],
        "entry": None if entry is None else {"text": entry.text, "file": entry.path, "line": entry.line},
    }


# --- For people -------------------------------------------------------------------------------------------------------


def as_tables(explanation: Explanation) -> Iterator[Table]:
    """Yields a table of the decision and its facts, and a table of the rules, from the top to the deciding rule."""
    yield _summary(explanation)
    rules = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    rules.add_column(justify="right", style="dim", no_wrap=True)
    rules.add_column(no_wrap=True)
    rules.add_column(no_wrap=True)
    rules.add_column(overflow="fold")
    for rule_trace, match, exceptions in explanation.rules:
        is_deciding = rule_trace.rule is explanation.decision.rule
        word, style = _word(rule_trace, explanation.decision)
        name_style = "bold" if is_deciding else ""
        lines = Text("\n").join(_explaining_lines(rule_trace, match, exceptions))
        rules.add_row(str(rule_trace.rule.number + 1), Text(rule_trace.rule.name, name_style), Text(word, style), lines)
    if explanation.decision.rule is None:
        style = _STYLES.get(explanation.decision.verb, "bold green")
        rules.add_row("", Text("default", "bold"), Text(explanation.decision.verb, style), Text("no rule decided"))
    yield rules


def _summary(explanation: Explanation) -> Table:
    decision, ruleset, request = explanation.decision, explanation.loaded.ruleset, explanation.request
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(decision.word, _STYLES.get(decision.verb, "bold green")), Text(explanation.reply, "bold"))
    grid.add_row("rule", Text(f"{decision.rule_name}  ({explanation.place})"))
    if decision.rule is not None and decision.rule.note:
        grid.add_row("note", Text(" ".join(decision.rule.note.split())))
    if ruleset.observe:
        grid.add_row("mode", Text("observe: Postfix gets DUNNO, whatever is decided", "yellow"))
    if decision.downgraded:
        grid.add_row("instead of", Text("REJECT: DNS failed, and the failure may be temporary", "yellow"))
    if decision.observed:
        grid.add_row("observed", Text(", ".join(decision.observed)))
    address = readable(request.get("client_address"))
    name = readable(explanation.hostname) if explanation.hostname else "unknown"
    grid.add_row("client", Text(f"{name}[{address}]"))
    for label, attribute in (
        ("helo", "helo_name"),
        ("from", "sender"),
        ("to", "recipient"),
        ("login", "sasl_username"),
    ):
        if value := request.get(attribute):
            grid.add_row(label, Text(readable(value)))
    if explanation.record is not None:
        grid.add_row("network", _owner_text(explanation.record))
    grid.add_row("reverse DNS", _reverse_dns_text(explanation))
    for query in explanation.queries:
        if not query.meaning:
            grid.add_row("", _query_text(query))
    _add_counters(grid, explanation.counters)
    for name, answer in explanation.lists.items():
        meaning = answer.status.value if answer.asked else "not listed: nothing to look up"
        reason = (
            f" ({answer.reason})" if answer.reason else f"  {' '.join(answer.addresses)}" if answer.addresses else ""
        )
        grid.add_row("DNS list", Text(f"{name}: ").append(meaning, "bold").append(reason))
        for query in explanation.queries:
            if query.meaning.startswith(f"{name}: "):
                grid.add_row("", _query_text(query))
    return grid


def _add_counters(grid: Table, counters: tuple[CounterValue, ...]) -> None:
    for name, value, source in counters:
        grid.add_row("counter", Text(f"{name} = {value:,}").append(f"  [{printable(source)}]", "dim"))


def _query_text(query: Query) -> Text:
    text = Text(f"{query.question}  ").append(query.failure or ", ".join(query.answers) or "none", "bold")
    return text.append(f"  ({query.seconds * 1000:.1f} ms)", "dim")


def _owner_text(record: OwnerRecord) -> Text:
    """`AS64496 Example Internet Inc., JP, 198.51.100.0/22  (asn.mmdb of 2026-11-01)`."""
    owner = record.owner
    system = f"AS{owner.asn} {printable(owner.asn_name)}".rstrip() if owner.asn else ""
    text = Text(", ".join(filter(None, (system, owner.country, record.network))) or "no record", "bold")
    return text.append(f"  ({record.source})", "dim")


def _reverse_dns_text(explanation: Explanation) -> Text:
    """Returns the client's reverse DNS and where it is from."""
    identity = explanation.identity
    if identity is None:
        return Text("not needed", "dim")
    text = Text(identity.status, "bold")
    if identity.reason is not None:
        text.append(f" ({identity.reason})")
    if identity.verified:
        text.append(f"  {', '.join(map(readable, identity.verified))}")
    if identity.claimed:
        text.append(f"  claimed: {', '.join(map(readable, identity.claimed))}")
    if identity.status is Status.ERROR and not identity.names_known:
        text.append("  (its names are unknown)", "dim")
    took = f", {identity.seconds * 1000:.1f} ms" if identity.seconds else ""
    return text.append(f"  [{explanation.source}{took}]", "dim")


def _word(rule_trace: RuleTrace, decision: Decision) -> tuple[str, str]:
    """Returns the result of a rule in a word, and its style."""
    if rule_trace.expired:
        return f"expired {rule_trace.rule.expires}", "dim"
    if rule_trace.rule.observe and rule_trace.outcome in {Outcome.YES, Outcome.IN_DOUBT}:
        return "observed", "cyan"
    if rule_trace.rule is decision.rule:
        return decision.word, _STYLES.get(decision.verb, "bold green")
    return rule_trace.outcome.value, "yellow" if rule_trace.outcome is Outcome.UNKNOWN else "dim"


def _explaining_lines(
    rule_trace: RuleTrace, match: tuple[ConditionResult, ...], exceptions: tuple[ConditionResult, ...]
) -> list[Text]:
    """Returns the conditions that explain a rule's outcome; only one for a rule that does not match."""
    failed = [reason for reason in match if reason.outcome is Outcome.NO]
    if failed:
        return [_line("", failed[0])]
    excepted = [reason for reason in exceptions if reason.outcome is not Outcome.NO]
    if rule_trace.outcome is Outcome.NO and excepted:
        return [_line("except ", excepted[0])]
    return [*(_line("", reason) for reason in match), *(_line("except ", reason) for reason in excepted)]


def _line(prefix: str, reason: ConditionResult) -> Text:
    condition = reason.condition
    if condition.kind is Kind.LISTED:
        listed = f"{prefix}listed: {', '.join(map(readable, reason.seen)) or 'nothing was asked'}"
        at_least = f" (at least {condition.at_least} of them)" if condition.at_least > 1 else ""
        return Text(listed + at_least, {Outcome.YES: "", Outcome.NO: "dim"}.get(reason.outcome, "yellow"))
    holds, fails = _COMPARED[condition.kind]
    seen = ", ".join(readable(text) or "''" for text in reason.seen) or "no name"
    generic = "the client's address" if condition.kind is Kind.GENERIC else ""
    if reason.entry is not None:
        found = Text(f"{prefix}{condition.name}: {seen} {holds} ").append(generic or reason.entry.text or "''", "bold")
        return found.append(f"  ({reason.entry.path}:{reason.entry.line})", "dim")
    values = [generic or value or "''" for value in condition.values]
    wanted = values[0] if len(values) == 1 else f"any of {', '.join(values[:4])}{' ...' if len(values) > 4 else ''}"
    if reason.outcome is Outcome.YES:  # a counter: no entry is searched for
        return Text(f"{prefix}{condition.name}: {seen} {holds} {wanted}")
    if reason.outcome is Outcome.NO:
        text = f"{seen} {fails} {wanted}" if reason.seen else f"nothing to compare with {wanted}"
        if reason.unproven and reason.seen:
            text = f"{seen} is only claimed, and a claimed name never exempts"
        return Text(f"{prefix}{condition.name}: {text}", "dim")
    return Text(f"{prefix}{condition.name}: DNS failed, so it is unknown whether it {holds} {wanted}", "yellow")
