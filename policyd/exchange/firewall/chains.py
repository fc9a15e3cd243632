"""Follows a new connection through the chains of a packet filter, for iptables and nftables.

`flatten` begins at the chains that receive incoming packets, and returns the lines in the order in which they decide.
Each of these base chains decides separately: if one accepts a packet, another may still drop it. `iptables.py` and
`nftables.py` parse the lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from policyd.exchange.access.specificity import exemptions_as_exceptions
from policyd.exchange.firewall.address_block import EVERYTHING, AddressBlock
from policyd.exchange.model import DUNNO, REJECT, Row, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import netaddr

    from policyd.exchange.model import ConversionReport, Line

# Names of mail ports in firewalls (services(5)).
_PORTS = {"smtp": 25, "mail": 25, "smtps": 465, "submissions": 465, "urd": 465, "ssmtp": 465, "submission": 587}

_PORT_RANGE = re.compile(r"(?P<first>[0-9]{0,5})(?:(?P<to>[:-])(?P<last>[0-9]{0,5}))?")

# Maximum nesting of jumps, which is also the limit of nftables. A deeper nesting is usually a loop.
_DEPTH = 16

# Maximum steps for one file: `_FIRST_STEPS`, and `_STEPS_PER_LINE` more for each line and each network in the file. A
# chain is followed at every jump to it, and a set is read for every line that uses it; in real firewalls this happens a
# few times. Each time, every line of the chain or network of the set counts as a step, which takes 10 us.
_FIRST_STEPS = 1_000
_STEPS_PER_LINE = 20

_CONDITIONAL_BLOCK = "it applies to some packets only ({}); here it blocks in every case"
_CONDITIONAL_EXEMPTION = "it exempts some packets only ({}); here it would exempt in every case"


class Effect(Enum):
    """The effect of a line on a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    NOTHING = "nothing"


class OtherTrafficError(UnsupportedError):
    """A line that never matches a new connection to the port from another host."""


@dataclass(slots=True)
class ChainStep:
    """One line of a chain, which applies to `sources`, or to all other addresses if it is `negated`.

    `sources` is None if the line applies to every source. `target` is the chain of a jump. `condition` names a
    condition on anything but the source, such as the network interface. `lost` is the reason why the line cannot be
    followed; `other_traffic` means that the loss makes no difference, because the line never matches the connection or
    decides nothing.
    """

    line: Line
    effect: Effect = Effect.NOTHING
    sources: tuple[netaddr.IPNetwork, ...] | None = None
    negated: bool = False
    target: str = ""
    condition: str = ""
    lost: str = ""
    other_traffic: bool = False


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that receives incoming packets: those from `addresses` that meet `condition`, if there is one.

    `line` is the line that declares the chain, or its first line. `drops` means that the chain's policy drops packets
    on which none of its lines decides.
    """

    chain: str
    line: Line
    addresses: AddressBlock = field(default_factory=AddressBlock)
    drops: bool = False
    condition: str = ""


@dataclass(frozen=True, slots=True)
class FollowedConnection:
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

    def interface_condition(self, names: Iterable[str], *, negated: bool) -> str:
        """Returns "" if the connection meets a condition on interfaces, or a text if it may meet the condition.

        The text names the condition; the connection's interface is unknown without the option `--interface`. Raises
        `OtherTrafficError` if the connection does not meet the condition.
        """
        known = [*names]
        if set(known) == {"lo"}:
            if negated:
                return ""
            raise OtherTrafficError("it is about the machine's own connections")
        if not self.interface:
            return f"interface {'not ' if negated else ''}{', '.join(known)}; --interface NAME decides"
        if any(_is_interface(self.interface, name) for name in known) == negated:
            raise OtherTrafficError(f"it is not about the interface {self.interface}")
        return ""


def _is_interface(name: str, written: str) -> bool:
    """Whether `written` is the interface, or stands for it: `eth+` (iptables) and `eth*` (nftables) are prefixes."""
    return name.startswith(written[:-1]) if written.endswith(("+", "*")) else name == written


def flatten(
    chains: Mapping[str, Sequence[ChainStep]],
    bases: Sequence[BaseChain],
    report: ConversionReport,
    default_addresses: AddressBlock | None = None,
) -> list[Row]:
    """Converts the lines to rows with a condition `cidr`: DROP becomes REJECT, ACCEPT becomes DUNNO.

    A file without a base chain is a part of a firewall. Then the chains to which no line jumps are followed, for
    `default_addresses` (None: for all addresses).
    """
    walk = _Walk(chains, report)
    if not bases:
        targets = {step.target for steps in chains.values() for step in steps}
        first = [name for name, steps in chains.items() if steps and name not in targets]
        bases = [BaseChain(name, chains[name][0].line, default_addresses or AddressBlock()) for name in first]
    by_chain = []
    for base in bases:
        walk.rows = []
        walk.begin(base)
        by_chain.append(walk.rows)
    walk.finish()
    deciding = [rows for rows in by_chain if any(row.verdict is REJECT for row in rows)]
    if not deciding:
        return [row for rows in by_chain for row in rows]
    # Only the last chain may exempt by DUNNO: an exemption in another chain must not exempt from the chains after it.
    rows = [row for rows in deciding[:-1] for row in exemptions_as_exceptions(rows, report)[0]]
    return rows + deciding[-1]


class _EndlessError(UnsupportedError):
    """The chains need too many steps to follow, or contain a loop."""


@dataclass(slots=True)
class _Lost:
    """The reason why a line was lost; `exempts` is as in `UnsupportedError`."""

    reason: str
    exempts: bool = False


class _Walk:
    def __init__(self, chains: Mapping[str, Sequence[ChainStep]], report: ConversionReport) -> None:
        self._chains = chains
        self._report = report
        self._steps = 0
        every = [step for steps in chains.values() for step in steps]
        elements = {id(source) for step in every for source in step.sources or ()}
        self._max_steps = _FIRST_STEPS + _STEPS_PER_LINE * (len(every) + len(elements))
        self._lost: dict[Line, _Lost] = {}  # not reported if the line is taken on another path through the chains
        self._endless: dict[Line, str] = {}
        self._taken: set[Line] = set()
        self.rows: list[Row] = []

    def begin(self, base: BaseChain) -> None:
        """Follows the packets that a base chain receives."""
        step = ChainStep(base.line, Effect.JUMP, target=base.chain, condition=base.condition)
        if base.condition:
            self._take_conditional(step, [base.addresses], -1)
        elif not self._follow(base.chain, base.addresses, 0) and base.drops:
            self._report.lose(
                base.line, "the chain drops all other packets by its policy, for which no rule is written"
            )

    def _follow(self, chain: str, addresses: AddressBlock, depth: int) -> bool:
        """Takes the lines of a chain for the given addresses; returns whether the chain decides on all of them."""
        # The addresses that reach the next line. ACCEPT and DROP for some sources do not reduce them, because the first
        # matching row decides anyway.
        rest = addresses
        may_return = False
        decided = False
        for step in self._chains.get(chain, ()):
            try:
                self._check(step, depth)
                parts = _parts(step, rest)
                if step.condition:
                    self._take_conditional(step, parts, depth)
                elif step.effect is Effect.RETURN:
                    may_return = True
                    rest = _without(step, rest)
                elif step.target:
                    ends = [self._follow(step.target, part, depth + 1) for part in parts]
                    if all(ends) or step.effect is Effect.GOTO:
                        may_return |= not all(ends)
                        decided |= step.sources is None
                        rest = _without(step, rest)
                else:
                    self._decide(step, parts)
                    decided |= step.sources is None
                    rest = rest if step.sources is not None else replace(rest, empty=True)
            except _EndlessError as error:
                self._endless.setdefault(step.line, str(error))
            except UnsupportedError as error:
                self._lost.setdefault(step.line, _Lost(str(error), error.exempts))
            else:
                self._taken.add(step.line)
        return decided and not may_return

    def _take_conditional(self, step: ChainStep, parts: Sequence[AddressBlock], depth: int) -> None:
        """Takes a line with a condition that a rule cannot have.

        A line that blocks or jumps is taken as if the condition held; a line that exempts is lost.
        """
        if step.effect in {Effect.ACCEPT, Effect.RETURN}:
            raise UnsupportedError(_CONDITIONAL_EXEMPTION.format(step.condition), exempts=True)
        if step.effect is Effect.DROP:
            self._decide(step, parts)
        else:
            before, self.rows = self.rows, []
            for part in parts:
                self._follow(step.target, part, depth + 1)
            # A client that the chain accepts is exempted only from the chain's own lines.
            self.rows = before + exemptions_as_exceptions(self.rows, self._report)[0]
        self._report.note(step.line, _CONDITIONAL_BLOCK.format(step.condition))

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
        """The chains that are reached through a lost jump, directly or from another such chain."""
        every = [step for steps in self._chains.values() for step in steps if step.target]
        waiting = [step.target for step in every if step.lost and not step.other_traffic]
        found = set(waiting)
        while waiting:
            for step in self._chains.get(waiting.pop(), ()):
                if step.target and step.target not in found:
                    found.add(step.target)
                    waiting.append(step.target)
        return found

    def _check(self, step: ChainStep, depth: int) -> None:
        """Raises `UnsupportedError` for a line that cannot be followed."""
        if step.lost:
            exempts = not step.other_traffic and step.effect in {Effect.ACCEPT, Effect.RETURN}
            raise UnsupportedError(step.lost, exempts=exempts)
        self._steps += 1 + len(step.sources or ())
        if depth > _DEPTH:
            raise _EndlessError(f"chains jump to each other more than {_DEPTH} deep")
        if self._steps > self._max_steps:
            raise _EndlessError(f"it takes more than {self._max_steps:,} steps to follow the chains")
        if step.target and step.target not in self._chains:
            raise UnsupportedError(f"there is no chain '{step.target.rpartition(' ')[2]}' in this file")

    def _decide(self, step: ChainStep, parts: Sequence[AddressBlock]) -> None:
        for part in parts:
            is_everything = part.inside is None or part.inside in EVERYTHING.values()
            if step.sources is None and is_everything and not part.outside:
                # The line is often the last of a firewall, about all remaining packets.
                if step.effect is Effect.DROP:
                    raise UnsupportedError(
                        "it blocks every address; such a line becomes a rule only if it names 0.0.0.0/0"
                    )
                continue  # DUNNO for all remaining addresses, as at the end of a ruleset
            inside, exceptions = part.terms()
            self.rows.append(Row(step.line, inside, REJECT if step.effect is Effect.DROP else DUNNO, exceptions))


def _unreached(step: ChainStep, *, unclear: bool) -> _Lost:
    if unclear:
        return _Lost(step.lost or "only lines that were lost jump to its chain", step.effect is Effect.ACCEPT)
    return _Lost(step.lost or "no new connection to this port reaches its chain")


def _parts(step: ChainStep, addresses: AddressBlock) -> list[AddressBlock]:
    """The addresses, among those given, to which a line applies: a block for each source, without empty blocks."""
    parts = [addresses]
    if step.sources is not None and not step.negated:
        parts = [addresses.within(source) for source in step.sources]
    elif step.sources is not None:
        for source in step.sources:
            addresses = addresses.within(EVERYTHING[source.version]).without(source)
        parts = [addresses]
    left = [part for part in parts if not part.empty]
    if not left:
        raise UnsupportedError("no mail reaches it: the lines above and the jumps to its chain leave no address")
    return left


def _without(step: ChainStep, addresses: AddressBlock) -> AddressBlock:
    """The addresses, among those given, to which a line does not apply."""
    if step.sources is None:
        return replace(addresses, empty=True)
    if step.negated:
        if len(step.sources) != 1:
            raise UnsupportedError("a jump or return for all addresses except several networks is not supported")
        return addresses.within(step.sources[0])
    for source in step.sources:
        addresses = addresses.without(source)
    return addresses
