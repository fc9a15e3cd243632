"""Imports the DNS lists of a saved `postconf -n` (postconf(5)).

Reads `reject_rbl_client`, `reject_rhsbl_*`, `permit_dnswl_client`, `permit_rhswl_client` and `postscreen_dnsbl_sites`.

The restrictions of a setting are read from left to right. `permit_dnswl_client` and `permit_rhswl_client` exempt from
the restrictions after them, so their DNS lists become exceptions of the rules for these restrictions. Everything else
in the file is ignored, such as `permit_mynetworks`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.config.dns_codes import CodeError, can_match, parse_code
from policyd.config.dns_list import Ask
from policyd.config.dns_lists import fold_zone
from policyd.config.known_zones import known_zone
from policyd.core.ruleset import Verb
from policyd.exchange.model import Imported, NewDnsList, Row, Term, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policyd.exchange.model import ConversionReport, Line

# The codes for a list that is used without a filter: every usual answer except refusals.
ANY_CODE = "127.0.[0..255].[2..254]"

_SETTING = re.compile(r"(?P<name>[a-z0-9_]+)\s*=\s*(?P<value>.*)")
_RESTRICTIONS = re.compile(r"smtpd_(?:client|helo|sender|relay|recipient|data|end_of_data)_restrictions")
_PARAMETER = re.compile(r"\$(?:\{([a-z0-9_]+)\}|\(([a-z0-9_]+)\)|([a-z0-9_]+))")
_SITE = re.compile(r"(?P<zone>[^=*\s]+)(?:=(?P<code>[^*\s]+))?(?:\*(?P<weight>[+-]?[0-9]{1,6}))?")

# Maximum levels of parameters that name each other.
_EXPANSIONS = 20

_ASKS = {
    "reject_rbl_client": Ask.CLIENT_ADDRESS,
    "reject_rhsbl_client": Ask.HOSTNAME,
    "reject_rhsbl_reverse_client": Ask.HOSTNAME,
    "reject_rhsbl_helo": Ask.HELO_NAME,
    "reject_rhsbl_sender": Ask.SENDER_DOMAIN,
    "permit_dnswl_client": Ask.CLIENT_ADDRESS,
    "permit_rhswl_client": Ask.HOSTNAME,
}
_WITH_ZONE = frozenset({*_ASKS, "reject_rhsbl_recipient"})

_TEXT = "{client_address} is listed by {list} ({id})"


def read(lines: Iterable[Line], report: ConversionReport) -> Imported:
    """The rules for the settings that refuse mail by DNS lists, and the definitions of these lists."""
    settings = {name: (line, value) for line, name, value in _settings(lines)}
    return _Reader(settings, report).read()


def _settings(lines: Iterable[Line]) -> Iterator[tuple[Line, str, str]]:
    """Yields the line, name and value of each setting. A line that begins with a blank continues the line before it.

    The text of the line is replaced by the setting's name: a value may contain the key of a zone, which no report may
    show.
    """
    begun: tuple[Line, str] | None = None
    for line in lines:
        text = line.text
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if text[0].isspace() and begun is not None:
            begun = begun[0], f"{begun[1]} {text.strip()}"
            continue
        if begun is not None and (found := _SETTING.fullmatch(begun[1])):
            yield begun[0]._replace(text=found["name"]), found["name"], found["value"]
        begun = line, text.strip()
    if begun is not None and (found := _SETTING.fullmatch(begun[1])):
        yield begun[0]._replace(text=found["name"]), found["name"], found["value"]


@dataclass(slots=True)
class _Site:
    """One entry of postscreen_dnsbl_sites: the list's name and its weight."""

    name: str
    weight: int


@dataclass(slots=True)
class _Reader:
    """Reads one file."""

    settings: dict[str, tuple[Line, str]]
    report: ConversionReport
    imported: Imported = field(default_factory=Imported)
    lists: dict[str, NewDnsList] = field(default_factory=dict)  # by name

    def read(self) -> Imported:
        if "postscreen_dnsbl_sites" in self.settings:
            self._read_postscreen(*self.settings["postscreen_dnsbl_sites"])
        for name, (line, value) in self.settings.items():
            if _RESTRICTIONS.fullmatch(name):
                self._read_restrictions(line, self._expand(value))
        self.imported.dns_lists = [*self.lists.values()]
        return self.imported

    def _expand(self, value: str) -> str:
        """The value with `$name` replaced, if the file has the parameter."""
        for _ in range(_EXPANSIONS):
            before = value
            value = _PARAMETER.sub(self._parameter, before)
            if value == before:
                break
        return value

    def _parameter(self, found: re.Match[str]) -> str:
        name = next(group for group in found.groups() if group)
        return self.settings[name][1] if name in self.settings else found[0]

    # --- Restrictions -----------------------------------------------------------------------------------------------

    def _read_restrictions(self, line: Line, value: str) -> None:
        words = [word for word in re.split(r"[\s,]+", value) if word]
        exempting: list[str] = []
        observed = False
        place = 0
        while place < len(words):
            word = words[place]
            place += 1
            if word == "warn_if_reject":
                observed = True
                continue
            if word not in _WITH_ZONE:
                observed = False
                continue
            domain = words[place] if place < len(words) else ""
            place += 1
            name = self._define(line, word, domain)
            if name and word.startswith("permit_"):
                exempting.append(name)
                self.report.taken += 1
            elif name:
                self._add_rule(line, (name,), exempting, observed=observed)
            observed = False

    def _define(self, line: Line, restriction: str, domain: str) -> str:
        """Returns the name of the list that a restriction asks, or "" for a list that cannot be imported.

        Such a list is reported.
        """
        exempts = restriction.startswith("permit_")
        ask = _ASKS.get(restriction)
        if ask is None:
            self.report.lose(line, f"{restriction} {_without_key(domain)}: policyd asks no list about recipients")
            return ""
        zone, _, code = domain.partition("=")
        name, problem = self._add_list(line, zone, code, ask)
        if problem:
            self.report.lose(line, f"{restriction} {_without_key(domain)}: {problem}", exempts=exempts)
        elif restriction == "reject_rhsbl_client":
            self.report.note(line, "ask: hostname also looks up the claimed names of a client without a verified one")
        return name

    def _add_list(self, line: Line, zone: str, code: str, ask: Ask) -> tuple[str, str]:
        """Adds a list to the import. Returns its name and "", or "" and the reason why it cannot be imported."""
        key_file = ""
        written = None if "$" in zone else fold_zone(zone)
        if written is None:
            return "", "the zone is not a valid name; a parameter in it may be missing in the file"
        try:
            parsed = parse_code(code or ANY_CODE)
        except CodeError as error:
            return "", str(error)
        codes = parsed.text
        base = written
        known = known_zone(written)
        refused = tuple(map(parse_code, known.refused)) if known is not None else ()
        if not can_match((parsed,), refused):
            return "", "no answer of a list can match the filter: answers are in 127.0.0.0/8, and are not refusals"
        if known is not None and known.keyed:
            base = written.partition(".")[2]
            written, key_file = f"{{key}}.{base}", f"{base}.key"
            self.report.note(line, f"the zone of {base} has a key: write it into {key_file}, which others cannot read")
        if not code:
            self.report.note(
                line, f"a list without a filter got the codes '{ANY_CODE}'; see the list's page for the right codes"
            )
        name, number = base, 1
        wanted = NewDnsList(name, written, codes, ask, key_file)
        while name in self.lists and self.lists[name] != wanted:
            number += 1
            name = f"{base}-{number}"
            wanted = NewDnsList(name, written, codes, ask, key_file)
        self.lists[name] = wanted
        return name, ""

    def _add_rule(
        self, line: Line, names: tuple[str, ...], exempting: Iterable[str], *, observed: bool, at_least: int = 1
    ) -> None:
        code = self.settings["maps_rbl_reject_code"][1] if "maps_rbl_reject_code" in self.settings else "554"
        verdict = Verdict(Verb.DEFER, "4.7.1", _TEXT) if code.startswith("4") else Verdict(Verb.REJECT, "5.7.1", _TEXT)
        match = tuple(Term("listed", name) for name in names)
        exceptions = tuple(Term("listed", name) for name in dict.fromkeys(exempting))
        name = f"listed-by-{names[0]}" if len(names) == 1 else f"listed-by-{at_least}-of-{len(names)}"
        self.imported.rows.append(Row(line, match, verdict, exceptions, name, observed, at_least=at_least))
        self.report.taken += 1

    # --- postscreen -------------------------------------------------------------------------------------------------

    def _read_postscreen(self, line: Line, value: str) -> None:
        sites = []
        for word in re.split(r"[\s,]+", self._expand(value)):
            if not word:
                continue
            found = _SITE.fullmatch(word)
            name = ""
            problem = "not in the form ZONE=FILTER*WEIGHT"
            if found is not None:
                name, problem = self._add_list(line, found["zone"], found["code"] or "", Ask.CLIENT_ADDRESS)
            if not name or found is None:
                self.report.lose(line, f"postscreen_dnsbl_sites {_without_key(word)}: {problem}")
                return
            sites.append(_Site(name, int(found["weight"] or 1)))
        threshold = self._number("postscreen_dnsbl_threshold", 1)
        _, action = self.settings.get("postscreen_dnsbl_action", (line, ""))
        observed = action.strip() not in {"enforce", "drop"}
        if observed:
            self.report.note(line, "postscreen_dnsbl_action is ignore, so the rules only observe")
        for names, at_least in self._equivalent_rules(line, sites, threshold):
            exempting = [site.name for site in sites if site.weight < 0]
            self._add_rule(line, names, exempting, observed=observed, at_least=at_least)

    def _number(self, name: str, default: int) -> int:
        value = self.settings[name][1].strip() if name in self.settings else ""
        return int(value) if re.fullmatch(r"[0-9]{1,6}", value) else default

    def _equivalent_rules(self, line: Line, sites: list[_Site], threshold: int) -> list[tuple[tuple[str, ...], int]]:
        """The rules equivalent to the weights: for each rule, its lists and the number of them that must match.

        If rules cannot express the weights, reports this and returns no rules.
        """
        positive = [site for site in sites if site.weight > 0]
        exempting = [site for site in sites if site.weight < 0]
        total = sum(site.weight for site in positive)
        sufficient = tuple(site.name for site in positive if site.weight >= threshold)
        combined = [site for site in positive if site.weight < threshold]
        weights = {site.weight for site in combined}
        problem = ""
        if len(weights) > 1:
            problem = f"the weights {', '.join(map(str, sorted(weights)))} differ, but at_least counts each list once"
        elif any(total + site.weight >= threshold for site in exempting):
            problem = "a list with a negative weight does not outweigh all others, but an except would"
        if problem:
            text = f"postscreen_dnsbl_sites: {problem}; write your own rules with the lists above"
            self.report.lose(line, text, exempts=bool(exempting))
            return []
        rules = [(sufficient, 1)] if sufficient else []
        if combined:
            needed = -(-threshold // combined[0].weight)
            if needed <= len(combined):
                rules.append((tuple(site.name for site in combined), needed))
            else:
                names = ", ".join(site.name for site in combined)
                self.report.note(line, f"{names} together do not reach the threshold, so no rule uses them")
                for site in combined:
                    self.lists.pop(site.name, None)
        return rules


def _without_key(domain: str) -> str:
    """A domain for a report, with `{key}` in place of a key."""
    zone = domain.partition("=")[0].lower().rstrip(".")
    known = known_zone(zone)
    return f"{{key}}.{zone.partition('.')[2]}" if known is not None and known.keyed else domain
