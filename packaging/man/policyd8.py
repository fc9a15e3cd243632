"""Writes policyd(8) to standard output: every command and option, from click, in man(7) macros.

The argument is the page's date, YYYY-MM-DD. Everything about commands comes from the program, so the page agrees with
`--help`; all other text of the page is in this file.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap

import click

from policyd import __version__
from policyd.cli import policyd

_HEAD = r"""
.SH NAME
policyd \- policy daemon for Postfix
.SH SYNOPSIS
.B policyd
.I COMMAND
.RI [ OPTION ].\|.\|.
.RI [ ARGUMENT ].\|.\|.
.SH DESCRIPTION
Postfix asks policyd about each recipient of each mail
.RB ( check_policy_service ).
policyd looks at the client's reverse DNS, host name and address,
compares them with the ruleset, and answers
.BR REJECT ,
.B DEFER
or
.B DUNNO
(no opinion).
Two things no rule can switch off: a client's lie about its name can get
it blocked, never let through; and a DNS failure can defer a mail, never
reject it.
.PP
The daemon is
.BR "policyd serve" ;
the other commands examine a ruleset, logs, Postfix's configuration, or
the running daemon.
Without
.B \-c
and
.B \-\-rules
every command uses
.I /etc/policyd/policyd.yaml
if it exists.
.PP
In
.IR main.cf ,
after
.B reject_unauth_destination
in
.BR smtpd_recipient_restrictions :
.PP
.RS 4
.EX
check_policy_service { unix:private/policyd, timeout=10s, default_action=DUNNO }
.EE
.RE
"""

_TAIL = r"""
.SH SIGNALS
.TP
.B SIGHUP
Reads settings, ruleset and list files again and reopens the decision log.
If there is an error, nothing changes, and each error is in the
operational log.
Prefer
.BR "policyd reload" ,
which waits and prints the result.
.TP
.BR SIGTERM ", " SIGINT
Stops accepting, answers requests in flight for at most 5 s, and ends with
status 0.
.SH "EXIT STATUS"
.TP
.B 0
Success.
.TP
.B 1
A check found a problem, a reload or a new copy of a list was refused, or
nothing was found; from
.BR status ,
something needs attention.
.TP
.B 2
Wrong usage, a file that cannot be read, an address that cannot be
listened on, or a daemon that cannot be asked.
.SH ENVIRONMENT
.TP
.BR LISTEN_FDS ", " LISTEN_PID ", " LISTEN_FDNAMES
Sockets passed by systemd.
.TP
.BR NOTIFY_SOCKET ", " WATCHDOG_USEC ", " WATCHDOG_PID
See
.BR sd_notify (3).
.TP
.BR https_proxy ", " http_proxy ", " no_proxy
The proxy that
.B fetch
uses.
.TP
.B NO_COLOR
No colours in what the commands print.
.TP
.B TZ
The local time in the logs.
.SH FILES
.TP
.I /etc/policyd/policyd.yaml
Settings; see
.BR policyd.yaml (5).
.TP
.I /etc/policyd/rules.yaml
The ruleset; see
.BR policyd\-rules (5).
.TP
.I /run/policyd/control.sock
The control socket, over which
.BR status ,
.B reload
and
.B forget
ask the daemon.
.TP
.I /var/lib/policyd
Lists that
.BR fetch ,
.B block
and
.B allow
write, and the state file.
.TP
.I /var/log/policyd/decisions.log
The decision log, if the settings name it.
.SH "SEE ALSO"
.BR policyd.yaml (5),
.BR policyd\-rules (5),
.BR postconf (5),
.BR access (5),
.BR smtpd (8),
.BR postfix (1)
"""


def page(date: str) -> str:
    """The text of the page."""
    # These requests switch off hyphenation and wide blanks, as packaging/man/build explains.
    lines = [f'.TH POLICYD 8 {date} "policyd {__version__}" "System administration"', ".nr HY 0", ".nh"]
    lines += [".ds AD l", ".ad l", _HEAD.strip()]
    group = policyd.make_context("policyd", [], resilient_parsing=True)
    lines.append(".SH OPTIONS")
    lines += _options(policyd, group)
    lines.append(".SH COMMANDS")
    for name in policyd.list_commands(group):
        command = policyd.get_command(group, name)
        assert command is not None
        lines += _command(command, click.Context(command, info_name=name, parent=group))
    lines.append(_TAIL.strip())
    return "\n".join(lines) + "\n"


def _command(command: click.Command, context: click.Context) -> list[str]:
    usage = [_text(piece) for piece in command.collect_usage_pieces(context)]
    name = _text(context.info_name or "")
    lines = [f'.SS "policyd {name}"', rf"\fBpolicyd {name}\fR " + " ".join(usage)]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines += _paragraph(paragraph)
    return lines + _options(command, context)


def _paragraph(paragraph: str) -> list[str]:
    r"""The lines of a paragraph: filled text, or unfilled lines if the paragraph begins with click's mark `\b`."""
    mark, _, kept = paragraph.partition("\n")
    if mark.strip() == "\b":
        return [".PP", ".RS 4", ".EX", *(_not_a_request(_bold(line)) for line in kept.split("\n")), ".EE", ".RE"]
    return [".PP", *_filled(paragraph)]


def _options(command: click.Command, context: click.Context) -> list[str]:
    lines = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if not isinstance(parameter, click.Option) or record is None:
            continue
        names = ", ".join(rf"\fB{_text(name)}\fR" for name in (*parameter.opts, *parameter.secondary_opts))
        value = "" if parameter.is_flag else rf" \fI{_value(parameter.make_metavar(context))}\fR"
        lines += [".TP", names + value, *_filled(record[1])]
    return lines


def _value(metavar: str) -> str:
    """The metavariable of an option's value. Long choices may be broken between two words."""
    return _text(metavar).replace("|", r"|\:")


def _filled(text: str) -> list[str]:
    """Lines of filled text. Each sentence begins a line, as roff expects."""
    sentences = re.sub(r"(?<=[a-z0-9)`\]]\.) +(?=[A-Z])", "\n", " ".join(text.split())).split("\n")
    wrap = textwrap.TextWrapper(72, break_long_words=False, break_on_hyphens=False)
    return [_not_a_request(line) for sentence in sentences for line in wrap.wrap(_bold(sentence))]


def _bold(text: str) -> str:
    """Text for roff, with the text in backticks in bold."""
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _text(text, keep="`"))


def _not_a_request(line: str) -> str:
    """A line that roff does not take for a request, although it begins with a control character."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _text(text: str, keep: str = "") -> str:
    """Text for roff, with its special characters escaped, except those in `keep`."""
    escapes = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"}
    return "".join(letter if letter in keep else escapes.get(letter, letter) for letter in text)


if __name__ == "__main__":
    print(page(sys.argv[1]), end="")
