"""`policyd serve`."""

from __future__ import annotations

import os

import click

from policyd.cli import Failure
from policyd.cli.options import rules_options
from policyd.config.settings import parse_listen
from policyd.daemon.listeners import ListenError
from policyd.daemon.reload import LoadError
from policyd.daemon.start import serve as run


@click.command()
@rules_options
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDR",
    help="Address to listen on, in place of those in the settings: inet:127.0.0.1:10040, inet:[::1]:10040 or "
    "unix:/path. May be given several times.",
)
def serve(config: str | None, rules: str | None, listen: tuple[str, ...]) -> None:
    """Run the daemon in the foreground.

    Decisions are written where the settings say (decision_log; standard output by default), the operational log to
    standard error. SIGHUP and `policyd reload` load settings, rules and lists again; if anything is wrong, nothing
    changes. SIGTERM ends the daemon after the requests in flight.
    """
    try:
        addresses = [parse_listen(address) for address in listen]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None
    try:
        run(config, rules, addresses, os.environ)
    except (LoadError, ListenError) as error:
        raise Failure(f"policyd: {error}", 2 if isinstance(error, ListenError) else 1) from None
