"""Answers for the tests of imports and exports: those of a ruleset, from the engine, and those of Postfix itself."""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from policyd.config.load import load
from policyd.core.engine import decide
from policyd.core.facts import Facts, Needs
from policyd.core.identity import Identity, Status
from policyd.core.protocol import Request
from policyd.core.reply import reply_text
from policyd.exchange.importing import IMPORT_FORMATS, ImportForm, ImportOptions, import_files
from policyd.exchange.model import ConversionReport, Line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.config.load import Loaded
    from policyd.core.index import Ruleset
    from policyd.exchange.importing import ImportResult
    from policyd.exchange.model import Imported

TODAY = datetime.date(2026, 11, 21)

# Some right-hand sides of Postfix's tables (access(5)); an import supports all of them.
ACTIONS = [
    "OK",
    "DUNNO",
    "REJECT",
    "REJECT 5.7.1 no",
    "550 5.7.1 no",
    "450 4.7.1 later",
    "DEFER_IF_PERMIT 4.1.8 x",
    "HOLD",
]


class Mail(NamedTuple):
    """A mail that a client tries to deliver. `name` is the client's verified name; `unknown` if it has none."""

    address: str = "198.51.100.99"
    name: str = "unknown"
    helo: str = "helo.example"
    sender: str = "someone@elsewhere.example"
    recipient: str = "user@here.example"


def lines(text: str, path: str = "table") -> list[Line]:
    """The lines of a file with this text, as a reader receives them."""
    return [Line(path, number, line) for number, line in enumerate(text.split("\n"), 1)]


def read(format_name: str, text: str, **options: object) -> tuple[Imported, ConversionReport]:
    """The result of a format's reader for this text."""
    report = ConversionReport()
    return IMPORT_FORMATS[format_name].read(lines(text), report, **options), report


def import_text(format_name: str, text: str, options: ImportOptions | None = None) -> ImportResult:
    """The result of `policyd import` for a file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_text(text, encoding="utf-8", newline="")
        return import_files(format_name, [str(path)], options or ImportOptions())


def rules_of(format_name: str, text: str, **options: Any) -> Ruleset:
    """The loaded rules that `policyd import` makes from this text."""
    return ruleset(import_text(format_name, text, ImportOptions(shape=ImportForm.RULES, **options)).text)


def load_text(text: str) -> Loaded:
    """Loads a rules file with this text. Raises `ConfigErrors`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        return load(rules_path=path)


def ruleset(text: str) -> Ruleset:
    """The ruleset of a rules file with this text. Raises `ConfigErrors`."""
    return load_text(text).ruleset


def attributes_of(mail: Mail) -> dict[str, str]:
    """The attributes of the request that Postfix sends for a mail."""
    return {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "client_address": mail.address,
        "client_name": mail.name,
        "helo_name": mail.helo,
        "sender": "" if mail.sender == "<>" else mail.sender,
        "recipient": mail.recipient,
    }


def answer(rules: Ruleset, mail: Mail) -> str:
    """The verb and text of the answer, such as `REJECT 5.7.1 go away`."""
    request = Request.of({name: value.encode() for name, value in attributes_of(mail).items()})
    known = mail.name != "unknown"
    identity = Identity(Status.VERIFIED, (mail.name.lower().encode(),)) if known else Identity(Status.MISSING)
    decision = decide(rules, request, Facts(identity), TODAY)
    assert not isinstance(decision, Needs)
    return f"{decision.verb} {reply_text(decision, request, None, b'ID').decode()}".strip()


def postmap(table_type: str, text: str, keys: Iterable[str]) -> dict[str, str]:
    """The results of `postmap -q` for these keys in a table. Keys that are not in the table are left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_text(text, encoding="utf-8", newline="")
        os.utime(path, (0, 0))  # Postfix reads a texthash: table again if the file is less than a second old
        ran = subprocess.run(
            ["postmap", "-q", "-", f"{table_type}:{path}"],
            input="".join(f"{key}\n" for key in dict.fromkeys(keys)),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert "fatal" not in ran.stderr, ran.stderr
    return dict(line.split("\t", 1) for line in ran.stdout.splitlines())


def client_keys(mail: Mail) -> list[str]:
    """The keys that check_client_access looks up in an indexed table, in its order (access(5))."""
    return [*name_keys(mail.name), *address_keys(mail.address)]


def name_keys(name: str) -> list[str]:
    """A name and its parent domains: the keys with the default of parent_domain_matches_subdomains."""
    labels = name.lower().split(".")
    return [".".join(labels[place:]) for place in range(len(labels))]


def dotted_keys(name: str) -> list[str]:
    """The keys if parent_domain_matches_subdomains lacks smtpd_access_maps."""
    return [name, *(f".{parent}" for parent in name_keys(name)[1:])]


def address_keys(address: str) -> list[str]:
    """An address and its prefixes, cut at each `.` or `:` (`smtpd_check.c`, check_addr_access)."""
    separator = ":" if ":" in address else "."
    keys = [address]
    while separator in keys[-1]:
        keys.append(keys[-1].rpartition(separator)[0])
    return keys


def mail_keys(address: str) -> list[str]:
    """The keys of check_sender_access and check_recipient_access (access(5), "EMAIL ADDRESS PATTERNS")."""
    if address == "<>":
        return [address]
    local, _, domain = address.lower().rpartition("@")
    return [address.lower(), *name_keys(domain), f"{local}@"]


def first_value(found: dict[str, str], keys: Iterable[str]) -> str:
    """The value of the first existing key; empty if there is none."""
    return next((found[key] for key in keys if key in found), "")


def as_answer(result: str) -> str:
    """The expected answer for a right-hand side of a test's table; DUNNO if it is empty."""
    verb, _, text = result.partition(" ")
    if verb.upper() in {"", "OK", "DUNNO", "HOLD", "RELAY", "PERMIT"}:
        return "DUNNO"
    return f"{ {'5': 'REJECT', '4': 'DEFER'}.get(verb[0], verb.upper()) } {text}".strip()
