"""Statistics of the decision log: actions over time, rules and their effect, origins of clients, DNS lists, greylisting
and counters.

Memory is bounded by the limits below, whatever clients send. Times are Unix seconds.
"""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.config.comparison import parse_comparison
from policyd.config.garbage_collection import without_garbage_collection
from policyd.config.public_suffixes import registrable_domains
from policyd.core.address import parse_address
from policyd.core.dns_lists import ListStatus
from policyd.core.facts import Greylisted
from policyd.core.normalize import domain_of
from policyd.core.ruleset import Kind
from policyd.decision_log.lists import parse_answers
from policyd.logs.counting import Distinct, Frequent, mail_key
from policyd.logs.decisions import DecisionCounts, decisions
from policyd.logs.timestamps import LogClock
from policyd.tools.address_blocks import block_of, part_of
from policyd.tools.display import shown
from policyd.tools.owners import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from policyd.core.index import Ruleset
    from policyd.decision_log.reader import LoggedDecision

# Maximum number of different clients of all rules together, about 100 MB.
_MAX_CLIENTS = 1_000_000

# Maximum number of mails (sender and recipient) that passed, and of refused or listed mails; about 60 MB each.
_MAX_MAILS = 500_000

# Maximum number of networks, of suffixes and of sender domains, about 10 MB each.
_MAX_ORIGINS = 50_000

# Maximum number of rules, of observed rules and of rulesets. 10,000 rules are many. Names come from the log, which must
# not fill memory.
_MAX_RULES = 50_000

# Maximum number of DNS lists: more than any ruleset has; names come from the log.
_MAX_LISTS = 1000

# Maximum number of systems and of countries, about 20 MB. Some 80,000 systems announce addresses; numbers come from the
# log.
_MAX_SYSTEMS = 100_000
_MAX_COUNTRIES = 1000

# Maximum number of mails that greylisting deferred, and of those that came back; about 60 MB together.
_MAX_GREYLISTED = 500_000

# Maximum number of hours: ten years.
_MAX_HOURS = 90_000

# The words of greylisting; any other word in a log is ignored.
_GREYLIST = {str(word).encode(): word for word in Greylisted}

_HOUR = 3600

# Maximum number of networks, suffixes, sender domains, systems and countries that are shown.
TOP = 10


@dataclass(slots=True)
class RuleStats:
    """The decisions of one rule; for an observed rule, the decisions in which it matched."""

    actions: Counter[str] = field(default_factory=Counter)  # decisions; for an observed rule, the answers given instead
    clients: set[bytes] = field(default_factory=set)
    first: float | None = None
    last: float | None = None
    refused_mails: set[int] = field(default_factory=set)  # hashes of sender and recipient
    elsewhere: int = 0  # refused mails that also passed, at another time or from another client
    uncounted: bool = False  # more clients or mails than could be counted

    @property
    def hits(self) -> int:
        return self.actions.total()

    @property
    def only_elsewhere(self) -> bool:
        """Whether all refused mails also passed: the rule stops nothing, or stops wanted mail."""
        return bool(self.refused_mails) and self.elsewhere == len(self.refused_mails)


@dataclass(slots=True)
class ListStats:
    """One DNS list: the number of decisions with an answer of the list, and the answers."""

    asked: int = 0
    listed: int = 0
    alone: int = 0  # listed by this list only
    unknown: int = 0
    mails: set[int] = field(default_factory=set)  # hashes of sender and recipient of listed mails
    delivered: int = 0  # listed mails that passed, then or at another time
    uncounted: bool = False  # more mails than could be counted


@dataclass(slots=True)
class OwnerStats:
    """The decisions on clients of one system or of one country, and the number of refusals."""

    decisions: int = 0
    refused: int = 0
    name: str = ""  # name of a system, in printable ASCII; empty if unknown


@dataclass(slots=True)
class GreylistedMails:
    """The mails (sender and recipient) that greylisting deferred, or that an observed rule would have deferred."""

    deferred: int = 0
    passed: int = 0  # deferred mails that a later decision let through
    uncounted: bool = False  # more mails than could be counted

    @property
    def never_came_back(self) -> int:
        return self.deferred - self.passed


@dataclass(slots=True)
class CounterStats:
    """One counter of today's ruleset: the rules that compare it, and the number of their decisions.

    `observed` is the number of decisions in which such a rule matched, but only observed.
    """

    rules: list[str] = field(default_factory=list)
    decisions: int = 0
    observed: int = 0


@dataclass(slots=True)
class Stats:
    """The statistics of all decisions that were read."""

    counts: DecisionCounts = field(default_factory=DecisionCounts)
    decisions: int = 0
    first: float | None = None
    last: float | None = None
    actions: Counter[str] = field(default_factory=Counter)  # verbs sent to Postfix
    would: Counter[str] = field(default_factory=Counter)  # decisions not sent because of a top-level `mode: observe`
    hours: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by Unix hour
    rules: dict[str, RuleStats] = field(default_factory=dict)
    observed: dict[str, RuleStats] = field(default_factory=dict)
    networks: Frequent[tuple[int, int]] = field(default_factory=lambda: Frequent(_MAX_ORIGINS))  # of refused mail
    suffixes: Frequent[str] = field(default_factory=lambda: Frequent(_MAX_ORIGINS))
    sender_domains: Frequent[bytes] = field(default_factory=lambda: Frequent(_MAX_ORIGINS))
    reverse_dns: Counter[str] = field(default_factory=Counter)
    dns_errors: Counter[str] = field(default_factory=Counter)
    lists: dict[str, ListStats] = field(default_factory=dict)
    systems: dict[int, OwnerStats] = field(default_factory=dict)  # by AS number
    countries: dict[str, OwnerStats] = field(default_factory=dict)
    greylist: Counter[str] = field(default_factory=Counter)  # results: new, early, passed, known, unknown
    greylisted: GreylistedMails = field(default_factory=GreylistedMails)
    counters: dict[str, CounterStats] = field(default_factory=dict)  # by name, with today's ruleset only
    downgraded: int = 0
    milliseconds: Counter[float] = field(default_factory=Counter)  # by duration, to two significant digits
    rulesets: dict[str, float | None] = field(default_factory=dict)  # hashes, with the time of the first decision
    unmatched: list[str] = field(default_factory=list)  # rules of today's ruleset that never matched
    rule_actions: dict[str, str] = field(default_factory=dict)  # by rule of today's ruleset

    @property
    def top_networks(self) -> list[tuple[str, int]]:
        return [(str(block_of(*part)), count) for part, count in self.networks.most_common(TOP)]

    def percentile(self, share: float) -> float | None:
        """The milliseconds within which this share (0 to 1) of the decisions was made; None without any times."""
        left = share * self.milliseconds.total()
        for value in sorted(self.milliseconds):
            left -= self.milliseconds[value]
            if left <= 0:
                return value
        return None


def collect(
    paths: Sequence[str],
    *,
    since: float | None = None,
    ruleset: Ruleset | None = None,
    advance: Callable[[int], None] | None = None,
) -> Stats:
    """Reads these decision logs, from `since` (Unix seconds) on. Raises `LogError`.

    With a ruleset, its rules that never matched are found, and its databases give the owners of clients if the log does
    not have them.
    """
    collector = _Collector(ruleset)
    stats = collector.stats
    clock = LogClock()
    with without_garbage_collection():
        for batch in decisions(paths, stats.counts, advance):
            for decision in batch:
                if decision.is_probe:
                    continue
                time = clock.seconds(decision.time)
                if since is None or (time is not None and time >= since):
                    collector.add(decision, time)
    collector.finish()
    if ruleset is not None:
        seen = stats.rules.keys() | stats.observed.keys()
        stats.unmatched = [rule.name for rule in ruleset.rules if rule.name not in seen]
        stats.rule_actions = {rule.name: str(rule.action.verb) for rule in ruleset.rules}
        _count_counters(stats, ruleset)
    return stats


class _Collector:
    def __init__(self, ruleset: Ruleset | None) -> None:
        self.stats = Stats()
        self._ruleset = ruleset if ruleset is not None and ruleset.owners is not None else None
        self._clients_limit = Distinct(_MAX_CLIENTS)
        self._mails_limit = Distinct(_MAX_MAILS)
        self._passed_limit = Distinct(_MAX_MAILS)
        self._passed: set[int] = set()
        self._greylisted_limit = Distinct(_MAX_GREYLISTED)
        self._deferred: set[int] = set()
        self._returned: set[int] = set()

    def add(self, decision: LoggedDecision, time: float | None) -> None:
        stats = self.stats
        action, decided = shown(decision.action), shown(decision.decided)
        stats.decisions += 1
        stats.actions[action] += 1
        self._count_greylist(decision, decided)
        if decision.would:
            stats.would[decided] += 1
        if time is not None:
            stats.first = time if stats.first is None else min(stats.first, time)
            stats.last = time if stats.last is None else max(stats.last, time)
            hour = int(time) // _HOUR
            if hour in stats.hours or len(stats.hours) < _MAX_HOURS:
                stats.hours[hour][decided] += 1
        self._count_rules(decision, decided, time)
        if decision.reverse_dns:
            stats.reverse_dns[shown(decision.reverse_dns)] += 1
        if decision.dns_error:
            stats.dns_errors[shown(decision.dns_error)] += 1
        if decision.lists:
            self._count_lists(decision)
        stats.downgraded += decision.downgraded
        if decision.ms is not None:
            stats.milliseconds[float(f"{decision.ms:.2g}")] += 1
        ruleset = shown(decision.ruleset)
        if ruleset not in stats.rulesets and len(stats.rulesets) < _MAX_RULES:
            stats.rulesets[ruleset] = time
        refused = decided != "DUNNO"
        if refused:
            self._count_origin(decision)
        if decision.asn or decision.country or self._ruleset is not None:
            self._count_owner(decision, refused=refused)

    def finish(self) -> None:
        for rule in self.stats.rules.values():
            rule.elsewhere = len(rule.refused_mails & self._passed)
        for counts in self.stats.lists.values():
            counts.delivered = len(counts.mails & self._passed)
        self.stats.greylisted.deferred = len(self._deferred)
        self.stats.greylisted.passed = len(self._deferred & self._returned)

    def _count_greylist(self, decision: LoggedDecision, decided: str) -> None:
        word = _GREYLIST.get(decision.greylist)
        if word is not None:
            self.stats.greylist[word] += 1
        mail = _mail(decision)
        if mail is None:
            return
        if word is not None and word.deferred:
            self.stats.greylisted.uncounted |= not self._greylisted_limit.add(self._deferred, mail)
        elif mail in self._deferred and (word is not None or decided == "DUNNO"):
            self._returned.add(mail)

    def _count_rules(self, decision: LoggedDecision, decided: str, time: float | None) -> None:
        stats = self.stats
        mail = _mail(decision)
        if decided == "DUNNO" and mail is not None:
            self._passed_limit.add(self._passed, mail)
        rule = _stats_of(stats.rules, decision.rule_name)
        if rule is not None:
            self._count_rule(rule, decision, decided, time)
            if decided != "DUNNO" and mail is not None:
                rule.uncounted |= not self._mails_limit.add(rule.refused_mails, mail)
        for name in decision.observed:
            observed = _stats_of(stats.observed, name)
            if observed is not None:
                self._count_rule(observed, decision, decided, time)

    def _count_lists(self, decision: LoggedDecision) -> None:
        answers = parse_answers(decision.lists)
        mail = _mail(decision)
        listed = [name for name, answer in answers.items() if answer.status is ListStatus.LISTED]
        for name, answer in answers.items():
            counts = self.stats.lists.get(name)
            if counts is None:
                if len(self.stats.lists) >= _MAX_LISTS:
                    continue
                counts = self.stats.lists[name] = ListStats()
            counts.asked += 1
            counts.unknown += answer.status is ListStatus.UNKNOWN
            if answer.status is ListStatus.LISTED:
                counts.listed += 1
                counts.alone += len(listed) == 1
                if mail is not None:
                    counts.uncounted |= not self._mails_limit.add(counts.mails, mail)

    def _count_rule(self, rule: RuleStats, decision: LoggedDecision, decided: str, time: float | None) -> None:
        rule.actions[decided] += 1
        rule.uncounted |= not self._clients_limit.add(rule.clients, decision.client_address)
        if time is not None:
            rule.first = time if rule.first is None else min(rule.first, time)
            rule.last = time if rule.last is None else max(rule.last, time)

    def _count_origin(self, decision: LoggedDecision) -> None:
        stats = self.stats
        address = parse_address(decision.client_address)
        if address is not None:
            stats.networks.add(part_of(*address))
        for name in (decision.hostname,) if decision.hostname else decision.claimed[:1]:
            suffix = registrable_domains().of(name)
            if suffix is not None:
                stats.suffixes.add(suffix)
        if decision.sender and (domain := domain_of(decision.sender)):
            stats.sender_domains.add(domain)

    def _count_owner(self, decision: LoggedDecision, *, refused: bool) -> None:
        systems, countries = self.stats.systems, self.stats.countries
        asn, asn_name, country = decision.owner
        if self._ruleset is not None and not (asn or country):
            asn, asn_name, country = owner_of(self._ruleset, decision.client_address, decision.owner)
        if asn and (asn in systems or len(systems) < _MAX_SYSTEMS):
            system = systems.setdefault(asn, OwnerStats())
            if not system.name and not asn_name and not system.decisions:  # the text format has no name
                known = owner_of(self._ruleset, decision.client_address, decision.owner)
                asn_name = known.asn_name if known.asn == asn else ""
            system.name = system.name or shown(asn_name.encode("utf-8", "replace"))
            system.decisions += 1
            system.refused += refused
        country = shown(country.encode("utf-8", "replace"))
        if country and (country in countries or len(countries) < _MAX_COUNTRIES):
            owner = countries.setdefault(country, OwnerStats())
            owner.decisions += 1
            owner.refused += refused


def _count_counters(stats: Stats, ruleset: Ruleset) -> None:
    stats.counters = {counter.definition.name: CounterStats() for counter in ruleset.counters}
    for rule in ruleset.rules:
        compared = {
            comparison[0]
            for condition in (*rule.match, *rule.exceptions)
            if condition.kind is Kind.COUNTER
            for value in condition.values
            if (comparison := parse_comparison(value)) is not None
        }
        for name in compared & stats.counters.keys():
            counts = stats.counters[name]
            counts.rules.append(rule.name)
            counts.decisions += stats.rules[rule.name].hits if rule.name in stats.rules else 0
            counts.observed += stats.observed[rule.name].hits if rule.name in stats.observed else 0


def _mail(decision: LoggedDecision) -> int | None:
    """Returns the key of a mail; None if the log has no sender or no recipient."""
    if decision.sender is None or not decision.recipient:
        return None
    return mail_key(decision.sender, decision.recipient)


def _stats_of(rules: dict[str, RuleStats], name: bytes) -> RuleStats | None:
    """Returns the figures of a rule; None if the rule is new and there are _MAX_RULES."""
    text = shown(name)
    found = rules.get(text)
    if found is None and len(rules) < _MAX_RULES:
        found = rules[text] = RuleStats()
    return found


# --- Over time ------------------------------------------------------------------------------------------------------


def over_time(stats: Stats) -> tuple[str, list[tuple[str, Counter[str]]]]:
    """Returns the decisions by hour, day or month, depending on the log's length, without gaps.

    The result is the unit, and for each hour, day or month a label and the number of decisions by action.
    """
    if not stats.hours:
        return "hour", []
    first, last = min(stats.hours), max(stats.hours)
    if last - first < 72:
        return "hour", [
            (_local(hour).strftime("%Y-%m-%d %H:00"), stats.hours.get(hour, Counter()))
            for hour in range(first, last + 1)
        ]
    days: defaultdict[datetime.date, Counter[str]] = defaultdict(Counter)
    for hour, actions in stats.hours.items():
        days[_local(hour).date()].update(actions)
    start, end = min(days), max(days)
    if (end - start).days < 92:
        every = [start + datetime.timedelta(days=number) for number in range((end - start).days + 1)]
        return "day", [(day.isoformat(), days[day]) for day in every]
    months: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for day, actions in days.items():
        months[day.year * 12 + day.month - 1].update(actions)
    return "month", [
        (f"{month // 12}-{month % 12 + 1:02}", months[month]) for month in range(min(months), max(months) + 1)
    ]


def _local(hour: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(hour * _HOUR).astimezone()
