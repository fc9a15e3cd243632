"""After reloads that keep and patch tables, decisions are those of a ruleset loaded from scratch.

The long form has 200 reloads with random edits of lists and rules, and compares 100,000 requests after each. It has two
halves, with a seed each, so that `-n 2` runs both at the same time.
"""

from __future__ import annotations

import datetime
import pickle
import random
from collections import deque
from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load
from policyd.core.engine import Decision, decide
from policyd.core.facts import Facts
from policyd.core.identity import Identity, Status
from policyd.core.protocol import Request
from policyd.daemon.reload import Loader
from tests.faults.conftest import LONG, add_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from policyd.core.index import Ruleset

SEEDS = (3, 4)

# Reloads for each seed, requests that are decided after each, and how many of these are new each time.
RELOADS, REQUESTS, NEW_REQUESTS = (100, 100_000, 5000) if LONG else (6, 2000, 2000)

TODAY = datetime.date(2026, 11, 21)
ENTRIES = 1200  # entries of a list

# The lists, and the conditions that may use each.
LISTS = {
    "nets1": ["cidr"],
    "nets2": ["cidr"],
    "nets3": ["cidr"],
    "nets4": ["cidr"],
    "nets5": ["cidr"],
    "names1": ["hostname_suffix"],
    "names2": ["hostname_suffix", "sender_domain", "helo_name_suffix"],
    "names3": ["hostname_suffix"],
    "names4": ["hostname_suffix", "sender_domain"],
    "hosts": ["hostname", "hostname_suffix", "helo_name"],
    "senders": ["sender"],
    "states": ["client_name"],
}


class RandomRuleset:
    """A rules file and list files that change at random, and random requests."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rules = folder / "rules.yaml"
        self._folder = folder
        self._lists = {name: [self._entry(name) for _ in range(ENTRIES)] for name in LISTS}
        self._rules = [self._rule(number) for number in range(24)]
        self._current: deque[tuple[Request, Facts]] = deque(self._new_requests(REQUESTS), maxlen=REQUESTS)
        self.write()

    def _name(self) -> str:
        return f"h{self.rng.randrange(900)}.d{self.rng.randrange(40)}.example"

    def _entry(self, name: str) -> str:
        rng = self.rng
        if name.startswith("nets"):
            if rng.random() < 0.1:
                return f"2001:db8:{rng.randrange(300):x}::/48"
            length = rng.choice((32, 28, 24, 24, 22, 12))
            first = (10 << 24 | rng.randrange(1 << 18) << 4) >> 32 - length << 32 - length
            return f"{first >> 24}.{first >> 16 & 255}.{first >> 8 & 255}.{first & 255}/{length}"
        if name == "senders":
            return f"u{rng.randrange(3000)}@{self._name()}"
        if name in {"hosts", "states"}:
            return self._name()
        return rng.choice(("", ".")) + (self._name() if rng.random() < 0.9 else f"d{rng.randrange(40)}.example")

    def _rule(self, number: int) -> str:
        rng = self.rng
        name = rng.choice([*LISTS])
        condition = rng.choice(LISTS[name])
        own = self._entry(name)
        if condition in {"hostname", "helo_name", "client_name", "sender"}:
            own = own.removeprefix(".")
        values = [f"${name}"] if rng.random() < 0.5 else [f"${name}", f"'{own}'"]
        if condition == "cidr" and rng.random() < 0.3:
            values.append("$nets2" if name != "nets2" else "$nets1")
        except_ = ""
        if rng.random() < 0.4:
            except_ = ", except: {helo_name_regex: '^h[0-9]*7', cidr: $nets3}"
        match = f"{condition}: [{', '.join(values)}]"
        if rng.random() < 0.3:
            match += f", helo_name_regex: '^h{rng.randrange(9)}'" if condition != "helo_name" else ""
        action = rng.choice(("REJECT", "DEFER", "DUNNO")) if condition != "client_name" else "REJECT"
        return f"  - {{name: r{number}, match: {{{match}}}{except_}, action: {action}}}\n"

    def write(self) -> None:
        for name, entries in self._lists.items():
            (self._folder / name).write_text("".join(f"{entry}\n" for entry in entries))
        lists = "".join(f"  {name}: {{file: {name}}}\n" for name in LISTS)
        self.rules.write_text(f"lists:\n{lists}rules:\n{''.join(self._rules)}")

    def edit(self) -> None:
        """Changes some entries of some lists, sometimes all entries of a list; or a rule; or nothing."""
        rng = self.rng
        for name in rng.sample([*LISTS], rng.choice((0, 0, 1, 1, 1, 2, 4))):
            entries = self._lists[name]
            for _ in range(rng.choice((1, 20, 100, ENTRIES))):
                entries[rng.randrange(len(entries))] = self._entry(name)
            if rng.random() < 0.3:
                entries += [self._entry(name) for _ in range(rng.randrange(100))]
            if rng.random() < 0.3:
                del entries[: rng.randrange(100)]
        if rng.random() < 0.5:
            number = rng.randrange(len(self._rules))
            self._rules[number] = self._rule(number)
        if rng.random() < 0.1:
            self._lists["names1"], self._lists["names2"] = self._lists["names2"], self._lists["names1"]
        self.write()

    def requests(self) -> Iterable[tuple[Request, Facts]]:
        """Returns the requests of the previous call, with the oldest replaced by new requests."""
        self._current.extend(self._new_requests(NEW_REQUESTS))
        return self._current

    def _new_requests(self, count: int) -> Iterator[tuple[Request, Facts]]:
        rng = self.rng
        for _ in range(count):
            name = self._name().encode()
            address = rng.choice(
                (
                    f"10.{rng.randrange(70)}.{rng.randrange(256)}.{rng.randrange(256)}",
                    f"2001:db8:{rng.randrange(300):x}::{rng.randrange(9)}",
                )
            )
            request = Request.of(
                {
                    "client_address": address.encode(),
                    "client_name": rng.choice((name, b"unknown")),
                    "helo_name": self._name().encode(),
                    "sender": f"u{rng.randrange(3000)}@{self._name()}".encode(),
                    "recipient": b"a@b.example",
                    "protocol_state": b"RCPT",
                }
            )
            yield request, Facts(Identity(rng.choice([*Status]), (name,)))


def compare(source: RandomRuleset, ruleset: Ruleset) -> None:
    fresh = load(rules_path=source.rules).ruleset
    assert ruleset.hash == fresh.hash
    assert ruleset.counts == fresh.counts
    for request, facts in source.requests():
        got, want = decide(ruleset, request, facts, TODAY), decide(fresh, request, facts, TODAY)
        assert isinstance(got, Decision)
        assert got == want


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
async def test_after_random_reloads_decisions_are_those_of_a_fresh_load(tmp_path: Path, seed: int) -> None:
    source = RandomRuleset(tmp_path, seed)
    loader = Loader(None, str(source.rules))
    try:
        result, mapped = await loader.load()
        kept = patched = 0
        for _ in range(RELOADS):
            source.edit()
            old = mapped
            del result
            result, mapped = await loader.load(None, old)
            kept += len({*mapped.tables} & {*old.tables})
            patched += sum(record.patches > 0 for record in pickle.loads(mapped.catalogue))
            compare(source, result.ruleset)
            await old.release()
        assert kept
        assert patched
        add_text(
            f"{RELOADS} reloads with random edits (seed {seed}), {REQUESTS:,} requests after each: decided as by a "
            f"ruleset loaded from scratch; {kept} tables kept, {patched} patched"
        )
    finally:
        loader.close()
