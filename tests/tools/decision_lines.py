"""Lines of a decision log, for tests."""

from __future__ import annotations


def line(
    action: str = "REJECT",
    *,
    time: str = "2026-11-21T17:16:00.123Z",
    id: str = "7Q4K2M9X",  # noqa: A002 - the log's own word
    rule: str = "sakura-vps",
    client: str = "os3-1-2.vs.sakura.ne.jp[49.212.201.177]",
    sender: str = "a@b.example",
    recipient: str = "c@d.example",
    more: str = "",
) -> str:
    """Returns a line in the text format, with its line end. `more` are further fields, before `ruleset=`."""
    named = f"rule={rule} " if rule else ""
    return (
        f"{time} {action} id={id} {named}client={client} rdns=verified state=RCPT from=<{sender}> to=<{recipient}>"
        f" helo=<x.example> {more}{' ' if more else ''}ruleset=3f9c2a1b ms=0.2\n"
    )
