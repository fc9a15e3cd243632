"""`policyd doctor`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from policyd.cli import Failure
from policyd.cli.options import config_option, json_option
from policyd.config.load import load_settings
from policyd.core.printable import printable
from policyd.tools.display import shown
from policyd.tools.doctor.diagnosis import diagnose
from policyd.tools.doctor.postfix_config import PostconfError, read_postfix

if TYPE_CHECKING:
    from policyd.tools.doctor.diagnosis import Diagnosis, Question


@click.command()
@config_option
@click.option("--postfix", "folder", metavar="FOLDER", help="Postfix's configuration, instead of the machine's own.")
@json_option
def doctor(*, config: str | None, folder: str | None, as_json: bool) -> None:
    """Say what is wrong between Postfix and the daemon, and what to write instead.

    Reads what postconf says of main.cf and master.cf, compares it with policyd's settings and with the socket, and asks
    the daemon one question over the endpoint that Postfix uses. Changes nothing. Run it as root: others may not look at
    a socket in Postfix's folders.

    Exit status: 0 nothing is wrong, 1 something is, 2 postconf or the settings cannot be read.
    """
    settings = load_settings(config)
    try:
        diagnosis = diagnose(read_postfix(folder), settings)
    except PostconfError as error:
        raise Failure(printable(f"policyd: {error}"), 2) from None
    if as_json:
        click.echo(json.dumps(_as_json(diagnosis), indent=2))
    else:
        _print(diagnosis)
    sys.exit(1 if diagnosis.findings else 0)


def _print(diagnosis: Diagnosis) -> None:
    for number, finding in enumerate(diagnosis.findings, 1):
        click.echo(click.style(f"{number}. {printable(finding.where)}", bold=True))
        click.echo(printable(f"   {finding.what}"))
        click.echo(f"   write: {printable(finding.write)}\n")
    for line in diagnosis.right:
        click.echo(f"{click.style('right', fg='green')}  {printable(line)}")
    click.echo(_answer(diagnosis.question))
    count = len(diagnosis.findings)
    click.echo("nothing is wrong" if not count else f"{count} thing{'' if count == 1 else 's'} to mend")


def _answer(question: Question) -> str:
    if question.answer is None:
        return printable(f"asked  {question.endpoint}: {question.error}")
    seconds = question.answer.seconds
    return f"asked  {printable(str(question.endpoint))}: {shown(question.answer.content)} after {1000 * seconds:.1f} ms"


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    question = diagnosis.question
    answered = question.answer is not None
    return {
        "findings": [
            {"where": finding.where, "what": finding.what, "write": finding.write} for finding in diagnosis.findings
        ],
        "right": list(diagnosis.right),
        "question": {
            "endpoint": str(question.endpoint),
            "answer": question.answer.content.decode("utf-8", "replace") if question.answer is not None else None,
            "ms": round(1000 * question.answer.seconds, 3) if question.answer is not None else None,
            "error": None if answered else question.error,
        },
    }
