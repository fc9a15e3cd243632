"""What packet filters have in common: chains of lines about sources, jumps between them, a first line that decides.

`flattened` follows the jumps from the chains where packets come in and gives the lines that are about mail in the order
in which they decide. How a filter writes them is left to the file of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from policyd.exchange.firewall.address_block import EVERYTHING, Block
from policyd.exchange.model import DUNNO, REJECT, NoEqualError, Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import netaddr

    from policyd.exchange.model import Line, Report

# Where mail is handed in: SMTP, and submission with and without TLS from the start.
MAIL_PORTS = frozenset({"25", "465", "587", "smtp", "smtps", "submission", "submissions", "urd", "ssmtp"})

# Chains jump to chains; more levels than this are a loop, which the kernel would refuse (16 for nftables).
_DEPTH = 16

# A chain is followed each time that another jumps to it, and a set read each time that a line asks for it. In real
# firewalls that happens a few times; with more than so many steps for each line and element, and some to begin with, a
# file is made to take for ever. A step, or a network in it, takes 10 us.
_STEPS = 20
_FIRST_STEPS = 1_000


class Does(Enum):
    """What a line does with a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a chain. `sources` is None where it is about every source; with `negated` it is about all others.

    `target` is the chain of a jump.
    """

    line: Line
    does: Does
    sources: tuple[netaddr.IPNetwork, ...] | None = None
    negated: bool = False
    target: str = ""


def flattened(
    chains: Mapping[str, Sequence[Step]], roots: Sequence[str], report: Report, everybody: Block | None = None
) -> list[Row]:
    """The lines as rows with a condition `cidr`: DROP is REJECT, ACCEPT is DUNNO.

    Begins at `roots`, the chains where packets come in, with `everybody`; then come the chains to which nothing jumps,
    as if something did.
    """
    walk = _Walk(chains, report)
    targets = {step.target for steps in chains.values() for step in steps if step.target}
    for chain in (*roots, *(name for name in chains if name not in roots and name not in targets)):
        walk.follow(chain, everybody or Block(), 0)
    walk.finish()
    return walk.rows


class _EndlessError(NoEqualError):
    """The chains jump to each other without an end that one could wait for."""


class _Walk:
    def __init__(self, chains: Mapping[str, Sequence[Step]], report: Report) -> None:
        self._chains = chains
        self._report = report
        self._steps = 0
        every = [step for steps in chains.values() for step in steps]
        elements = {id(source) for step in every for source in step.sources or ()}
        self._most_steps = _FIRST_STEPS + _STEPS * (len(every) + len(elements))
        self._lost: dict[Line, str] = {}  # unless another way through the chains takes them
        self._endless: dict[Line, str] = {}
        self._taken: set[Line] = set()
        self.rows: list[Row] = []

    def follow(self, chain: str, block: Block, depth: int) -> bool:
        """Takes the lines of a chain for the addresses of a block; whether it decides on all of them."""
        rest = block  # those on which no line has decided for all of a network
        some_return = False
        decided = False
        for step in self._chains.get(chain, ()):
            try:
                self._count(step, depth)
                parts = _parts(step, rest)
                if step.does is Does.RETURN:
                    some_return = True
                    rest = _without(step, rest)
                elif step.does in {Does.JUMP, Does.GOTO}:
                    ends = [self.follow(step.target, part, depth + 1) for part in parts]
                    if all(ends) or step.does is Does.GOTO:
                        some_return |= not all(ends)
                        decided |= step.sources is None
                        rest = _without(step, rest)
                else:
                    self._decide(step, parts)
                    decided |= step.sources is None
                    rest = rest if step.sources is not None else replace(rest, dead=True)
            except _EndlessError as error:
                self._endless.setdefault(step.line, str(error))
            except NoEqualError as error:
                self._lost.setdefault(step.line, str(error))
            else:
                self._taken.add(step.line)
        return decided and not some_return

    def finish(self) -> None:
        """Reports the lines that no way through the chains took, and those where a way was given up."""
        for line, reason in self._endless.items():
            self._report.lose(line, reason)
        for line, reason in self._lost.items():
            if line not in self._taken and line not in self._endless:
                self._report.lose(line, reason)
        self._report.taken += len(self._taken)

    def _count(self, step: Step, depth: int) -> None:
        self._steps += 1 + len(step.sources or ())
        if depth > _DEPTH:
            raise _EndlessError(f"chains jump to each other more than {_DEPTH} deep")
        if self._steps > self._most_steps:
            raise _EndlessError(f"the chains have more than {self._most_steps:,} ways through them")
        if step.target and step.target not in self._chains:
            raise NoEqualError(f"there is no chain '{step.target}' in this file")

    def _decide(self, step: Step, parts: Sequence[Block]) -> None:
        for part in parts:
            everybody = part.inside is None or part.inside in EVERYTHING.values()
            if step.sources is None and everybody and not part.outside:
                # The last line of many a firewall, about all that is left when the lines about mail have been read.
                if step.does is Does.DROP:
                    raise NoEqualError("it keeps out everybody, which no rule is made of unless it says 0.0.0.0/0")
                continue  # DUNNO for all that is left, as at the end of a ruleset
            inside, exceptions = part.terms()
            self.rows.append(Row(step.line, inside, REJECT if step.does is Does.DROP else DUNNO, exceptions))


def _parts(step: Step, block: Block) -> list[Block]:
    """The addresses of a block that a line is about, in pieces with some in each."""
    parts = [block]
    if step.sources is not None and not step.negated:
        parts = [block.within(source) for source in step.sources]
    elif step.sources is not None:
        for source in step.sources:
            block = block.within(EVERYTHING[source.version]).without(source)
        parts = [block]
    alive = [part for part in parts if not part.dead]
    if not alive:
        raise NoEqualError("no mail comes here: a line above decides on all of it")
    return alive


def _without(step: Step, block: Block) -> Block:
    """The addresses of a block that a line is not about."""
    if step.sources is None:
        return replace(block, dead=True)
    if step.negated:
        if len(step.sources) != 1:
            raise NoEqualError("it sends all but several networks elsewhere")
        return block.within(step.sources[0])
    for source in step.sources:
        block = block.without(source)
    return block
