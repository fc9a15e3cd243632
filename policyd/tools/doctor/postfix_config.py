"""Reads Postfix's configuration as printed by postconf(1): main.cf, master.cf with its `-o` overrides, and the
effective value of a parameter for each service.

Runs postconf, or reads its saved output for a Postfix on another system. Checks nothing.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.tools.doctor.expansion import expand

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Timeout in seconds for postconf, which reads two files; a table in one of them may wait for a network.
_POSTCONF_SECONDS = 30

# Maximum bytes of a saved file. `postconf` prints 50 KB for all parameters.
_MAX_SAVED = 4 << 20

# A saved file with more parameters than this has all of them, not only those that are set. Postfix has some 900, and a
# main.cf sets a tenth of them.
_ALL_PARAMETERS = 400

_SETTING = re.compile(r"([\w.-]+)\s*=\s*(.*)", re.DOTALL)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

# Defaults of the parameters that doctor needs, for saved output of `postconf -n` (postconf(5)).
_DEFAULTS = {
    "access_map_reject_code": "554",
    "compatibility_level": "0",
    "mail_owner": "postfix",
    "queue_directory": "/var/spool/postfix",
    "smtpd_delay_reject": "yes",
    "smtpd_peername_lookup": "yes",
    "smtpd_policy_service_default_action": "451 4.3.5 Server configuration problem",
    "smtpd_policy_service_timeout": "100s",
    "smtpd_relay_restrictions": (
        "${{$compatibility_level} <level {1} ? {} : "
        "{permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination}}"
    ),
    "smtpd_sasl_auth_enable": "no",
    "soft_bounce": "no",
}


class PostconfError(Exception):
    """postconf did not give the configuration, or the saved output cannot be read. The message is one line."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service of master.cf; `kind` is its type, such as `inet`, and `overrides` are its `-o` options."""

    name: str
    kind: str
    chroot: bool
    command: str
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} {self.kind}"

    @property
    def port(self) -> str:
        """The port of an inet service, by number or name."""
        return self.name.rpartition(":")[2]

    @property
    def host(self) -> str:
        """The address of an inet service, without brackets; empty if it listens on all addresses."""
        return self.name.rpartition(":")[0].strip("[]")


@dataclass(frozen=True, slots=True)
class PostfixConfig:
    """The parameters with their values, the names of the parameters that main.cf sets (`explicit`), and the services.

    `parameters` also has defaults: those of all parameters or, in a saved configuration, at least those that doctor
    needs. `is_saved` means that the configuration is from files, so Postfix may be in a container or on another host.
    """

    parameters: Mapping[str, str]
    explicit: frozenset[str]
    services: tuple[Service, ...]
    is_saved: bool = False

    def value(self, name: str, service: Service | None = None) -> str:
        """The value of a parameter for a service, with `$name` expanded; empty if there is no such parameter."""
        return expand(self._raw(name, service), lambda referred: self._raw(referred, service))

    def is_set(self, name: str, service: Service) -> bool:
        """Whether main.cf, or master.cf for this service, sets a parameter."""
        return name in self.explicit or name in service.overrides

    def where(self, name: str, service: Service) -> str:
        """The place of a parameter: `master.cf: SERVICE: -o NAME` if the service overrides it, else `main.cf: NAME`."""
        return f"master.cf: {service}: -o {name}" if name in service.overrides else f"main.cf: {name}"

    def _raw(self, name: str, service: Service | None) -> str:
        if service is not None and name in service.overrides:
            return service.overrides[name]
        return self.parameters.get(name, "")


def read_postfix(folder: str | None = None, postconf: str = "postconf") -> PostfixConfig:
    """Reads the configuration in `folder`, or the machine's own, with postconf. Raises PostconfError."""
    command = [postconf, *(["-c", folder] if folder is not None else [])]
    everything = _run(command)
    return parse_postfix(everything, _run([*command, "-n"]), _run([*command, "-M"]))


def read_saved(postconf: str, master: str) -> PostfixConfig:
    """Reads a configuration from files: saved output of `postconf -n` (or `postconf`, or a main.cf) and of `postconf
    -M` (or a master.cf). Raises PostconfError.
    """
    settings, services = _read(postconf), _read(master)
    saved = dict(_settings(settings))
    if not saved:
        raise PostconfError(f"{postconf}: has no line NAME = VALUE; save it with: postconf -n > {postconf}")
    explicit = saved
    if len(saved) > _ALL_PARAMETERS:
        explicit = {name: value for name, value in saved.items() if value != _DEFAULTS.get(name)}
    postfix = _postfix(_DEFAULTS | saved, frozenset(explicit), services, is_saved=True)
    if not postfix.services:
        raise PostconfError(f"{master}: has no service; save it with: postconf -M > {master}")
    return postfix


def parse_postfix(everything: str, explicit: str, services: str) -> PostfixConfig:
    """Parses the output of `postconf`, `postconf -n` and `postconf -M`."""
    parameters = dict(_settings(everything)) | dict(_settings(explicit))
    return _postfix(parameters, frozenset(name for name, _ in _settings(explicit)), services, is_saved=False)


def _postfix(
    parameters: Mapping[str, str], explicit: frozenset[str], services: str, *, is_saved: bool
) -> PostfixConfig:
    level = parameters.get("compatibility_level", "0").split(".")[0]
    chroot = "y" if level == "0" else "n"  # defaults for `-` in master.cf (master(5))
    found = tuple(_service(line, chroot) for line in _logical_lines(services) if len(line.split()) >= 8)
    return PostfixConfig(parameters, explicit, found, is_saved)


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_SAVED).decode("utf-8", "replace")
    except OSError as error:
        raise PostconfError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _run(command: list[str]) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, timeout=_POSTCONF_SECONDS, check=False)
    except FileNotFoundError:
        raise PostconfError(
            f"{command[0]}: no such program; run doctor where Postfix is, or save the output of postconf -n and "
            "postconf -M there and use --postconf FILE --master FILE"
        ) from None
    except subprocess.TimeoutExpired:
        raise PostconfError(f"{' '.join(command)}: no answer within {_POSTCONF_SECONDS} s") from None
    except OSError as error:
        raise PostconfError(f"{command[0]}: {(error.strerror or str(error)).lower()}") from None
    if ran.returncode:
        errors = ran.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise PostconfError(f"{' '.join(command)}: {errors[-1]}")
    return ran.stdout.decode("utf-8", "replace")


def _logical_lines(text: str) -> Iterator[str]:
    """Yields lines with their continuations (lines that begin with a blank), without comments (postconf(5))."""
    collected = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace() and collected:
            collected += line
            continue
        if collected:
            yield collected
        collected = line
    if collected:
        yield collected


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in _logical_lines(text):
        match = _SETTING.fullmatch(line.strip())
        if match is not None:
            yield match[1], match[2]


def _service(line: str, default_chroot: str) -> Service:
    name, kind, _private, _unprivileged, chroot, _wakeup, _limit, command, *rest = line.split(None, 8)
    words = words_of(rest[0]) if rest else []
    overrides = {}
    for place, word in enumerate(words):
        if word.startswith("-o"):
            setting, equals, value = unbraced(word[2:] or "".join(words[place + 1 : place + 2])).partition("=")
            if equals:
                overrides[setting.strip()] = value.strip()
    return Service(name, kind, (default_chroot if chroot == "-" else chroot) == "y", command, overrides)


def words_of(text: str, separators: str = " \t\n\r") -> list[str]:
    """Splits a value into words; text in braces is one word, with its braces (postconf(5))."""
    words = []
    word = ""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}" and depth > 0)
        if character in separators and not depth:
            if word:
                words.append(word)
            word = ""
        else:
            word += character
    return [*words, word] if word else words


def unbraced(word: str) -> str:
    """Returns a word without the braces around it, if there are any."""
    return word[1:-1].strip() if word.startswith("{") and word.endswith("}") else word


def list_of(value: str) -> list[str]:
    """Splits a list at commas and blanks."""
    return words_of(value, separators=" \t\n\r,")


def seconds_of(text: str) -> float | None:
    """Converts a time such as `2m` to seconds; without a unit it is in seconds. Returns None if it is not a time."""
    match = re.fullmatch(r"(\d+)([smhdw]?)", text.strip())
    return int(match[1]) * _UNITS[match[2]] if match else None
