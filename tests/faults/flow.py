"""A steady flow of requests. Every answer is checked.

    with Flow("resolver silent", world, port) as flow:
        flow.go_on(1)
        with world.dns_being(SILENT):
            flow.go_on(2)
        flow.fault_is_over()

At the end of the block the flow has stopped, each request is accounted for, and `flow.row` has the result; a wrong
answer, an unexpected failure, a slow answer or a late recovery fails the test. `tests.faults.world` knows the right
answers; a separate process (`tests.faults.asker`) sends the requests, so checking does not delay answers.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.faults.asker import IDLE, PATIENCE_SECONDS, Attempt, Waits
from tests.faults.world import CLIENTS, NAMELESS, Named, Nameless, ruleset_hash
from tests.field.waiting import until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.faults.world import World

ROOT = Path(__file__).parents[2]

# Defaults: maximum seconds for a request that needs no DNS, and until answers are normal after a fault.
LONGEST_SECONDS = 0.1
NORMAL_SECONDS = 1.0

# Maximum number of wrong answers shown.
SHOWN = 5


@dataclass
class Row:
    """The result of a flow under one fault. Times are in seconds. `longest` is that of the slowest answer without DNS;
    `longest_own` leaves out the time in which the machine ran other programs while the answer was pending.
    """

    fault: str
    sent: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    longest: float = 0.0
    longest_own: float | None = None
    longest_with_dns: float = 0.0
    normal_within: float | None = None

    def __str__(self) -> str:
        failed = "; ".join(f"{count:,} {why}" for why, count in sorted(self.failed.items())) or "0"
        times = (self.longest, self.longest_own, self.longest_with_dns, self.normal_within)
        milliseconds = ["" if each is None else f"{each * 1000:.0f}" for each in times]
        cells = [self.fault, f"{self.sent:,}", f"{self.answered:,}", failed, str(self.wrong), *milliseconds]
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| fault | sent | answered | failed, and why | wrong | longest, ms "
    "| without waiting for CPU | with DNS | normal within, ms |\n"
    "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
)


class Flow:
    """Requests from `named` connections, which need no DNS, and from `nameless` ones, which do.

    `place` is a port of 127.0.0.1 or `unix:/path`, `pid` the server's process. Each connection waits `pause` seconds
    after an answer before its next request. `kinds` are indexes of NAMELESS; each new client of a kind sends `repeats`
    requests. Failures that begin with one of `may_fail` are expected. With `may_close`, closed idle connections are
    expected. An answer without a lookup may take `longest` seconds, and with `exhausts` longer, because the fault
    exhausts descriptors or the CPU. A lookup may take `patience` seconds more. The flow continues for `tail` seconds
    after the fault, and must be normal within `normal` seconds.
    """

    def __init__(
        self,
        fault: str,
        world: World,
        place: int | str,
        *,
        named: int = 6,
        nameless: int = 6,
        pause: float = 0.004,
        kinds: Sequence[int] = tuple(range(len(NAMELESS))),
        repeats: int = 2,
        pid: int | None = None,
        may_fail: Sequence[str] = (),
        may_close: bool = False,
        exhausts: bool = False,
        patience: float = PATIENCE_SECONDS,
        longest: float = LONGEST_SECONDS,
        tail: float = NORMAL_SECONDS,
        normal: float = NORMAL_SECONDS,
    ) -> None:
        self.row = Row(fault)
        self.attempts: list[Attempt] = []
        self.answered = 0  # so far
        self.answered_with_dns = 0  # of these, requests that needed DNS
        self.idle_closes = 0
        self.wrong: list[str] = []
        self._world = world
        self._options = {
            "place": str(place),
            "named": named,
            "nameless": nameless,
            "pause": pause,
            "kinds": list(kinds),
            "repeats": repeats,
            "pids": [] if pid is None else [pid],
        }
        self._may_fail = may_fail
        self._may_close = may_close
        self._exhausts = exhausts
        self._patience = patience
        self._longest = longest
        self._tail = tail
        self._normal = normal
        self._over: float | None = None
        self._waits: list[Waits] = []
        self._longest_own = 0.0

    def __enter__(self) -> Self:
        options = json.dumps({**self._options, "serial": self._world.next_serial})
        command = [sys.executable, "-m", "tests.faults.asker", options]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self.wait_for(1)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._over is not None:
            self.go_on(max(0.0, self._over + self._tail - time.monotonic()))
        status = self._end()
        if kind is None:
            assert status == 0, f"the asking process ended with status {status}"
            self._judge()

    def _end(self) -> int:
        """Ends the asking process after its requests in flight; returns its exit status."""
        self._process.terminate()
        self._reader.join(PATIENCE_SECONDS + 10)
        status = self._process.wait(timeout=10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status

    # --- While it runs ----------------------------------------------------------------------------------------------

    def go_on(self, seconds: float) -> None:
        """Lets the flow run for a while."""
        time.sleep(seconds)
        assert self._process.poll() is None, "the asking process has ended"

    def wait_for(self, answers: int) -> None:
        """Lets the flow run until this many more answers have arrived."""
        wanted = self.answered + answers
        until(f"{wanted} answers", lambda: self.answered >= wanted or None)

    def wait_for_clients(self, clients: int, seconds: float = 30) -> None:
        """Lets the flow run until this many more answers that needed DNS have arrived."""
        wanted = self.answered_with_dns + clients
        until(f"{wanted} clients", lambda: self.answered_with_dns >= wanted or None, seconds)

    def fault_is_over(self) -> None:
        """Marks the end of the fault: answers must be normal soon."""
        self._over = time.monotonic()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                noted = pickle.load(self._process.stdout)
            except EOFError:
                return
            attempts = [each for each in noted if isinstance(each, Attempt)]
            self.attempts += attempts
            answers = [each for each in attempts if each.answer]
            self.answered += len(answers)
            self.answered_with_dns += sum(1 for each in answers if isinstance(CLIENTS[each.client], Nameless))
            self._waits += [each for each in noted if isinstance(each, Waits)]

    # --- Checking the answers ---------------------------------------------------------------------------------------

    def _judge(self) -> None:
        row = self.row
        first_sent: dict[tuple[int, int], float] = {}
        self.attempts.sort(key=lambda each: each.ended)
        for each in self.attempts:
            client = each.client, each.serial
            first_sent[client] = min(each.sent, first_sent.get(client, each.sent))
        normal: list[Attempt] = []
        abnormal: list[Attempt] = []
        for each in self.attempts:
            if each.client == IDLE:
                self.idle_closes += 1
                if each.failure:
                    self.wrong.append(each.failure)
            else:
                first = first_sent[each.client, each.serial]
                is_normal = self._judge_one(each, first)
                # A client that was new during the fault may still get answers from the cache.
                if self._over is not None and (each.sent if each.failure else first) > self._over and not is_normal:
                    abnormal.append(each)
                elif is_normal:
                    normal.append(each)
        row.wrong = len(self.wrong)
        row.longest_own = self._longest_own
        serials = [each.serial for each in self.attempts]
        self._world.next_serial = max(self._world.next_serial, *serials) + 1
        if self._over is not None:
            last = max((each.sent for each in abnormal), default=self._over)
            row.normal_within = min((each.ended for each in normal if each.sent > last), default=inf) - self._over
        self._require_expected_result()

    def _judge_one(self, attempt: Attempt, first_sent: float) -> bool:
        """Checks an attempt; returns whether its result would be right without a fault."""
        row = self.row
        row.sent += 1
        if attempt.failure:
            row.failed[attempt.failure] += 1
            return False
        row.answered += 1
        took = attempt.ended - attempt.sent
        needs_dns = not isinstance(CLIENTS[attempt.client], Named)
        if needs_dns:
            row.longest_with_dns = max(row.longest_with_dns, took)
        else:
            row.longest = max(row.longest, took)
            if took > self._longest_own:
                self._longest_own = max(self._longest_own, took - self._held_up(attempt))
        answer = attempt.answer.removeprefix("action=").removesuffix("\n\n")
        world = self._world
        if " edition " in answer:
            edition = int(answer.split(" edition ")[1].split()[0])
            world.edition.seen(edition, attempt.ended)
        right = world.right_answers(attempt.client, attempt.serial, first_sent, attempt.sent, attempt.ended)
        true = world.true_answers(attempt.client, attempt.serial, first_sent, attempt.sent, attempt.ended)
        if answer not in right:
            self.wrong.append(f"{attempt}: not one of {sorted(right)}")
        elif " 5." in answer and not any(" 5." in expected for expected in true):
            self.wrong.append(f"{attempt}: rejected because of a failure (principle 2)")
        elif answer == "DUNNO" and "DUNNO" not in true:
            self.wrong.append(f"{attempt}: a lie was let through (principle 1)")
        return answer in true

    def _held_up(self, attempt: Attempt) -> float:
        """Seconds of an attempt in which a thread of the server or of the asker was ready to run, but the machine ran
        other threads. This is the maximum over the threads, accurate to one or two hundredths of a second.
        """
        before = self._waits[max(0, bisect_right(self._waits, attempt.sent, key=lambda waits: waits.at) - 1)].seconds
        place = bisect_left(self._waits, attempt.ended, key=lambda waits: waits.at)
        after = self._waits[min(place, len(self._waits) - 1)].seconds
        return max((after[thread] - before.get(thread, 0.0) for thread in after), default=0.0)

    def _require_expected_result(self) -> None:
        row = self.row
        assert self.wrong == [], f"{len(self.wrong)} wrong:\n" + "\n".join(self.wrong[:SHOWN])
        unexpected = {why: count for why, count in row.failed.items() if not why.startswith(tuple(self._may_fail))}
        assert unexpected == {}, row
        assert self._may_close or self.idle_closes == 0, f"{self.idle_closes} connections were closed: {row}"
        assert row.answered, row
        assert self._exhausts or self._longest_own < self._longest, row
        held_up = row.longest - self._longest_own  # checked even on a busy machine
        assert row.longest_with_dns < self._patience + self._longest + held_up, row
        assert row.normal_within is None or row.normal_within < self._normal, row

    # --- Comparison with the decision log ---------------------------------------------------------------------------

    def compare(
        self, logged: Sequence[Mapping[str, Any]], *, lost: int = 0, at_most: int = 0
    ) -> list[Mapping[str, Any]]:
        """Requires that the decision log has exactly one line for each answer, with the same content. `lost` lines must
        be missing, and `at_most` more may be missing. Returns the lines of this flow.
        """
        answers = {each.instance: each for each in self.attempts if each.answer}
        own = [line for line in logged if line.get("instance") in answers]
        counts = Counter(line["instance"] for line in own)
        assert counts.total() == len(counts), [instance for instance, count in counts.items() if count > 1][:SHOWN]
        missing = [each for instance, each in answers.items() if instance not in counts]
        number = f"{len(missing)} answers are not in the log"
        assert lost <= len(missing) <= lost + at_most, f"{number}, {lost} are counted as lost: {missing[:SHOWN]}"
        for line in own:
            each = answers[line["instance"]]
            logged_answer = f"{line['action']} {line.get('reply', '')}".rstrip()
            assert each.answer == f"action={logged_answer}\n\n", (each, line)
            editions = self._world.edition.during(each.sent, each.ended)
            assert line["ruleset"] in map(ruleset_hash, editions), (each, line)
        return own
