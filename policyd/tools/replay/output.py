"""Formats a replay for people and as JSON. Delivered mails that would have been refused come first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from policyd.config.problems import counted
from policyd.logs.maillog import quote
from policyd.logs.timestamps import rfc3339
from policyd.tools.display import shown, styled_verb, table
from policyd.tools.judge import COUNTS_AS_DELIVERED, Assumption, ListAssumption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from policyd.logs.transaction import Observation
    from policyd.tools.replay.replay import Comparison, LogFacts, MailTally, Replay, RuleAnswer
    from policyd.tools.replay.waits import Waits

_COLUMNS = ("delivered", "mails", "clients", "sender domains")

# Maximum number of unmatched rules that are named; --json has all of them.
_MAX_UNMATCHED = 20


# --- For programs ---------------------------------------------------------------------------------------------------


def replay_as_json(replay: Replay) -> dict[str, Any]:
    """Returns the result of a replay. Values from the log are printable ASCII, as in the decision log."""
    return {
        "ruleset": replay.ruleset.hash,
        **_facts_as_json(replay.facts),
        "refused_delivered": replay.facts.refused_delivered,
        "rules": [_answer_as_json(answer) | _tally_as_json(tally) for answer, tally in replay.rules],
        "unmatched": replay.unmatched,
        "greylisting": _waits_as_json(replay.waits) if replay.waits is not None else None,
        "notes": _notes(replay.facts, replay.subjects, [tally for _, tally in replay.rules]),
    }


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the differences between two rulesets."""
    return {
        "ruleset": comparison.ruleset.hash,
        "against": comparison.old.hash,
        **_facts_as_json(comparison.facts),
        "changed": comparison.facts.changed,
        "refused_delivered": comparison.facts.refused_delivered,
        "changes": [
            {"from": _answer_as_json(before), "to": _answer_as_json(after)} | _tally_as_json(tally)
            for before, after, tally in comparison.changes
        ],
        "notes": _notes(comparison.facts, comparison.subjects, [tally for _, _, tally in comparison.changes]),
    }


def _waits_as_json(waits: Waits) -> dict[str, Any]:
    return {
        "deferred": waits.deferred,
        "delivered": waits.delivered,
        "longest_wait_seconds": round(waits.longest, 3) if waits.longest is not None else None,
        "never_came_back": waits.never_back,
        "uncounted": waits.uncounted,
    }


def _facts_as_json(facts: LogFacts) -> dict[str, Any]:
    return {
        "lines": facts.counts.lines,
        "lines_unknown": facts.counts.unknown,
        "transactions": facts.transactions,
        "delivered": facts.delivered,
        "first": rfc3339(facts.first) if facts.first is not None else None,
        "last": rfc3339(facts.last) if facts.last is not None else None,
        "assumed": facts.assumed,
        "unjudged": facts.unjudged,
        "lists_assumed": facts.lists_assumed,
        "no_owner": facts.no_owner,
        "list_assumption": str(facts.list_assumption),
        "left_out": facts.counts.left_out.notes(),
        "assumption": str(facts.assumption),
    }


def _answer_as_json(answer: RuleAnswer) -> dict[str, Any]:
    return {"rule": answer.rule, "action": str(answer.action), "mode": "observe" if answer.observed else "enforce"}


def _tally_as_json(tally: MailTally) -> dict[str, Any]:
    return {
        "transactions": tally.transactions,
        "delivered": tally.delivered,
        "passed": tally.passed,
        "clients": len(tally.clients),
        "sender_domains": len(tally.sender_domains),
        "uncounted": tally.uncounted,
        "examples": [_example_as_json(seen) for seen in tally.examples],
    }


def _example_as_json(seen: Observation) -> dict[str, Any]:
    return {
        "time": rfc3339(seen.time) if seen.time is not None else None,
        "client_address": shown(seen.client_address),
        "names": [shown(name) for name in seen.names],
        "standing": str(seen.name_status),
        "helo_name": shown(seen.helo_name),
        "sender": shown(seen.sender) if seen.sender is not None else None,
        "recipients": [shown(recipient) for recipient in seen.recipients],
        "outcome": str(seen.outcome),
        "by": shown(seen.by),
        "text": shown(seen.text),
    }


# --- For people -----------------------------------------------------------------------------------------------------


def print_replay(console: Console, replay: Replay) -> None:
    """Prints delivered mails that would have been refused, then every rule that matched."""
    _print_facts(console, replay.facts, f"ruleset {replay.ruleset.hash}")
    if replay.facts.refused_delivered:
        console.print(f"{_mails_were(replay.facts.refused_delivered)} delivered, and would have been refused:")
        _print_examples(console, [(answer.rule, tally) for answer, tally in replay.rules if answer.refuses])
    else:
        console.print("No mail that was delivered would have been refused.")
    console.print()
    columns = table("rule", "action", *_COLUMNS, numbers=_COLUMNS)
    for answer, tally in replay.rules:
        columns.add_row(Text(answer.rule), _action(answer), *_figures(tally, alarming=answer.refuses))
    console.print(columns)
    if replay.unmatched:
        more = len(replay.unmatched) - _MAX_UNMATCHED
        names = ", ".join(replay.unmatched[:_MAX_UNMATCHED])
        console.print(Text(f"no mail for: {names}" + (f" and {more:,} more rules" if more > 0 else "")))
    if replay.waits is not None:
        console.print(Text(_waits_line(replay.waits)))
    notes = _notes(replay.facts, replay.subjects, [tally for _, tally in replay.rules])
    if replay.ruleset.observe:
        notes.append("the file has `mode: observe`: policyd would log these answers and send none of them")
    _print_notes(console, notes)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints the mails that two rulesets answer differently. Delivered mails that are newly refused come first."""
    _print_facts(console, comparison.facts, f"ruleset {comparison.old.hash} -> {comparison.ruleset.hash}")
    if comparison.facts.refused_delivered:
        console.print(f"{_mails_were(comparison.facts.refused_delivered)} delivered, and would now be refused:")
        refused = [
            (after.rule, tally) for before, after, tally in comparison.changes if _is_newly_refused(before, after)
        ]
        _print_examples(console, refused)
        console.print()
    if comparison.changes:
        console.print(f"{counted(comparison.facts.changed, 'mail')} would be answered differently:")
        columns = table("from", "", "to", "", *_COLUMNS, numbers=_COLUMNS)
        for before, after, tally in comparison.changes:
            columns.add_row(
                _action(before),
                Text(before.rule),
                _action(after),
                Text(after.rule),
                *_figures(tally, alarming=_is_newly_refused(before, after)),
            )
        console.print(columns)
    else:
        console.print("Both rulesets give every one of these mails the same answer.")
    tallies = [tally for _, _, tally in comparison.changes]
    _print_notes(console, _notes(comparison.facts, comparison.subjects, tallies))


def _waits_line(waits: Waits) -> str:
    if waits.longest is not None:
        longest = f", {waits.longest:,.0f} s at most"
    else:
        longest = ", for a time that the log does not show" if waits.delivered else ""
    more = "+" if waits.uncounted else ""
    return (
        f"greylisting: {counted(waits.delivered, 'delivered mail')}{more} would have waited{longest}; "
        f"{counted(waits.never_back, 'mail')}{more} never came back"
    )


def _is_newly_refused(before: RuleAnswer, after: RuleAnswer) -> bool:
    return before.lets_through and after.refuses


def _mails_were(number: int) -> str:
    return f"{counted(number, 'mail')} {'was' if number == 1 else 'were'}"


def _action(answer: RuleAnswer) -> Text:
    verb = styled_verb(answer.action)
    return verb.append(" (observed)", style="dim") if answer.observed else verb


def _figures(tally: MailTally, *, alarming: bool) -> list[Text]:
    more = "+" if tally.uncounted else ""
    return [
        Text(f"{tally.delivered:,}", style="bold red" if alarming and tally.delivered else ""),
        Text(f"{tally.transactions:,}"),
        Text(f"{len(tally.clients):,}{more}"),
        Text(f"{len(tally.sender_domains):,}{more}"),
    ]


def _print_facts(console: Console, facts: LogFacts, rulesets: str) -> None:
    span = f" from {rfc3339(facts.first)} to {rfc3339(facts.last)}" if facts.first is not None else ""
    console.print(
        f"{counted(facts.counts.lines, 'line')}, {counted(facts.transactions, 'mail')}{span},"
        f" {facts.delivered:,} of them delivered; {rulesets}"
    )
    console.print()


def _print_examples(console: Console, rules: Iterable[tuple[str, MailTally]]) -> None:
    columns = table("rule", "time", "client", "sender", "recipient")
    for rule, tally in rules:
        delivered = [seen for seen in tally.examples if seen.outcome in COUNTS_AS_DELIVERED]
        for place, seen in enumerate(delivered):
            columns.add_row(Text("" if place else rule), rfc3339(seen.time), *_envelope(seen))
        if tally.delivered > len(delivered):
            columns.add_row("", Text(f"... and {tally.delivered - len(delivered):,} more", style="dim"))
    console.print(columns)


def _envelope(seen: Observation) -> list[Text]:
    name = shown(seen.names[0]) if seen.names else "unknown"
    recipient = f"<{shown(seen.recipients[0])}>" if seen.recipients else "-"
    if len(seen.recipients) > 1:
        recipient += f" +{len(seen.recipients) - 1}"
    sender = f"<{shown(seen.sender)}>" if seen.sender is not None else "-"
    return [Text(f"{name}[{shown(seen.client_address)}]"), Text(sender), Text(recipient)]


def _notes(facts: LogFacts, subjects: set[str], tallies: list[MailTally]) -> list[str]:
    """Returns notes on facts that the log lacks, and on other limits of the figures."""
    notes = []
    if facts.assumed:
        others = " or ".join(f"`--unknown {other}`" for other in Assumption if other is not facts.assumption)
        notes.append(
            f"{counted(facts.assumed, 'mail')}: the log does not say why the client had no name, so "
            f"`{facts.assumption}`"
            f" was assumed; see what {others} would change"
        )
    if facts.lists_assumed:
        other = ListAssumption.NOT_LISTED if facts.list_assumption is ListAssumption.UNKNOWN else ListAssumption.UNKNOWN
        notes.append(
            f"{counted(facts.lists_assumed, 'mail')}: the decision needed an answer of a DNS list that the log does not"
            f" have, so `{facts.list_assumption}` was assumed; see what `--lists {other}` would change"
        )
    if facts.unjudged:
        notes.append(
            f"{counted(facts.unjudged, 'mail')}: postscreen refused the client without looking up its name, so the log"
            " does not show which rule decides; the mails are not in the table"
        )
    if "helo_name" in subjects and facts.no_helo:
        notes.append(f"{counted(facts.no_helo, 'mail')}: the log has no HELO, so no rule on it could match")
    if facts.no_owner:
        notes.append(
            f"{counted(facts.no_owner, 'mail')}: the client's address has no record, so no rule on asn, asn_name_regex"
            " or country could match"
        )
    notes.extend(f"no log has `{name}`; rules that use it saw an empty value" for name in facts.unlogged)
    if any(tally.passed for tally in tallies):
        notes.append(
            "policyd's own log, and that of a filter before the queue, says only that a mail passed; such mails are"
            " counted as delivered"
        )
    if len(facts.writers) > 1 and "policyd" in facts.writers:
        notes.append("the logs have both policyd's and the mail server's lines: a mail may be counted twice")
    if any(tally.uncounted for tally in tallies):
        notes.append("a figure with a + is a minimum: counting stopped there")
    if facts.counts.hidden:
        notes.append(
            f"journalctl left out the text of {counted(facts.counts.hidden, 'line')}; read the journal with --all"
        )
    if facts.counts.unknown:
        quoted = quote(facts.counts.example)
        notes.append(f"{counted(facts.counts.unknown, 'line')} in no known form" + (f", as {quoted}" if quoted else ""))
    return [*notes, *facts.counts.left_out.notes()]


def _print_notes(console: Console, notes: list[str]) -> None:
    if notes:
        console.print()
    for note in notes:
        console.print(Text(f"note: {note}", style="dim"))
