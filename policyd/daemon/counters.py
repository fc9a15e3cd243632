"""Counters of connections, decisions, loads and DNS lookups: plain integers, because every request is counted."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from typing import TYPE_CHECKING

from policyd.core.ruleset import DEFAULT_RULE, Verb
from policyd.dns.resolver import DnsCounters

if TYPE_CHECKING:
    from policyd.core.engine import Decision
    from policyd.core.index import Ruleset

# Upper bounds of the latency histogram, in seconds: without DNS a decision takes some 10 us. With DNS it takes
# milliseconds to seconds, and at worst `dns.timeout` (5 s by default).
LATENCY_BOUNDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

# Seconds between two samples of the counters, and the number of samples that cover a minute.
RATE_INTERVAL = 5.0
RATE_SAMPLES = 12


class Counters:
    """Counts since the start of the daemon. A reload drops the counts of the rules that it removes."""

    def __init__(self) -> None:
        self.decisions: Counter[tuple[Verb, str]] = Counter()  # the verb sent to Postfix, and the rule
        self.observed: Counter[str] = Counter()  # requests that an observed rule matched, by the rule
        self.latency = [0] * (len(LATENCY_BOUNDS) + 1)  # decisions by duration; the last element is above all bounds
        self.latency_seconds = 0.0  # sum over all decisions
        self.accepted = 0  # connections
        self.refused = 0  # connections closed at once, because of limits.connections
        self.timeouts = 0  # connections closed because a request was not complete in time
        self.protocol_errors = 0
        self.bugs = 0  # of connections and reloads
        self.loads: Counter[str] = Counter(success=0, failure=0)  # after the start
        self.dns = DnsCounters()

    def decided(self, action: Verb, decision: Decision, seconds: float) -> None:
        """Counts one decision; `action` is the verb sent to Postfix, `seconds` the time from the request's arrival."""
        rule = decision.rule
        self.decisions[action, rule.name if rule is not None else DEFAULT_RULE] += 1
        for name in decision.observed:
            self.observed[name] += 1
        self.latency[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.latency_seconds += seconds

    def forget_rules(self, ruleset: Ruleset) -> None:
        """Drops the counts of rules that are not in the ruleset: names must not pile up over reloads."""
        known = {rule.name for rule in ruleset.rules} | {DEFAULT_RULE}
        for key in [key for key in self.decisions if key[1] not in known]:
            del self.decisions[key]
        for name in [name for name in self.observed if name not in known]:
            del self.observed[name]


class Rates:
    """Decisions per second over the last minute, by the verb sent to Postfix; from samples of the counters."""

    def __init__(self, counters: Counters, now: float) -> None:
        self._counters = counters
        self._samples: deque[tuple[float, Counter[Verb]]] = deque(maxlen=RATE_SAMPLES + 1)
        self._samples.append((now, Counter()))

    def sample(self, now: float) -> None:
        """Takes a sample if the last one is RATE_INTERVAL seconds old; `now` on the monotonic clock."""
        if now - self._samples[-1][0] >= RATE_INTERVAL:
            self._samples.append((now, self._totals()))

    def forget(self, now: float) -> None:
        """Drops all samples, because the counts of removed rules have been dropped."""
        self._samples.clear()
        self._samples.append((now, self._totals()))

    def per_second(self, now: float) -> dict[str, float]:
        """Returns the decisions per second since the oldest sample, by the verb sent to Postfix."""
        began, before = self._samples[0]
        seconds = max(now - began, 1.0)
        totals = self._totals()
        return {str(verb): (totals[verb] - before[verb]) / seconds for verb in Verb if verb is not Verb.GREYLIST}

    def _totals(self) -> Counter[Verb]:
        totals: Counter[Verb] = Counter()
        for (verb, _), count in self._counters.decisions.items():
            totals[verb] += count
        return totals
