"""Imports postfwd's rulesets (postfwd(1)).

As in policyd, rules are tried from the top, and the first rule whose items all match decides. If an item is given
several times, one match is enough; `!!` and `!=` negate. Expressions are Perl's, unanchored and case-insensitive.
Counting, scores, jumps and DNS are not supported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from policyd.config.conditions import CONDITIONS, UNPROVEN
from policyd.core.protocol import ATTRIBUTES
from policyd.core.ruleset import Verb
from policyd.exchange.model import Imported, Row, SkippedError, Term, UnsupportedError, shown
from policyd.exchange.postfix.table import parse_verdict
from policyd.exchange.regex_translation import from_perl
from policyd.exchange.values import literal, network, network_text, term

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policyd.exchange.model import ConversionReport, Line, Verdict

_MACRO = re.compile(r"\s*(?P<name>&&[-\w]+)\s*\{(?P<body>.*)\}[\s;]*", re.DOTALL)
_MACRO_NAME = re.compile(r"&&[-\w]+")
_ITEM = re.compile(r"(?P<name>[^=~<>!\s]+)\s*(?P<operator>[=~<>]=|=[=~<>]|![=~<>]|[<>=])\s*(?P<value>.*)", re.DOTALL)

# Maximum number of macro expansions: a macro may name others, or itself.
_EXPANSIONS = 100

# Maximum characters of a rule, also after its macros are expanded.
_MAX_RULE = 1 << 18

# Items that postfwd computes itself and that are not supported, with the subject of each for the message.
_COMPUTED = {
    "date": "a date; a rule can only expire, and holds on every day until then",
    "time": "the time of day",
    "days": "the day of the week",
    "months": "the month",
    "score": "scores",
    "request_score": "scores",
    "rblcount": "a DNS blocklist",
    "rhsblcount": "a DNS blocklist",
    "helo_address": "a DNS lookup of the HELO name",
    "ratecount": "rate limits",
    "request_hits": "the results of other rules",
    "matches": "the results of other rules",
    "version": "postfwd's version",
    "cache": "postfwd's cache",
}
_NUMERIC = frozenset({"size", "recipient_count", "encryption_keysize"})
_COMMANDS = re.compile(
    r"(jump|score|set|(?:rate|size|rcpt)(?:5321)?|ask|mail|sendmail|wait|note|quit)\s*\(", re.IGNORECASE
)
# Actions that exempt mail from the rules below, or may do so.
_PASSES = re.compile(r"(?:^|;)\s*action\s*=\s*(?:dunno|ok|permit|relay|jump)\b", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\$(?:\((\w+)\)|(\w+))")
_PLACEHOLDERS = {
    "client_address": "client_address",
    "client_name": "hostname",
    "helo_name": "helo_name",
    "sender": "sender",
    "recipient": "recipient",
    "id": "rule",
}


@dataclass(slots=True)
class _Rule:
    """The items of a rule. At least one term of each item in `wanted` must hold, and no term in `negated`."""

    line: Line
    name: str = ""
    action: str | None = None
    wanted: dict[str, list[Term]] = field(default_factory=dict)
    negated: dict[str, list[Term]] = field(default_factory=dict)


class _Item(NamedTuple):
    name: str
    operator: str
    value: str


def read(lines: Iterable[Line], report: ConversionReport) -> Imported:
    """The rows for the ruleset, each with the name of its rule."""
    imported = Imported()
    macros: dict[str, str] = {}

    def take(line: Line) -> bool:
        text = _expand(line.text, macros)
        macro = _MACRO.fullmatch(text)
        if macro is not None:
            macros[macro["name"]] = _body(macro)
        else:
            try:
                imported.rows.append(_read_rule(line, text, report))
            except SkippedError:
                raise
            except UnsupportedError as error:
                error.exempts = _PASSES.search(text) is not None
                raise
        return macro is None

    report.take_each(_logical_lines(lines), take)
    return imported


def _logical_lines(lines: Iterable[Line]) -> Iterator[Line]:
    """Joins lines as postfwd does: after a backslash or an opening brace, and before a blank or a `}`."""
    current: Line | None = None
    unfinished = False  # whether the last line ended in a backslash or a brace
    for line in lines:
        text = re.sub(r'"|#.*', "", line.text).rstrip()
        if not text.strip():
            continue
        follows = current is not None and (unfinished or re.match(r"\}|\s", text) is not None)
        between = "" if unfinished or current is None or current.text.endswith(";") else ";"
        unfinished = text.endswith(("\\", "{"))
        text = text.removesuffix("\\")
        if current is not None and follows:
            current = current._replace(text=f"{current.text}{between} {text.strip()}"[: _MAX_RULE + 1])
            continue
        if current is not None:
            yield current
        current = line._replace(text=text)
    if current is not None:
        yield current


def _expand(text: str, macros: dict[str, str]) -> str:
    definition = _MACRO.fullmatch(text)
    head, body = (f"{definition['name']} {{", _body(definition)) if definition else ("", text)
    for _ in range(_EXPANSIONS):
        found = _MACRO_NAME.search(body)
        if found is None:
            break
        if found[0] not in macros:
            raise SkippedError(f"the macro {found[0]} is not defined above; postfwd skips the line")
        body = macros[found[0]].join(re.split(rf"{found[0]}(?![-\w])", body))
        if len(body) > _MAX_RULE:
            break
    else:
        raise UnsupportedError("a macro names itself")
    if len(body) > _MAX_RULE:
        raise UnsupportedError(f"the rule is longer than {_MAX_RULE >> 10} KiB")
    return f"{head}{body}}}" if definition else body


def _body(macro: re.Match[str]) -> str:
    """The text of a macro."""
    return macro["body"].strip().removesuffix(";").rstrip()


def _read_rule(line: Line, text: str, report: ConversionReport) -> Row:
    rule = _Rule(line)
    for item in filter(str.strip, text.split(";")):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise SkippedError(f"{shown(item.strip())} is not an item; postfwd skips the line")
        name, operator, value = match["name"], match["operator"], match["value"]
        if name == "id":
            rule.name = value
        elif name == "action":
            rule.action = value
        else:
            operator = {"<=": "=<", ">=": "=>", "~=": "=~"}.get(operator, operator)
            _add_item(rule, _Item(name, operator, value), report)
    if rule.action is None:
        raise SkippedError("there is no action; postfwd skips the line")
    verdict = _verdict(rule.action, line, report)
    match_terms = tuple(term for terms in rule.wanted.values() for term in terms)
    exceptions = tuple(term for terms in rule.negated.values() for term in terms)
    exempting = match_terms if verdict.verb is Verb.DUNNO else exceptions
    if any(term.condition in UNPROVEN for term in exempting):
        raise UnsupportedError("a name that the client only claims (reverse_client_name) may not let mail through")
    # A rule without an item matches every request, and so does this expression: every request has an address.
    return Row(line, match_terms or (term("client_address_regex", ".*"),), verdict, exceptions, rule.name)


def _add_item(rule: _Rule, item: _Item, report: ConversionReport) -> None:
    name = item.name
    if name in _COMPUTED or name.startswith(("rbl", "rhsbl", "sender_ns", "sender_mx")):
        raise UnsupportedError(f"the item '{name}' is not supported: {_COMPUTED.get(name, 'a DNS lookup')}")
    for value in item.value.split(",") if name == "client_address" else [item.value]:
        _add_alternative(rule, item._replace(value=value.strip()), report)


def _add_alternative(rule: _Rule, item: _Item, report: ConversionReport) -> None:
    """Adds one alternative of an item. In postfwd one true alternative is enough, even if it is negated."""
    name, operator, value = item
    negation = value.startswith("!!")
    if negation:  # `!!x` or `!!(x)`
        value = value[2:].lstrip().removeprefix("(").lstrip().removesuffix(")").rstrip()
    if "$$" in value:
        raise UnsupportedError("two attributes cannot be compared with each other")
    if re.match(r"[lc]?(file|table):", value, re.IGNORECASE):
        raise UnsupportedError(f"the entries are in another file, {shown(value)}; import it as plain")
    negated = negation != operator.startswith("!")
    terms = _terms(_Item(name, operator.replace("!", "="), value), rule.line, report)
    others = rule.wanted.get(name, [])
    if name in rule.negated or (negated and others):
        raise UnsupportedError(
            f"'{name}' is negated together with another '{name}': either would be enough, which a rule cannot express"
        )
    if others and others[0].condition != terms[0].condition:
        # `client_name==unknown; client_name=\.dyn\.`: an expression can also compare for equality.
        others[:] = [_as_expression(name, term) for term in others]
        terms = [_as_expression(name, term) for term in terms]
    (rule.negated if negated else rule.wanted).setdefault(name, []).extend(terms)


def _as_expression(name: str, named: Term) -> Term:
    if named.condition == f"{name}_regex":
        return named
    if named.condition != name or not named.value or named.value == "<>":
        raise UnsupportedError(f"'{name}' is compared in two ways, but a rule has only one; write two rules")
    return term(f"{name}_regex", f"^{literal(named.value)}$")


def _domain_expression(attribute: str, value: str) -> Term:
    """Converts an unanchored expression on the domain of an address to an expression on the whole address."""
    pattern = value.strip("/") if value.startswith("/") else value
    anchored = pattern.startswith("^")
    inner = pattern.removeprefix("^")
    if "^" in re.sub(r"\[\^", "[", inner) or re.search(r"\\[AbBG]", inner) or (anchored and "|" in inner):
        raise UnsupportedError(f"this expression on '{attribute}_domain' is not supported; write it for the address")
    rest = "" if inner.endswith("$") else "[^@]*$"
    return term(f"{attribute}_regex", f"@{'' if anchored else '[^@]*'}(?:{from_perl(inner)}){rest}")


def _terms(item: _Item, line: Line, report: ConversionReport) -> list[Term]:
    """The terms for an item: alternatives with one condition."""
    name, operator, value = item
    if name in _NUMERIC or operator in {"=<", "=>", "<", ">"}:
        raise UnsupportedError(
            f"numbers are compared by '{name}{operator}'; a rule can only compare for equality or search"
        )
    if name == "client_address" and operator in {"=", "=="}:
        if value == "0.0.0.0/0":  # postfwd: always true
            return [Term("cidr", "0.0.0.0/0"), Term("cidr", "::/0")]
        if not value:
            raise UnsupportedError("an address is missing before or after a comma")
        return [Term("cidr", network_text(network(text, report.on_host_bits(line)))) for text in value.split()]
    if name in {"sender_domain", "recipient_domain"}:
        attribute = name.partition("_")[0]
        equal = operator == "=="
        return [term(f"{attribute}_regex", f"@{literal(value)}$") if equal else _domain_expression(attribute, value)]
    if name in {"sender_localpart", "recipient_localpart"}:
        raise UnsupportedError(f"an expression on '{name}'; write it for the whole address, as sender=")
    if name not in ATTRIBUTES:
        raise UnsupportedError(f"the item '{name}' is not an attribute that Postfix sends")
    if operator == "==":
        condition = name if name in CONDITIONS else f"{name}_regex"
        return [term(condition, value)]
    if name == "sender" and value.strip("^$/") == "<>":
        return [Term("sender", "<>")]
    if name == "sender" and "<>" in value:
        report.note(
            line, "the null sender is `<>` in postfwd but empty for sender_regex, so it may be judged differently"
        )
    return [term(f"{name}_regex", from_perl(value.strip("/") if value.startswith("/") else value))]


def _verdict(action: str, line: Line, report: ConversionReport) -> Verdict:
    command = _COMMANDS.match(action)
    if command is not None:
        if command[1].lower() == "note":
            raise UnsupportedError("note() only logs; write the rule with mode: observe to see what it would refuse")
        raise UnsupportedError(f"{command[1].lower()}() is not supported")
    verdict = parse_verdict(action, line, report)

    def fill(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in _PLACEHOLDERS:
            report.note(line, f"$${name} is not supported: the text has `...` in its place")
            return "..."
        return "{" + _PLACEHOLDERS[name] + "}"

    # Braces of the text itself have been doubled, so these placeholders are the only ones.
    return replace(verdict, text=_VARIABLE.sub(fill, verdict.text))
