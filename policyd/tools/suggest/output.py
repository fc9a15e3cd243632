"""Writes candidates as YAML that `policyd check` accepts, with the evidence of each, and as JSON.

The YAML is written directly, because PyYAML writes no comments. The values of conditions are quoted if they have
special characters. Other text from clients is in comments only, as printable ASCII.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

from policyd.config.problems import counted
from policyd.logs.timestamps import rfc3339
from policyd.tools.display import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from policyd.tools.suggest.candidates import Candidate, Evidence, Example, Suggestions

_PREFIX = {"hostname_suffix": "names", "cidr": "network", "asn": "system", "sender_regex": "senders"}


def as_yaml(found: Suggestions, limit: int, taken: Iterable[str] = (), database: str = "") -> str:
    """Returns the best candidates, at most `limit`, as a rules file.

    `taken` are names of existing rules, `database` is the file of systems that rules with `asn` need.
    """
    candidates = found.candidates[:limit]
    lines = [
        f"# {_summary(found, len(candidates))}",
        "# Each rule only observes: load it, see in the decision log what it would have refused, then remove `mode`.",
    ]
    if any(candidate.condition == "asn" for candidate in candidates):
        lines.append(f"databases: {{asn: {_scalar(database)}}}")
    lines.append("rules:")
    for candidate, name in zip(candidates, _names(candidates, set(taken)), strict=True):
        lines += ["", *_comments(candidate), *_rule(candidate, name)]
    return "\n".join(lines) + "\n"


def as_json(found: Suggestions, limit: int, taken: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the best candidates, at most `limit`, as JSON."""
    candidates = found.candidates[:limit]
    return {
        "lines": found.counts.lines,
        "lines_unknown": found.counts.unknown,
        "transactions": found.transactions,
        "refused": found.refused,
        "covered": found.covered,
        "private": found.private,
        "silent": found.silent,
        "forgotten": found.forgotten,
        "left_out": found.counts.left_out.notes(),
        "candidates": [
            {
                "name": name,
                "match": {candidate.condition: candidate.value},
                "except": candidate.exceptions,
                "score": round(candidate.score, 3),
                "remarks": candidate.remarks,
                "systems": [
                    {
                        "asn": system.asn,
                        "asn_name": shown(system.name.encode("utf-8", "replace")),
                        "clients": system.clients,
                    }
                    for system in candidate.systems
                ],
                **_evidence_as_json(candidate.evidence),
            }
            for candidate, name in zip(candidates, _names(candidates, set(taken)), strict=True)
        ],
    }


def _evidence_as_json(evidence: Evidence) -> dict[str, Any]:
    return {
        "refused": evidence.refused,
        "clients": evidence.clients,
        "first": rfc3339(evidence.first) if evidence.first is not None else None,
        "last": rfc3339(evidence.last) if evidence.last is not None else None,
        "delivered": evidence.delivered,
        "delivered_clients": evidence.delivered_clients,
        "reasons": [{"mails": count, "text": text} for count, text in evidence.reasons],
        "examples": [_example(seen) for seen in evidence.examples],
        "delivered_examples": [_example(seen) for seen in evidence.delivered_examples],
    }


def _summary(found: Suggestions, candidates: int) -> str:
    mails = f"{counted(found.transactions, 'mail')}, {found.refused:,} of them refused or deferred"
    parts = [f"{counted(candidates, 'candidate')} from {mails}"]
    if len(found.candidates) > candidates:
        parts.append(f"{len(found.candidates) - candidates:,} weaker candidates are not shown")
    if found.covered:
        parts.append(f"{found.covered:,} of the refused mails are already decided by the ruleset")
    if found.silent:
        parts.append(
            f"{found.silent:,} of the refused mails have a reason that is not about the client (unknown user, "
            "greylisting and such), or were delivered later"
        )
    if found.private:
        parts.append(
            f"{found.private:,} of the refused mails came from private addresses or from users who had logged in"
        )
    if found.unfollowed:
        parts.append(f"{found.unfollowed:,} deferred mails were not followed until delivery, to limit memory")
    if found.forgotten:
        parts.append(f"{found.forgotten:,} clients and senders seen too rarely were left out, to limit memory")
    return "; ".join([*parts, *found.counts.left_out.notes()])


def why_nothing(found: Suggestions, min_clients: int) -> str:
    """Returns the reasons why there is no candidate, and advice if there is any."""
    parts = [f"{counted(found.transactions, 'mail')}, {found.refused:,} refused or deferred"]
    if found.covered:
        parts.append(f"{found.covered:,} of these decided by the ruleset")
    if found.private:
        parts.append(f"{found.private:,} of these from private addresses or from users who had logged in")
    if found.silent:
        parts.append(
            f"{found.silent:,} of these have a reason that is not about the client (unknown user, greylisting and such)"
            ", or were delivered later"
        )
    weaker = ["--min-clients 1 shows weaker candidates"] if found.evidence > 0 and min_clients > 1 else []
    return "; ".join([", ".join(parts), *weaker, *found.counts.left_out.notes()])


def _comments(candidate: Candidate) -> Iterator[str]:
    evidence = candidate.evidence
    if candidate.condition == "asn" and evidence.delivered:
        # This comment comes first, because a system is large: without exceptions, the rule would refuse these mails.
        examples = ", ".join(map(_example, evidence.delivered_examples))
        yield f"  # {counted(evidence.delivered, 'mail')} delivered from this system, for example from {examples}"
    yield (
        f"  # {counted(evidence.refused, 'mail')} refused or deferred, from {counted(evidence.clients, 'client')}"
        f"{_span(evidence)}; {_collateral(evidence)}"
    )
    for count, text in evidence.reasons:
        yield f"  # {count:,} for: {text}"
    for remark in candidate.remarks:
        yield f"  # {remark}"
    for seen in evidence.examples:
        yield f"  #   {_example(seen)}"


def _span(evidence: Evidence) -> str:
    if evidence.first is None or evidence.last is None:
        return ""
    first, last = _day(evidence.first), _day(evidence.last)
    return f", on {first}" if first == last else f", {first} to {last}"


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().date().isoformat()


def _collateral(evidence: Evidence) -> str:
    if not evidence.delivered:
        return "none was delivered"
    return f"but {evidence.delivered:,} delivered, from {counted(evidence.delivered_clients, 'client')}"


def _example(seen: Example) -> str:
    name = shown(seen.name) or "unknown"
    sender = f" <{shown(seen.sender)}>" if seen.sender is not None else ""
    return f"{name}[{shown(seen.client_address)}]{sender}"


def _rule(candidate: Candidate, name: str) -> Iterator[str]:
    yield f"  - name: {name}"
    yield f"    match: {{{candidate.condition}: {_scalar(candidate.value)}}}"
    if candidate.exceptions:
        written = (f"{condition}: {_flow(values)}" for condition, values in candidate.exceptions.items())
        yield f"    except: {{{', '.join(written)}}}"
    yield "    action: REJECT"
    yield "    mode: observe"


def _flow(values: Sequence[str]) -> str:
    return _scalar(values[0]) if len(values) == 1 else f"[{', '.join(map(_scalar, values))}]"


def _scalar(value: str) -> str:
    """Returns a value as YAML: plain if it has no special character, otherwise in single quotes."""
    if re.fullmatch(r"[a-z0-9][a-z0-9./-]*|AS[0-9]+", value):
        return value
    return "'" + value.replace("'", "''") + "'"


def _names(candidates: Sequence[Candidate], taken: set[str]) -> list[str]:
    names = []
    for candidate in candidates:
        text = re.sub(r"\[[^\]]*\]\+|\.\+|\\", "", candidate.value)
        base = f"{_PREFIX[candidate.condition]}-{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:60]}".strip("-")
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        names.append(name)
    return names
