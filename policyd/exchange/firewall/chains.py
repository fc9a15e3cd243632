"""Chains of packet filters, for iptables and nftables: lines about sources, jumps, and the first line that decides.

`flattened` follows a new connection to one port from the chains that receive incoming packets, and returns the lines in
the order in which they decide. Each base chain decides separately: another chain may drop a packet that one accepts.
The file of each filter parses its lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from policyd.exchange.access.specificity import exemptions_as_exceptions
from policyd.exchange.firewall.address_block import EVERYTHING, Block
from policyd.exchange.model import DUNNO, REJECT, Row, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import netaddr

    from policyd.exchange.model import Line, Report

# Names of mail ports in firewalls (services(5)).
_PORTS = {"smtp": 25, "mail": 25, "smtps": 465, "submissions": 465, "urd": 465, "ssmtp": 465, "submission": 587}

_PORT_RANGE = re.compile(r"(?P<first>[0-9]{0,5})(?:(?P<to>[:-])(?P<last>[0-9]{0,5}))?")

# Chains jump to chains; more levels than this are a loop, which the kernel would refuse (16 for nftables).
_DEPTH = 16

# Limits of the steps of one file: a base, and a number for each line and element. A chain is followed at each jump to
# it, and a set is read for each line that uses it. Real firewalls do so a few times. A file that needs more steps is
# refused. A step, or a network in it, takes 10 us.
_STEPS = 20
_FIRST_STEPS = 1_000

_SOME = "it applies to some packets only ({}); here it blocks in every case"
_SOME_EXEMPTION = "it exempts some packets only ({}); here it would exempt in every case"


class Does(Enum):
    """The effect of a line on a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    NOTHING = "nothing"


class AnotherMatterError(UnsupportedError):
    """A line that no new connection to the port from another host ever matches."""


@dataclass(slots=True)
class Step:
    """One line of a chain. `sources` is None if it applies to every source; with `negated` it applies to all others.

    `target` is the chain of a jump. `some` names a condition that depends on more than the source, such as the network
    interface. `lost` is the reason why the line cannot be followed; `elsewhere` means that the line is about other
    packets in any case.
    """

    line: Line
    does: Does = Does.NOTHING
    sources: tuple[netaddr.IPNetwork, ...] | None = None
    negated: bool = False
    target: str = ""
    some: str = ""
    lost: str = ""
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Base:
    """A chain that receives incoming packets: all with `everybody`, or those that meet the condition named by `some`.

    `drops` means that the chain drops packets on which none of its lines decides; `line` has that policy.
    """

    chain: str
    line: Line
    everybody: Block = field(default_factory=Block)
    drops: bool = False
    some: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """The connection to follow: its port and, if known, its network interface."""

    port: int = 25
    interface: str = ""

    def is_port(self, written: str) -> bool:
        """Whether `25`, `smtp`, `20:30` or `20-30` is, or contains, the port."""
        if written in _PORTS:
            return _PORTS[written] == self.port
        match = _PORT_RANGE.fullmatch(written)
        if match is None:
            return False
        first, last = match["first"], match["last"]
        if match["to"] is None:
            return bool(first) and int(first) == self.port
        return int(first or 0) <= self.port <= int(last or 65535)

    def about_interface(self, names: Iterable[str], *, negated: bool) -> str:
        """Returns `Step.some` for a condition on the interface; "" if it holds.

        Raises `AnotherMatterError` if it does not hold.
        """
        known = [*names]
        if set(known) == {"lo"}:
            if negated:
                return ""
            raise AnotherMatterError("it is about the machine's own connections")
        if not self.interface:
            return f"interface {'not ' if negated else ''}{', '.join(known)}; --interface NAME decides"
        if any(_is_interface(self.interface, name) for name in known) == negated:
            raise AnotherMatterError(f"it is not about the interface {self.interface}")
        return ""


def _is_interface(name: str, written: str) -> bool:
    """`eth+` (iptables) and `eth*` (nftables) stand for every interface whose name begins in this way."""
    return name.startswith(written[:-1]) if written.endswith(("+", "*")) else name == written


def flattened(
    chains: Mapping[str, Sequence[Step]], bases: Sequence[Base], report: Report, otherwise: Block | None = None
) -> list[Row]:
    """The lines as rows with a condition `cidr`: DROP is REJECT, ACCEPT is DUNNO.

    A file without any base chain is a part of a firewall: its chains to which nothing jumps are then followed, for the
    addresses of `otherwise`.
    """
    walk = _Walk(chains, report)
    if not bases:
        targets = {step.target for steps in chains.values() for step in steps}
        alone = [name for name, steps in chains.items() if steps and name not in targets]
        bases = [Base(name, chains[name][0].line, otherwise or Block()) for name in alone]
    by_chain = []
    for base in bases:
        walk.rows = []
        walk.begin(base)
        by_chain.append(walk.rows)
    walk.finish()
    deciding = [rows for rows in by_chain if any(row.verdict is REJECT for row in rows)]
    if not deciding:
        return [row for rows in by_chain for row in rows]
    # The last chain may exempt by DUNNO; an exemption in another chain must not exempt from the chains after it.
    rows = [row for rows in deciding[:-1] for row in exemptions_as_exceptions(rows)[0]]
    return rows + deciding[-1]


class _EndlessError(UnsupportedError):
    """The chains need too many steps to follow."""


@dataclass(slots=True)
class _Lost:
    """Why a line was lost; `exempts` as in `UnsupportedError`."""

    reason: str
    exempts: bool = False


class _Walk:
    def __init__(self, chains: Mapping[str, Sequence[Step]], report: Report) -> None:
        self._chains = chains
        self._report = report
        self._steps = 0
        every = [step for steps in chains.values() for step in steps]
        elements = {id(source) for step in every for source in step.sources or ()}
        self._most_steps = _FIRST_STEPS + _STEPS * (len(every) + len(elements))
        self._lost: dict[Line, _Lost] = {}  # unless another path through the chains uses them
        self._endless: dict[Line, str] = {}
        self._taken: set[Line] = set()
        self.rows: list[Row] = []

    def begin(self, base: Base) -> None:
        """Follows packets from a base chain on."""
        step = Step(base.line, Does.JUMP, target=base.chain, some=base.some)
        if base.some:
            self._take_some(step, [base.everybody], -1)
        elif not self._follow(base.chain, base.everybody, 0) and base.drops:
            self._report.lose(
                base.line, "the chain drops all other packets by its policy, for which no rule is written"
            )

    def _follow(self, chain: str, block: Block, depth: int) -> bool:
        """Takes the lines of a chain for the addresses of a block; returns whether it decides on all of them."""
        rest = block  # addresses on which no line has decided for a whole network
        some_return = False
        decided = False
        for step in self._chains.get(chain, ()):
            try:
                self._check(step, depth)
                parts = _parts(step, rest)
                if step.some:
                    self._take_some(step, parts, depth)
                elif step.does is Does.RETURN:
                    some_return = True
                    rest = _without(step, rest)
                elif step.target:
                    ends = [self._follow(step.target, part, depth + 1) for part in parts]
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
            except UnsupportedError as error:
                self._lost.setdefault(step.line, _Lost(str(error), error.exempts))
            else:
                self._taken.add(step.line)
        return decided and not some_return

    def _take_some(self, step: Step, parts: Sequence[Block], depth: int) -> None:
        """Takes a line with a condition that a rule cannot have. The condition is assumed to hold if the line blocks,
        and not to hold otherwise.
        """
        if step.does in {Does.ACCEPT, Does.RETURN}:
            raise UnsupportedError(_SOME_EXEMPTION.format(step.some), exempts=True)
        if step.does is Does.DROP:
            self._decide(step, parts)
        else:
            before, self.rows = self.rows, []
            for part in parts:
                self._follow(step.target, part, depth + 1)
            # A client that the chain accepts is exempted only from the chain's own lines.
            self.rows = before + exemptions_as_exceptions(self.rows)[0]
        self._report.note(step.line, _SOME.format(step.some))

    def finish(self) -> None:
        """Reports the lines that were never reached, and lost lines."""
        for line, reason in self._endless.items():
            self._report.lose(line, reason)
        reached = self._endless.keys() | self._lost.keys() | self._taken
        unclear = self._behind_lost_jumps()
        for chain, steps in self._chains.items():
            for step in steps:
                if step.line not in reached:
                    self._lost[step.line] = _unreached(step, unclear=chain in unclear)
        for line, lost in self._lost.items():
            if line not in self._taken and line not in self._endless:
                self._report.lose(line, lost.reason, exempts=lost.exempts)
        self._report.taken += len(self._taken)

    def _behind_lost_jumps(self) -> set[str]:
        """The chains to which a lost jump leads, and those to which they jump."""
        every = [step for steps in self._chains.values() for step in steps if step.target]
        waiting = [step.target for step in every if step.lost and not step.elsewhere]
        found = set(waiting)
        while waiting:
            for step in self._chains.get(waiting.pop(), ()):
                if step.target and step.target not in found:
                    found.add(step.target)
                    waiting.append(step.target)
        return found

    def _check(self, step: Step, depth: int) -> None:
        """Raises `UnsupportedError` for a line that cannot be followed."""
        if step.lost:
            exempts = not step.elsewhere and step.does in {Does.ACCEPT, Does.RETURN}
            raise UnsupportedError(step.lost, exempts=exempts)
        self._steps += 1 + len(step.sources or ())
        if depth > _DEPTH:
            raise _EndlessError(f"chains jump to each other more than {_DEPTH} deep")
        if self._steps > self._most_steps:
            raise _EndlessError(f"the chains have more than {self._most_steps:,} paths through them")
        if step.target and step.target not in self._chains:
            raise UnsupportedError(f"there is no chain '{step.target.rpartition(' ')[2]}' in this file")

    def _decide(self, step: Step, parts: Sequence[Block]) -> None:
        for part in parts:
            everybody = part.inside is None or part.inside in EVERYTHING.values()
            if step.sources is None and everybody and not part.outside:
                # Often the last line of a firewall, about all remaining packets.
                if step.does is Does.DROP:
                    raise UnsupportedError(
                        "it blocks every address, for which no rule is written unless it names 0.0.0.0/0"
                    )
                continue  # DUNNO for all remaining addresses, as at the end of a ruleset
            inside, exceptions = part.terms()
            self.rows.append(Row(step.line, inside, REJECT if step.does is Does.DROP else DUNNO, exceptions))


def _unreached(step: Step, *, unclear: bool) -> _Lost:
    if unclear:
        return _Lost(step.lost or "only lines that were lost jump to its chain", step.does is Does.ACCEPT)
    return _Lost(step.lost or "no new connection to this port reaches its chain")


def _parts(step: Step, block: Block) -> list[Block]:
    """The addresses of a block to which a line applies, as non-empty blocks."""
    parts = [block]
    if step.sources is not None and not step.negated:
        parts = [block.within(source) for source in step.sources]
    elif step.sources is not None:
        for source in step.sources:
            block = block.within(EVERYTHING[source.version]).without(source)
        parts = [block]
    alive = [part for part in parts if not part.dead]
    if not alive:
        raise UnsupportedError("no mail reaches it: a line above decides on every address of it")
    return alive


def _without(step: Step, block: Block) -> Block:
    """The addresses of a block to which a line does not apply."""
    if step.sources is None:
        return replace(block, dead=True)
    if step.negated:
        if len(step.sources) != 1:
            raise UnsupportedError("it jumps for all addresses except several networks")
        return block.within(step.sources[0])
    for source in step.sources:
        block = block.without(source)
    return block
