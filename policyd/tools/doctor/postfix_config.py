"""Postfix's configuration as postconf(1) prints it: main.cf, master.cf with its `-o` overrides, and what a service
sees of both.

Says nothing of what is right or wrong in it. Only as much of the syntax is known as restrictions need.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# postconf reads two files; where it takes longer, a table in one of them waits for a network.
_POSTCONF_SECONDS = 30

# A value may name other parameters, and those others; Postfix itself knows no deeper nesting in practice.
_EXPANSIONS = 16

# Parameters that name themselves grow with each expansion; a restriction list is a few hundred characters.
_MAX_VALUE = 64 * 1024

_SETTING = re.compile(r"([\w-]+) =(?: (.*))?", re.DOTALL)
_REFERENCE = re.compile(r"\$(?:\$|(?P<bare>\w+)|\{(?P<braced>\w+)\}|\((?P<bracketed>\w+)\))")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class PostconfError(Exception):
    """postconf could not be run, or it refused the configuration. The message is one line."""


@dataclass(frozen=True, slots=True)
class Service:
    """A line of master.cf: `overrides` are its `-o` options."""

    name: str
    kind: str
    chroot: bool
    command: str
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} {self.kind}"


@dataclass(frozen=True, slots=True)
class PostfixConfig:
    """All parameters with their values or defaults, the names of those that main.cf sets, and the services."""

    parameters: Mapping[str, str]
    explicit: frozenset[str]
    services: tuple[Service, ...]

    def value(self, name: str, service: Service | None = None) -> str:
        """A parameter as a service sees it, with `$name` filled in; empty where there is no such parameter."""
        text = self._raw(name, service)
        for _ in range(_EXPANSIONS):
            expanded = _REFERENCE.sub(lambda match: self._referred(match, service), text)
            if expanded == text or len(expanded) > _MAX_VALUE:
                break
            text = expanded
        return text

    def _raw(self, name: str, service: Service | None) -> str:
        if service is not None and name in service.overrides:
            return service.overrides[name]
        return self.parameters.get(name, "")

    def _referred(self, match: re.Match[str], service: Service | None) -> str:
        name = match["bare"] or match["braced"] or match["bracketed"]
        return match[0] if name is None else self._raw(name, service)


def read_postfix(folder: str | None = None, postconf: str = "postconf") -> PostfixConfig:
    """What postconf says of the configuration in `folder`, or of the machine's own. Raises PostconfError."""
    command = [postconf, *(["-c", folder] if folder is not None else [])]
    everything = _run(command)
    return parse_postfix(everything, _run([*command, "-n"]), _run([*command, "-M"]))


def parse_postfix(everything: str, explicit: str, services: str) -> PostfixConfig:
    """The same from the output of `postconf`, `postconf -n` and `postconf -M`."""
    parameters = dict(_settings(everything)) | dict(_settings(explicit))
    level = parameters.get("compatibility_level", "0").split(".")[0]
    chroot = "y" if level == "0" else "n"  # what `-` stands for in master.cf (master(5))
    found = tuple(_service(line, chroot) for line in services.splitlines() if len(line.split()) >= 8)
    return PostfixConfig(parameters, frozenset(name for name, _ in _settings(explicit)), found)


def _run(command: list[str]) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, timeout=_POSTCONF_SECONDS, check=False)
    except FileNotFoundError:
        raise PostconfError(f"{command[0]}: no such program; doctor runs where Postfix is installed") from None
    except subprocess.TimeoutExpired:
        raise PostconfError(f"{' '.join(command)}: no answer within {_POSTCONF_SECONDS} s") from None
    except OSError as error:
        raise PostconfError(f"{command[0]}: {(error.strerror or str(error)).lower()}") from None
    if ran.returncode:
        said = ran.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise PostconfError(f"{' '.join(command)}: {said[-1]}")
    return ran.stdout.decode("utf-8", "replace")


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        match = _SETTING.fullmatch(line)
        if match is not None:
            yield match[1], match[2] or ""


def _service(line: str, default_chroot: str) -> Service:
    name, kind, _private, _unprivileged, chroot, _wakeup, _limit, command, *rest = line.split(None, 8)
    words = words_of(rest[0]) if rest else []
    overrides = {}
    for place, word in enumerate(words):
        if word == "-o" and place + 1 < len(words):
            setting, equals, value = unbraced(words[place + 1]).partition("=")
            if equals:
                overrides[setting.strip()] = value.strip()
    return Service(name, kind, (default_chroot if chroot == "-" else chroot) == "y", command, overrides)


def words_of(text: str, separators: str = " \t\n\r") -> list[str]:
    """The words of a value; what stands between braces is one word, the braces included (postconf(5))."""
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
    """A word without the braces around it, if there are any."""
    return word[1:-1].strip() if word.startswith("{") and word.endswith("}") else word


def list_of(value: str) -> list[str]:
    """A list's words, between which commas or blanks stand."""
    return words_of(value, separators=" \t\n\r,")


def seconds_of(text: str) -> float | None:
    """A time with its unit (seconds where there is none); None for what is no time."""
    match = re.fullmatch(r"(\d+)([smhdw]?)", text.strip())
    return int(match[1]) * _UNITS[match[2]] if match else None
