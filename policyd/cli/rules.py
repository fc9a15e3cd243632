"""`policyd check`, `policyd explain` and `policyd schema`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

import click

from policyd.cli.options import RulesetName, Suggested, json_option, rules_options
from policyd.cli.terminal import print_tables
from policyd.config.conditions import Form
from policyd.config.dates import utc_today
from policyd.config.entries import fold_owner
from policyd.config.entry_messages import explain_entry
from policyd.config.load import load
from policyd.config.other_words import meant_attribute, meant_option
from policyd.config.problems import Severity, did_you_mean
from policyd.config.schema import rules_schema, settings_schema
from policyd.config.schema import schema as both_schemas
from policyd.control.client import ControlError
from policyd.control.client import ask as ask_daemon
from policyd.control.words import Command, ControlRequest
from policyd.core.address import format_address, parse_address
from policyd.core.dns_lists import NOT_LISTED, unknown
from policyd.core.engine import Inquiry
from policyd.core.facts import Facts, Greylisted, Needs
from policyd.core.identity import Identity, Reason, Status, given_identity
from policyd.core.normalize import fold_name
from policyd.core.owners import Owner
from policyd.core.protocol import ATTRIBUTES, REQUEST_TYPE, ProtocolError, Request, RequestParser
from policyd.dns.list_answers import read_list_answer
from policyd.dns.lists import ask_once
from policyd.dns.resolver import look_up_once
from policyd.memory.counting import counts_of
from policyd.tools.explain import CounterValue, Query, as_tables, readable
from policyd.tools.explain import as_json as explanation_as_json
from policyd.tools.explain import explain as make_explanation

if TYPE_CHECKING:
    from policyd.config.dns_list import DnsList
    from policyd.config.settings import Dns
    from policyd.core.address import Address
    from policyd.core.dns_lists import ListAnswer
    from policyd.core.index import Ruleset
    from policyd.memory.counting import Count


# Arguments of `explain` besides a request's attributes; they replace the databases of networks.
OWNER_ATTRIBUTES = ("asn", "asn_name", "country")


@click.command()
@rules_options
@click.option("--strict", is_flag=True, help="Exit with 1 on warnings, too.")
@click.option(
    "--list",
    "replaced",
    multiple=True,
    metavar="NAME=FILE",
    type=RulesetName("lists="),
    help="Check with FILE in place of the list's own file, before you move FILE there. May be given several times.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
def check(config: str | None, rules: str | None, strict: bool, replaced: tuple[str, ...], quiet: bool) -> None:
    """Load settings and ruleset as the daemon would, and print every problem.

    Errors, warnings and notices have the form FILE:LINE:COLUMN: ... and go to standard error; the ruleset's own tests
    are run. With databases of networks it prints the coverage of each asn and country, which takes some 2 s for a
    million records. The last line says what was loaded and how many tests passed. Exit status: 0 no errors, 1 errors
    (with --strict, also warnings), 2 a file cannot be read.
    """
    list_files = dict(_list_and_file(replacement) for replacement in replaced)
    loaded = load(config, rules, warnings_on=utc_today(), keep_lists=False, list_files=list_files)
    for name in list_files:
        if name not in loaded.lists or loaded.lists[name].file is None:
            files = [definition.name for definition in loaded.lists.values() if definition.file is not None]
            raise click.BadParameter(
                f"'{name}' is not a list that is read from a file{_meant(name, files)}", param_hint="--list"
            )
    notices = {str(warning) for warning in loaded.warnings if warning.severity is Severity.NOTICE}
    for line in loaded.warning_lines:
        if not quiet or line not in notices:
            click.echo(line, err=True)
    if not quiet:
        for database in loaded.databases:
            families = "IPv4 and IPv6" if database.has_ipv6 else "IPv4 only"
            form = "" if database.missing else f" ({database.format}, {families}), hash {database.hash}"
            click.echo(f"database {database.kind}: {database.shown}{form}")
        for line in loaded.network_counts:
            click.echo(line)
        count = len(loaded.rules_file.tests)
        tests = f"{count:,} {'test' if count == 1 else 'tests'} passed" if count else "no tests"
        click.echo(f"{loaded.summary}; {tests}")
    if strict and len(loaded.warning_lines) > len(notices):
        sys.exit(1)


@click.command()
@rules_options
@json_option
@click.option(
    "--reverse-dns",
    type=click.Choice([status.value for status in Status]),
    help="Use this status instead of asking DNS.",
)
@click.option(
    "--hostname",
    multiple=True,
    metavar="NAME",
    help="Use this name instead of asking DNS: as a verified name, or as a claimed name with another status in "
    "--reverse-dns. "
    "May be given several times.",
)
@click.option(
    "--listed",
    multiple=True,
    metavar="LIST=ANSWER",
    type=RulesetName("dns_lists="),
    help="Use this answer instead of asking a DNS list: an address as zen=127.0.0.4, zen=- for not listed, "
    "zen=? for unknown. May be given several times.",
)
@click.option(
    "--counter",
    "counters",
    multiple=True,
    metavar="NAME=VALUE",
    type=RulesetName("counters="),
    help="Use this value of a counter instead of asking the running daemon (control:); without a daemon, a "
    "counter is at 1. May be given several times.",
)
@click.argument(
    "attributes",
    nargs=-1,
    metavar="[NAME=VALUE]...",
    type=Suggested(tuple(f"{name}=" for name in (*ATTRIBUTES, *OWNER_ATTRIBUTES))),
)
def explain(
    config: str | None,
    rules: str | None,
    as_json: bool,
    reverse_dns: str | None,
    hostname: tuple[str, ...],
    listed: tuple[str, ...],
    counters: tuple[str, ...],
    attributes: tuple[str, ...],
) -> None:
    """Show the answer to one request, and why.

    The request's attributes are given as NAME=VALUE with the names that Postfix uses; protocol_state is RCPT unless
    given. Without any attribute, a request is read from standard input, as Postfix would send it. asn=, asn_name= and
    country= replace the databases of networks.

    \b
    policyd explain client_address=49.212.201.177 sender=a@b.example
    policyd explain client_address=192.0.2.1 --hostname mail.example.com
    policyd explain client_address=192.0.2.1 --reverse-dns missing --json
    """
    owner = _given_owner(attributes)
    request = _request(tuple(each for each in attributes if each.partition("=")[0] not in OWNER_ATTRIBUTES))
    given = _given_identity(reverse_dns, hostname)
    loaded = load(config, rules)
    today = utc_today()
    queries: tuple[Query, ...] = ()
    given_lists = _given_lists(listed, loaded.ruleset)
    if given is not None:
        inquiry, source = Inquiry(loaded.ruleset, request, Facts(given, owner=owner), today), "as given"
    else:
        trust_postfix = loaded.settings.dns.trust_postfix
        inquiry = Inquiry(loaded.ruleset, request, Facts(owner=owner), today, trust_postfix=trust_postfix)
        source = "client_name, as Postfix verified it"
    inquiry.learn_lists(given_lists)
    counter_values = _counters(inquiry, loaded.settings.control, _given_counters(counters, loaded.ruleset))
    inquiry.learn_counters({counter.name: counter.value for counter in counter_values})
    inquiry.greylist = Greylisted.NEW
    while isinstance(decision := inquiry.decide(), Needs):
        if decision.identity:
            source = "DNS"
            identity, new_queries = _ask_dns(loaded.settings.dns, request)
            inquiry.learn_identity(identity)
        else:
            wanted = [dns_list for dns_list in loaded.ruleset.dns_lists if dns_list.name in decision.lists]
            answers, new_queries = _ask_lists(loaded.settings.dns, wanted, request, inquiry.identity)
            inquiry.learn_lists(answers)
        queries += new_queries
    facts = Facts(inquiry.identity, inquiry.lists, inquiry.owner, inquiry.counters, inquiry.greylist)
    explanation = make_explanation(
        loaded,
        request,
        decision,
        facts,
        today,
        source=source,
        queries=queries,
        owner_given=owner is not None,
        counters=counter_values,
    )
    if as_json:
        click.echo(json.dumps(explanation_as_json(explanation), indent=2))
        return
    print_tables(*as_tables(explanation))


@click.command()
@click.argument("file", type=click.Choice(["rules", "settings"]), required=False)
def schema(file: str | None) -> None:
    """Print the JSON Schema of rules.yaml and policyd.yaml, or of one of them, for editors.

    \b
    policyd schema > policyd.schema.json
    and in the first line of either file:
    # yaml-language-server: $schema=policyd.schema.json
    """
    made = {"rules": rules_schema, "settings": settings_schema, None: both_schemas}[file]()
    click.echo(json.dumps(made, indent=2))


def _ask_dns(dns: Dns, request: Request) -> tuple[Identity, tuple[Query, ...]]:
    """Asks DNS for the client's identity now, as the daemon would."""
    identity, questions = asyncio.run(look_up_once(dns, request.address))
    queries = []
    for question in questions:
        failure = question.answer.value if isinstance(question.answer, Reason) else None
        answers = () if isinstance(question.answer, Reason) else tuple(_answer_text(each) for each in question.answer)
        queries.append(Query(f"{readable(question.name)} {question.type}", answers, failure, question.seconds))
    return identity, tuple(queries)


def _answer_text(answer: bytes | Address) -> str:
    return readable(answer) if isinstance(answer, bytes) else format_address(answer)


def _list_and_file(written: str) -> tuple[str, str]:
    name, equals, path = written.partition("=")
    if not equals or not name or not path:
        raise click.BadParameter(f"'{written}' is not NAME=FILE", param_hint="--list")
    return name, path


def _ask_lists(
    dns: Dns, lists: list[DnsList], request: Request, identity: Identity | None
) -> tuple[dict[str, ListAnswer], tuple[Query, ...]]:
    """Asks DNS lists about the client now. The queries are returned without the keys of zones."""
    answers, questions = asyncio.run(ask_once(lists, request, identity, dns))
    queries = []
    for question in questions:
        failure = question.answer.value if isinstance(question.answer, Reason) else None
        addresses = (
            () if isinstance(question.answer, Reason) else tuple(format_address(each) for each in question.answer)
        )
        meaning = f"{question.dns_list}: {question.meaning.reason or question.meaning.status.value}"
        queries.append(Query(f"{question.shown_name} A", addresses, failure, question.seconds, meaning))
    return answers, tuple(queries)


def _given_lists(listed: tuple[str, ...], ruleset: Ruleset) -> dict[str, ListAnswer]:
    """Reads --listed."""
    definitions = {dns_list.name: dns_list for dns_list in ruleset.dns_lists}
    answers: dict[str, ListAnswer] = {}
    for text in listed:
        name, equals, answer = text.partition("=")
        if not equals:
            raise click.UsageError(f"--listed {text}: write LIST=ANSWER, such as zen=127.0.0.4")
        if name not in definitions:
            hint = did_you_mean(name, definitions) or "; write LIST=ANSWER with a DNS list that a rule uses"
            raise click.UsageError(f"--listed {text}: there is no DNS list '{name}'{hint}")
        addresses = [parse_address(part.encode("utf-8", "replace")) for part in answer.split("+")]
        if answer == "-":
            answers[name] = NOT_LISTED
        elif answer.startswith("?"):
            answers[name] = unknown(answer[1:] or Reason.TIMEOUT)
        elif None in addresses:
            raise click.UsageError(f"--listed {text}: '{answer}' is not an address; write an address, - or ?")
        else:
            answers[name] = read_list_answer(
                definitions[name], tuple(address for address in addresses if address is not None)
            )
    return answers


def _request(attributes: tuple[str, ...]) -> Request:
    """The request with these attributes or, without any, the request on standard input."""
    if not attributes:
        return _request_from_standard_input()
    values = {"request": REQUEST_TYPE, "protocol_state": b"RCPT"}
    for attribute in attributes:
        name, equals, value = attribute.partition("=")
        if not equals:
            raise click.UsageError(f"'{attribute}' is not NAME=VALUE, for example client_address=192.0.2.1")
        if name not in ATTRIBUTES:
            hint = meant_option(name) or meant_attribute(name) or did_you_mean(name, ATTRIBUTES)
            raise click.UsageError(f"unknown attribute '{name}'{hint}")
        values[name] = b"" if (name, value) == ("sender", "<>") else os.fsencode(value)
    return Request.of(values)


def _given_owner(attributes: tuple[str, ...]) -> Owner | None:
    """Reads asn=, asn_name= and country=; returns None without any of them."""
    given = dict(each.partition("=")[::2] for each in attributes if each.partition("=")[0] in OWNER_ATTRIBUTES)
    if not given:
        return None
    folded = {"asn": b"0", "country": b""}
    for key, form in (("asn", Form.ASN), ("country", Form.COUNTRY)):
        if given.get(key):
            entry = fold_owner(form, given[key])
            if entry is None:
                raise click.UsageError(f"{key}: {explain_entry(form, os.fsencode(given[key]))}")
            folded[key] = entry
    return Owner(int(folded["asn"]), given.get("asn_name", ""), folded["country"].decode())


def _request_from_standard_input() -> Request:
    if sys.stdin.isatty():
        raise click.UsageError("give the request as NAME=VALUE..., or on standard input")
    parser = RequestParser()
    parser.receive_data(sys.stdin.buffer.read(2 * 65536).rstrip(b"\n") + b"\n\n")
    try:
        request = parser.next_request()
    except ProtocolError as error:
        raise click.UsageError(f"standard input: {error}") from None
    assert request is not None
    return request


def _counters(inquiry: Inquiry, control: str | None, given: dict[str, int]) -> tuple[CounterValue, ...]:
    """The given values, and for every other counter that counts the request the running daemon's value, or else 1."""
    values = {name: CounterValue(name, value, "as given") for name, value in given.items()}
    why = "" if control is not None else "the settings name no control socket to ask the daemon"
    for count in counts_of(inquiry):
        name = count[0].name
        if name in values:
            continue
        if control is not None and not why:
            try:
                answer = ask_daemon(control, _counter_request(count))
            except ControlError as error:
                why = str(error)
            else:
                if answer["ok"]:
                    values[name] = CounterValue(name, int(answer["count"]), "the running daemon")
                else:
                    values[name] = CounterValue(name, 1, f"assumed to be 1: {'; '.join(answer['errors'])}")
                continue
        values[name] = CounterValue(name, 1, f"assumed to be 1: {why}")
    return tuple(values.values())


def _counter_request(count: Count) -> ControlRequest:
    """The request to the daemon for the value that a counter would have with one more mail."""
    counter, key, value = count
    return ControlRequest(
        Command.COUNTED,
        what=key.decode("utf-8", "replace"),
        counter=counter.name,
        value=(value or b"").decode("utf-8", "replace"),
        definition=counter.fingerprint.hex(),
    )


def _given_counters(given: tuple[str, ...], ruleset: Ruleset) -> dict[str, int]:
    """Reads --counter."""
    known = [counter.name for counter in ruleset.counters]
    values: dict[str, int] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value.isascii() or not value.isdigit():
            raise click.BadParameter(f"'{text}' is not NAME=VALUE, as in doors=5", param_hint="--counter")
        if name not in known:
            raise click.BadParameter(f"'{name}' is not a counter{_meant(name, known)}", param_hint="--counter")
        values[name] = int(value[:12])
    return values


def _meant(name: str, known: list[str]) -> str:
    """Suggests a similar name, or else names all that are known, for the end of a message."""
    return did_you_mean(name, known) or (f"; there are {', '.join(known)}" if known else "; there is none")


def _given_identity(status: str | None, names: tuple[str, ...]) -> Identity | None:
    """Reads --reverse-dns and --hostname."""
    if status is None and not names:
        return None
    folded = tuple(sorted({fold_name(os.fsencode(name)) for name in names}))
    match Status(status or Status.VERIFIED):
        case Status.VERIFIED if not folded:
            raise click.UsageError("--reverse-dns verified needs a --hostname")
        case Status.VERIFIED:
            return given_identity(Status.VERIFIED, verified=folded)
        case Status.MISSING if folded:
            raise click.UsageError(
                "--reverse-dns missing cannot be combined with --hostname: such a client has no name"
            )
        case other:
            return given_identity(other, claimed=folded)
