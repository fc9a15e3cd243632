"""The command line: one program, `policyd`, with a file for each group of commands.

Only this package uses click, and only this package imports both the daemon and the tools. An expected failure prints
lines on standard error, never a traceback. Exit status: 0 success, 1 the thing examined is wrong or nothing was found,
2 wrong usage or a file that cannot be read.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys

import click

from policyd import __version__
from policyd.config.problems import ConfigErrors, did_you_mean
from policyd.core.printable import printable

# The module of each command, imported only to run the command or to show help.
COMMANDS = {
    "serve": "policyd.cli.daemon",
    "status": "policyd.cli.control",
    "reload": "policyd.cli.control",
    "block": "policyd.cli.by_hand",
    "allow": "policyd.cli.by_hand",
    "fetch": "policyd.cli.fetch",
    "forget": "policyd.cli.control",
    "check": "policyd.cli.rules",
    "explain": "policyd.cli.rules",
    "schema": "policyd.cli.rules",
    "replay": "policyd.cli.logs",
    "suggest": "policyd.cli.logs",
    "find": "policyd.cli.find",
    "stats": "policyd.cli.decisions",
    "tail": "policyd.cli.decisions",
    "lookup": "policyd.cli.decisions",
    "report": "policyd.cli.decisions",
    "import": "policyd.cli.exchange",
    "export": "policyd.cli.exchange",
    "doctor": "policyd.cli.doctor",
}


# The environment variable that a shell sets to request completion (cli/completion.py).
COMPLETE = "_POLICYD_COMPLETE"


class _Commands(click.Group):
    """A group that imports the module of a command only when it needs the command."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolves the command that `args` begins with. The error for an unknown name suggests a similar name."""
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            raise click.UsageError(
                f"there is no command '{printable(name[:80])}'{did_you_mean(name, COMMANDS)}", context
            )
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands, each with the first paragraph of its help, which click would shorten."""
        rows = []
        for name in self.list_commands(context):
            command = self.get_command(context, name)
            assert command is not None
            rows.append((name, " ".join((command.help or "").split("\n\n", 1)[0].split())))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        module = COMMANDS.get(name)
        if module is None:
            return None
        attribute = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


class Failure(click.ClickException):
    """An expected failure: lines for standard error, and the exit status."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="policyd %(version)s")
def policyd() -> None:
    """A policy daemon for Postfix that judges clients by reverse DNS, host name and network, with a YAML ruleset.

    \b
    policyd check --rules rules.yaml       is the ruleset right?
    policyd explain client_address=...     what would be answered, and why?
    policyd serve -c policyd.yaml          answer Postfix
    policyd status                         is the running daemon healthy?

    Postfix asks policyd through check_policy_service in main.cf. `policyd reload` loads new rules.
    """


def main() -> None:
    """The entry point of the command `policyd`."""
    if COMPLETE in os.environ:
        sys.exit(importlib.import_module("policyd.cli.completion").complete())
    try:
        policyd(prog_name="policyd", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "policyd"
        click.echo(f"{command}: {error.format_message()} (see {command} --help)", err=True)
        sys.exit(2)
    except Failure as failure:
        click.echo(failure.message, err=True)
        sys.exit(failure.exit_status)
    except click.ClickException as error:
        click.echo(f"policyd: {error.format_message()}", err=True)
        sys.exit(2)
    except ConfigErrors as errors:
        click.echo(str(errors), err=True)
        sys.exit(errors.exit_status)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # The reader of standard output has closed the pipe. Python would report this again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
