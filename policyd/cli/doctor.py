"""`policyd doctor`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from policyd.cli import Failure
from policyd.cli.options import config_option, json_option
from policyd.config.files import MAX_RULES_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.load import load, load_settings
from policyd.config.problems import ConfigErrors, Report
from policyd.config.yaml_tree import Mapping, Scalar, parse_yaml
from policyd.core.printable import printable
from policyd.tools.display import shown
from policyd.tools.doctor.databases import check_databases
from policyd.tools.doctor.diagnosis import diagnose
from policyd.tools.doctor.dns_lists import check_dns_lists
from policyd.tools.doctor.endpoints import systemd_sockets
from policyd.tools.doctor.memory import check_memory
from policyd.tools.doctor.postfix_config import PostconfError, read_postfix, read_saved

if TYPE_CHECKING:
    from policyd.config.load import Loaded
    from policyd.memory.definitions import CounterDefinition
    from policyd.tools.doctor.diagnosis import Diagnosis
    from policyd.tools.doctor.endpoints import Question


@click.command()
@config_option
@click.option("--postfix", "folder", metavar="FOLDER", help="Postfix's configuration, instead of the machine's own.")
@click.option(
    "--postconf",
    metavar="FILE",
    help="Saved output of `postconf -n`, for a Postfix in a container or on another host. Needs --master.",
)
@click.option("--master", metavar="FILE", help="Saved output of `postconf -M` of the same Postfix.")
@json_option
def doctor(*, config: str | None, folder: str | None, postconf: str | None, master: str | None, as_json: bool) -> None:
    """Find what is wrong between Postfix and the daemon, and suggest what to write instead.

    Reads what postconf says of main.cf and master.cf, finds the services that strangers reach, and judges whether each
    of them asks policyd in a place where the answer counts. Compares the configuration with policyd's settings and with
    the socket, and asks the daemon one question over the endpoint that Postfix uses. Also checks the ruleset's
    databases and DNS lists, and the shared memory (state:). Changes nothing. Run it as root: other users may not look
    at a socket in Postfix's folders.

    With --postconf and --master only the configuration is checked, because the endpoints are those of another system.

    \b
    policyd doctor
    docker exec mx postconf -n > main; docker exec mx postconf -M > master
    policyd doctor --postconf main --master master

    Exit status: 0 nothing is wrong, 1 something is, 2 postconf, a saved file or the settings cannot be read.
    """
    if (postconf is None) != (master is None):
        raise click.UsageError("--postconf and --master go together: save the output of postconf -n and of postconf -M")
    if postconf is not None and folder is not None:
        raise click.UsageError("give either --postfix, or --postconf and --master")
    settings = load_settings(config)
    try:
        loaded = load(config, keep_lists=False)
    except ConfigErrors:
        loaded = None
    counters = _user_counters(loaded)
    try:
        if postconf is not None and master is not None:
            diagnosis = diagnose(read_saved(postconf, master), settings, user_counters=counters)
        else:
            diagnosis = diagnose(read_postfix(folder), settings, sockets=systemd_sockets(), user_counters=counters)
            diagnosis = _with_databases(_with_dns_lists(diagnosis, loaded), settings.rules)
            findings, right = check_memory(settings)
            diagnosis = replace(diagnosis, findings=diagnosis.findings + findings, right=diagnosis.right + right)
    except PostconfError as error:
        raise Failure(printable(f"policyd: {error}"), 2) from None
    observing = _observing(diagnosis, settings.rules)
    if as_json:
        click.echo(json.dumps(_as_json(diagnosis, observing), indent=2))
    else:
        _print(diagnosis, observing)
    sys.exit(1 if diagnosis.findings else 0)


def _user_counters(loaded: Loaded | None) -> tuple[str, ...]:
    """The counters of the ruleset that count only requests of authenticated users."""
    if loaded is None:
        return ()
    definitions: list[CounterDefinition] = [counter.definition for counter in loaded.ruleset.counters]
    return tuple(
        definition.name for definition in definitions if any(part.name == "sasl_username" for part in definition.per)
    )


def _with_dns_lists(diagnosis: Diagnosis, loaded: Loaded | None) -> Diagnosis:
    """The diagnosis with the results of the self-tests of the ruleset's DNS lists."""
    if loaded is None:
        note = "the ruleset cannot be loaded, so its DNS lists were not tested; see policyd check"
        return replace(diagnosis, notes=(*diagnosis.notes, note))
    findings, right = check_dns_lists(loaded.ruleset.dns_lists, loaded.settings.dns)
    return replace(diagnosis, findings=diagnosis.findings + findings, right=diagnosis.right + right)


def _with_databases(diagnosis: Diagnosis, rules: str) -> Diagnosis:
    """The diagnosis with the findings about the ruleset's databases of networks."""
    findings, right, notes = check_databases(rules, time.time())
    return replace(
        diagnosis,
        findings=diagnosis.findings + findings,
        right=diagnosis.right + right,
        notes=diagnosis.notes + notes,
    )


def _observing(diagnosis: Diagnosis, rules: str) -> str:
    """Names the daemon or the rules file that has `mode: observe`; empty if the ruleset is enforced."""
    if diagnosis.observes:
        return f"policyd at {diagnosis.question.endpoint}" if diagnosis.question is not None else ""
    return rules if _observes(rules) else ""


def _observes(rules: str) -> bool:
    """Whether a rules file has `mode: observe` at the top; False if it cannot be read."""
    try:
        root = parse_yaml(read_file(rules, MAX_RULES_BYTES), rules, Report())
    except (UnreadableError, OversizedError):
        return False
    mode = root.get("mode") if isinstance(root, Mapping) else None
    return isinstance(mode, Scalar) and mode.text == "observe"


def _print(diagnosis: Diagnosis, observing: str) -> None:
    for number, finding in enumerate(diagnosis.findings, 1):
        click.echo(click.style(f"{number}. {printable(finding.where)}", bold=True))
        click.echo(printable(f"   {finding.what}"))
        click.echo(f"   write: {printable(finding.write)}\n")
    for line in diagnosis.right:
        click.echo(f"{click.style('right', fg='green')}  {printable(line)}")
    if observing:
        line = printable(f"{observing}: mode: observe, so every mail gets DUNNO, whatever the rules decide")
        click.echo(f"{click.style('note', fg='yellow')}   {line}")
    for line in diagnosis.notes:
        click.echo(f"{click.style('note', fg='yellow')}   {printable(line)}")
    click.echo(_answer(diagnosis.question))
    count = len(diagnosis.findings)
    click.echo("nothing is wrong" if not count else f"{count} problem{'' if count == 1 else 's'} found")


def _answer(question: Question | None) -> str:
    if question is None:
        return "asked  nothing: the configuration is from another system"
    if question.answer is None:
        return printable(f"asked  {question.endpoint}: {question.error}")
    seconds = question.answer.seconds
    return f"asked  {printable(str(question.endpoint))}: {shown(question.answer.content)} after {1000 * seconds:.1f} ms"


def _as_json(diagnosis: Diagnosis, observing: str) -> dict[str, Any]:
    return {
        "findings": [
            {"where": finding.where, "what": finding.what, "write": finding.write} for finding in diagnosis.findings
        ],
        "right": list(diagnosis.right),
        "notes": list(diagnosis.notes),
        "services": [
            {"service": str(service.service), "reached_by": service.audience.value, "asks_in": list(service.asks_in)}
            for service in diagnosis.services
        ],
        "mode": "observe" if observing else "enforce",
        "question": _question_as_json(diagnosis.question),
    }


def _question_as_json(question: Question | None) -> dict[str, Any] | None:
    if question is None:
        return None
    answer = question.answer
    return {
        "endpoint": str(question.endpoint),
        "answer": answer.content.decode("utf-8", "replace") if answer is not None else None,
        "version": question.policyd.version if question.policyd is not None else None,
        "ruleset": question.policyd.ruleset if question.policyd is not None else None,
        "ms": round(1000 * answer.seconds, 3) if answer is not None else None,
        "error": question.error if answer is None else None,
    }
