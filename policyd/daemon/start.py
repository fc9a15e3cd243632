"""Starts the daemon.

The loader is forked first, before there is a thread or an event loop. It loads the first ruleset while the other
modules of the daemon are imported.
"""

from __future__ import annotations

import codecs
import logging
import os
import signal
from typing import TYPE_CHECKING

from policyd.core.normalize import fold_name
from policyd.daemon.operational_log import OperationalLog
from policyd.daemon.reload import SIGNALS, Loader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policyd.config.settings import InetAddress, UnixAddress


def serve(
    config_path: str | None,
    rules_path: str | None,
    listen: Sequence[InetAddress | UnixAddress],
    environment: Mapping[str, str],
) -> None:
    """Runs the daemon until SIGTERM or SIGINT.

    Raises ConfigErrors, LoadError or ListenError if it cannot start.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # signals wait until the event loop handles them
    _occupy_standard_descriptors()
    operational_log = OperationalLog(environment)
    logging.basicConfig(handlers=[operational_log], level=logging.INFO)
    # idna imports its tables at the first name that is not ASCII, and publicsuffixlist uses Python's codec "idna". Both
    # are imported now, because an upgrade may replace the files on disk while the daemon runs.
    fold_name("b\u00fccher.example".encode())
    codecs.lookup("idna")
    loader = Loader(config_path, rules_path, listen)
    try:
        loader.begin()
        from policyd.daemon.main import run  # noqa: PLC0415 - imported while the loader loads

        run(loader, operational_log, environment)
    finally:
        loader.close()


def _occupy_standard_descriptors() -> None:
    """Opens closed standard descriptors; otherwise a socket would get their number, and logs would be written to it.

    A pipe without a reader takes their place: every write to it fails, and is counted as lost.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            reader, writer = os.pipe()
            os.dup2(writer, descriptor)
            for end in {reader, writer} - {descriptor}:
                os.close(end)
