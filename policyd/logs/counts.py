"""Counts the lines of a log by use, and lines left out because of a limit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class LeftOut:
    """Counts of lines, sessions and mails left out because of a limit, for the report."""

    long_lines: int = 0  # lines
    hosts: int = 0  # lines of hosts beyond the maximum
    mails: int = 0  # mails dropped before their end
    sessions: int = 0  # sessions dropped before their end
    recipients: int = 0  # recipients beyond the maximum of a mail
    repeats: int = 0  # repetitions beyond those counted for one line
    returns: int = 0  # mails that a filter may have handed back, given up before the filter could answer

    @property
    def is_incomplete(self) -> bool:
        """Whether lines or mails were left out, so that a delivered mail may be missing from the figures."""
        return bool(self.long_lines or self.hosts or self.mails or self.repeats)

    def notes(self) -> list[str]:
        """One sentence for each limit that was reached."""
        notes = (
            (self.long_lines, "{:,} lines longer than any mail server writes were left out"),
            (self.hosts, "{:,} lines were left out: the log has more hosts than are read; give fewer hosts at a time"),
            (self.mails, "{:,} mails were given up before their end was found in the log: too many were open at once"),
            (self.sessions, "{:,} sessions were given up before their end: too many were open at once"),
            (self.recipients, "{:,} recipients were left out of mails with too many recipients"),
            (self.repeats, "{:,} repetitions of one line were left out"),
            (self.returns, "{:,} mails from this host itself may be counted twice: a filter took long to answer"),
        )
        return [text.format(count) for count, text in notes if count]


@dataclass(slots=True)
class LineCounts:
    """Counts lines by use. Each line is used, other or unknown."""

    lines: int = 0
    used: int = 0  # with facts about a mail
    other: int = 0  # of other programs, or not about mail from outside
    unknown: int = 0  # in an unknown form
    blank: int = 0  # empty lines, included in `other`
    repeated: int = 0  # repetitions of used lines, from lines such as `message repeated 3 times`
    hidden: int = 0  # journal entries whose text journalctl left out
    example: bytes = b""  # the first line in an unknown form or without a tag
    left_out: LeftOut = field(default_factory=LeftOut)
