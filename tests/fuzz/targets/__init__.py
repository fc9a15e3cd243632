"""Each reader of untrusted bytes, with its promise.

A target is a function of the bytes and of a folder that it may use; its docstring is its invariant in one
sentence. It raises for a finding, and no call depends on an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.exchange.importing import IMPORT_FORMATS
from tests.fuzz.targets import config, dns, exchange, logs, protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Target:
    """`seeds` are patterns for files of the project to begin with, besides the corpus. `longest` is the maximum bytes
    of atheris's inputs: short inputs allow more executions a second, and pytest tries long ones. `share` is the
    target's share of the time of a long run: readers that any client can reach, and fast ones, get more.
    """

    check: Callable[[bytes, Path], None]
    seeds: tuple[str, ...] = ()
    longest: int = 4096
    share: int = 1

    @property
    def invariant(self) -> str:
        """The target's promise."""
        return " ".join((self.check.__doc__ or "").split())


TARGETS = {
    "protocol": Target(protocol.parser, longest=400, share=20),
    "decision": Target(protocol.decision, longest=800, share=5),
    "dns": Target(dns.answers, longest=800, share=15),
    "rules": Target(config.rules, ("config/rules.yaml", "tests/bad/*.yaml"), share=5),
    "settings": Target(config.settings, ("config/policyd.yaml", "tests/bad/settings-*.yaml"), share=2),
    "list-file": Target(config.list_file, share=3),
    "log-file": Target(logs.log_file, share=4),
    "mail-log": Target(logs.mail_log, ("tests/data/maillog.*",), share=5),
    "decision-log": Target(logs.decision_log, share=5),
    **{f"import-{name}": Target(exchange.importer(name), longest=1000) for name in IMPORT_FORMATS},
}
