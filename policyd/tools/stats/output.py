"""Statistics of the decision log, for people at a terminal and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from rich.text import Text

from policyd.config.problems import counted
from policyd.logs.timestamps import rfc3339
from policyd.tools.display import shown, styled_verb, table
from policyd.tools.stats.collect import TOP, over_time

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from rich.console import Console

    from policyd.tools.stats.collect import CounterStats, ListStats, OwnerStats, RuleStats, Stats

# By action, in drawing order: the mark in a bar, which is readable without colour, and its colour.
_MARKS = {"REJECT": ("#", "red"), "DEFER": ("+", "yellow"), "DEFER_IF_PERMIT": ("~", "yellow"), "DUNNO": (".", "green")}

# Length of the longest bar, in characters.
_BAR = 60

# Maximum number of rules named in one line; --json has all.
_MAX_NAMED = 20

# Percentiles of the time that a decision took, as a share of the decisions.
_PERCENTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


def stats_as_json(stats: Stats) -> dict[str, Any]:
    """Returns the statistics as JSON. Values from the log are printable ASCII."""
    unit, steps = over_time(stats)
    return {
        "lines": stats.counts.lines,
        "decisions": stats.decisions,
        "first": _time(stats.first),
        "last": _time(stats.last),
        "rulesets": {ruleset: _time(time) for ruleset, time in stats.rulesets.items()},
        "actions": dict(stats.actions.most_common()),
        "would": dict(stats.would.most_common()),
        "greylist": dict(stats.greylist.most_common()),
        "greylisted_mails": {
            "deferred": stats.greylisted.deferred,
            "passed": stats.greylisted.passed,
            "never_came_back": stats.greylisted.never_came_back,
        },
        "counters": {
            name: {"rules": counter.rules, "decisions": counter.decisions, "observed": counter.observed}
            for name, counter in stats.counters.items()
        },
        "downgraded": stats.downgraded,
        "over_time": {"unit": unit, "steps": [{"start": label, **actions} for label, actions in steps]},
        "rules": [_rule_as_json(name, rule) for name, rule in by_hits(stats.rules)],
        "observed": [
            {**_rule_as_json(name, rule), "would": stats.rule_actions.get(name)}
            for name, rule in by_hits(stats.observed)
        ],
        "unmatched": stats.unmatched,
        "only_elsewhere": only_elsewhere(stats),
        "networks": dict(stats.top_networks),
        "suffixes": dict(stats.suffixes.most_common(TOP)),
        "systems": {
            f"AS{asn}": {"name": owner.name, "decisions": owner.decisions, "refused": owner.refused}
            for asn, owner in by_refused(stats.systems)
        },
        "countries": {
            country: {"decisions": owner.decisions, "refused": owner.refused}
            for country, owner in by_refused(stats.countries)
        },
        "sender_domains": {shown(domain): count for domain, count in stats.sender_domains.most_common(TOP)},
        "reverse_dns": dict(stats.reverse_dns.most_common()),
        "dns_errors": dict(stats.dns_errors.most_common()),
        "lists": {
            name: {
                "asked": dns_list.asked,
                "listed": dns_list.listed,
                "listed_alone": dns_list.alone,
                "unknown": dns_list.unknown,
                "also_delivered": dns_list.delivered,
            }
            for name, dns_list in lists_by_use(stats)
        },
        "milliseconds": {name: stats.percentile(share) for name, share in _PERCENTILES},
    }


def by_hits(rules: dict[str, RuleStats]) -> list[tuple[str, RuleStats]]:
    """Returns rules with their figures, those with the most decisions first."""
    return sorted(rules.items(), key=lambda rule: -rule[1].hits)


def only_elsewhere(stats: Stats) -> list[str]:
    """Returns the rules whose refused mails all also passed, at another time or from another client."""
    return [name for name, rule in by_hits(stats.rules) if rule.only_elsewhere]


_Key = TypeVar("_Key", int, str)


def by_refused(owners: dict[_Key, OwnerStats]) -> list[tuple[_Key, OwnerStats]]:
    """Returns the systems or countries with the most refusals, at most TOP."""
    return sorted(owners.items(), key=lambda item: (-item[1].refused, -item[1].decisions, item[0]))[:TOP]


def owner_tables(stats: Stats) -> list[tuple[str, list[tuple[str, OwnerStats]]]]:
    """Returns a table by system and a table by country: the heading, and rows with a label; no rows without data."""
    systems = [(f"AS{asn} {owner.name}".rstrip(), owner) for asn, owner in by_refused(stats.systems)]
    return [("system", systems), ("country", by_refused(stats.countries))]


def _rule_as_json(name: str, rule: RuleStats) -> dict[str, Any]:
    return {
        "rule": name,
        "hits": rule.hits,
        "actions": dict(rule.actions.most_common()),
        "clients": len(rule.clients),
        "first": _time(rule.first),
        "last": _time(rule.last),
        "refused_mails": len(rule.refused_mails),
        "elsewhere": rule.elsewhere,
        "uncounted": rule.uncounted,
    }


def _time(seconds: float | None) -> str | None:
    return rfc3339(seconds) if seconds is not None else None


# --- For people -----------------------------------------------------------------------------------------------------


def print_stats(console: Console, stats: Stats) -> None:
    """Prints all statistics, the actions first."""
    console.print(summary(stats))
    console.print()
    _print_actions(console, stats)
    _print_over_time(console, stats)
    _print_rules(console, stats)
    for title, rows in origins(stats):
        if rows:
            console.print(Text(title, style="bold"))
            for name, count in rows:
                console.print(Text(f"{count:>9,}  {name}"))
            console.print()
    for heading, owners in owner_tables(stats):
        if owners:
            _print_owners(console, heading, owners)
    if stats.reverse_dns:
        errors = f" ({with_counts(stats.dns_errors)})" if stats.dns_errors else ""
        console.print(Text(f"reverse DNS: {with_counts(stats.reverse_dns)}{errors}"))
    if stats.lists:
        _print_lists(console, stats)
    if stats.greylist:
        console.print(Text(f"greylisting: {greylisting(stats)}"))
    for name, counter in stats.counters.items():
        console.print(Text(f"counter {name}: {counter_decisions(counter)}"))
    if stats.downgraded:
        console.print(f"{counted(stats.downgraded, 'REJECT')} became DEFER, because DNS failed")
    if stats.milliseconds:
        console.print(f"duration of a decision: {durations(stats)}")


def with_counts(counts: Counter[str]) -> str:
    """Returns words with their counts, the most frequent first: `REJECT 2,000, DEFER 12`."""
    return ", ".join(f"{word} {count:,}" for word, count in counts.most_common())


def durations(stats: Stats) -> str:
    """Returns percentiles of the time that decisions took; the log must have the time of at least one decision."""
    return ", ".join(f"{name} {stats.percentile(share):g} ms" for name, share in _PERCENTILES)


def greylisting(stats: Stats) -> str:
    """Returns the results of greylisting, and how many of the deferred mails passed later or never came back."""
    words = with_counts(stats.greylist)
    mails = stats.greylisted
    if not mails.deferred:
        return words
    more = "or more " if mails.uncounted else ""
    return (
        f"{words}; {counted(mails.deferred, 'mail')} {more}deferred, {mails.passed:,} passed later,"
        f" {mails.never_came_back:,} never came back"
    )


def counter_decisions(counter: CounterStats) -> str:
    """Returns the numbers of decisions and of observations of the rules that compare a counter, and these rules."""
    rules = ", ".join(counter.rules[:_MAX_NAMED]) or "none"
    return f"{counted(counter.decisions, 'decision')}, {counter.observed:,} observed (rules: {rules})"


def summary(stats: Stats) -> str:
    """Returns the number of decisions, their first and last time, and the last three of their rulesets."""
    span = f" from {rfc3339(stats.first)} to {rfc3339(stats.last)}" if stats.first is not None else ""
    rulesets = ", ".join(ruleset or "-" for ruleset in list(stats.rulesets)[-3:])
    more = len(stats.rulesets) - 3
    return (
        f"{counted(stats.decisions, 'decision')}{span}; {counted(len(stats.rulesets), 'ruleset')}:"
        f" {'... ' if more > 0 else ''}{rulesets}"
    )


def origins(stats: Stats) -> list[tuple[str, list[tuple[str, int]]]]:
    """Returns titles, each with the most frequent origins of refused mail and their counts."""
    return [
        ("networks of refused mails", stats.top_networks),
        ("domains of their clients' host names", stats.suffixes.most_common(TOP)),
        ("domains of their senders", [(shown(name), count) for name, count in stats.sender_domains.most_common(TOP)]),
    ]


def lists_by_use(stats: Stats) -> list[tuple[str, ListStats]]:
    """Returns the DNS lists with their figures, those with the most listings first."""
    return sorted(stats.lists.items(), key=lambda item: (-item[1].listed, item[0]))


def _print_lists(console: Console, stats: Stats) -> None:
    numbers = ("asked", "listed", "by it alone", "unknown", "also delivered")
    columns = table("DNS list", *numbers, numbers=numbers)
    for name, dns_list in lists_by_use(stats):
        counts = (dns_list.asked, dns_list.listed, dns_list.alone, dns_list.unknown, dns_list.delivered)
        columns.add_row(Text(name), *(f"{count:,}" for count in counts))
    console.print(columns)
    console.print()


def _print_owners(console: Console, heading: str, owners: Iterable[tuple[str, OwnerStats]]) -> None:
    numbers = ("decisions", "refused", "share")
    columns = table(heading, *numbers, numbers=numbers)
    for label, owner in owners:
        columns.add_row(
            Text(label), f"{owner.decisions:,}", f"{owner.refused:,}", f"{owner.refused / owner.decisions:.0%}"
        )
    console.print(columns)
    console.print()


def _print_actions(console: Console, stats: Stats) -> None:
    columns = table("action", "decisions", "share", numbers=("decisions", "share"))
    for action, count in stats.actions.most_common():
        columns.add_row(styled_verb(action), f"{count:,}", f"{count / stats.decisions:.1%}")
    console.print(columns)
    if stats.would:
        console.print(f"not sent, because the file has `mode: observe`: {with_counts(stats.would)}")
    console.print()


def _print_over_time(console: Console, stats: Stats) -> None:
    unit, steps = over_time(stats)
    most = max((actions.total() for _, actions in steps), default=0)
    if not most:
        return
    legend = Text(f"by {unit}: ")
    for action, (mark, style) in _MARKS.items():
        if any(actions[action] for _, actions in steps):
            legend.append(f"{mark} {action}  ", style=style)
    console.print(legend)
    for label, actions in steps:
        bar = Text(f"{label}  ").append(_bar(actions, most)).append(f" {actions.total():,}" if actions else "")
        console.print(bar)
    console.print()


def _bar(actions: Counter[str], most: int) -> Text:
    bar = Text()
    drawn = total = 0
    for action, (mark, style) in _MARKS.items():
        total += actions[action]
        # Rounds the end of this part, not its length, so that rounding errors do not add up. Every action has a mark.
        length = max(round(total * _BAR / most) - drawn, 1 if actions[action] else 0)
        bar.append(mark * length, style=style)
        drawn += length
    return bar


def _print_rules(console: Console, stats: Stats) -> None:
    console.print(_rule_table(stats, by_hits(stats.rules)))
    console.print()
    if stats.observed:
        console.print(Text("observed rules: their actions, and the answers that were sent instead", style="bold"))
        columns = table("rule", "would", "decisions", "clients", "last", "answered", numbers=("decisions", "clients"))
        for name, rule in by_hits(stats.observed):
            would = styled_verb(stats.rule_actions[name]) if name in stats.rule_actions else Text("-")
            columns.add_row(
                Text(name), would, f"{rule.hits:,}", clients_figure(rule), rfc3339(rule.last), with_counts(rule.actions)
            )
        console.print(columns)
        console.print()
    for names, what in (
        (stats.unmatched, "never matched"),
        (only_elsewhere(stats), "refused only mails that were also delivered"),
    ):
        if names:
            more = len(names) - _MAX_NAMED
            listed = ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")
            console.print(Text(f"{what}: {listed}"))
    if stats.unmatched or only_elsewhere(stats):
        console.print()


def _rule_table(stats: Stats, rules: Iterable[tuple[str, RuleStats]]) -> Any:
    numbers = ("decisions", "clients", "also delivered")
    columns = table("rule", "action", "decisions", "clients", "last", "also delivered", numbers=numbers)
    for name, rule in rules:
        actions = Text(", ").join(styled_verb(action) for action, _ in rule.actions.most_common())
        columns.add_row(
            Text(name), actions, f"{rule.hits:,}", clients_figure(rule), rfc3339(rule.last), also_delivered_figure(rule)
        )
    return columns


def clients_figure(rule: RuleStats) -> str:
    """Returns the number of a rule's clients, with a `+` if there may be more."""
    return f"{len(rule.clients):,}{'+' if rule.uncounted else ''}"


def also_delivered_figure(rule: RuleStats) -> str:
    """Returns the share of a rule's refused mails that also passed, as `2 of 7`; empty if the rule refused no mail."""
    return f"{rule.elsewhere:,} of {len(rule.refused_mails):,}" if rule.refused_mails else ""
