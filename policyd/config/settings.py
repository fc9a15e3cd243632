"""Reads policyd.yaml into `Settings`; has every setting, its default and its valid values in one place.

The result is plain frozen dataclasses, which are used and pickled without pydantic; pydantic reads their annotations
for the checks and the JSON Schema. The daemon finds out whether an address can be bound and whether a user exists.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from policyd.config.durations import SECONDS
from policyd.config.problems import Problem, quoted, unknown_key
from policyd.config.yaml_tree import Item, Mapping, Scalar, Sequence, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.config.problems import Report
    from policyd.config.yaml_tree import Node

# Default ports of a resolver and of a Valkey server, and the highest port.
DNS_PORT = 53
VALKEY_PORT = 6379
MAX_PORT = 65535

# Maximum bytes of the path of a unix socket: sun_path has 108, and the last is NUL (unix(7)).
MAX_UNIX_PATH = 107


@dataclass(frozen=True, slots=True)
class InetAddress:
    """A TCP address: a host (an IP address without brackets, or a name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"inet:{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix-domain stream socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class StateServer:
    """A Valkey or Redis server: a host and a port, or the path of a unix socket; a database, and whether to use TLS."""

    host: str = ""
    port: int = VALKEY_PORT
    path: str = ""
    database: int = 0
    tls: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"{'valkeys' if self.tls else 'valkey'}://{_bracketed(self.host)}:{self.port}/{self.database}"


@dataclass(frozen=True, slots=True)
class DnsServer:
    """A resolver: an IP address without brackets, and a port."""

    address: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        return f"{_bracketed(self.address)}:{self.port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# --- From text to values ----------------------------------------------------------------------------------------------

_DURATION_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)")
_DNS_SERVER = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<ipv4>[^:\[\]]*))(?::(?P<port>[^:]+))?")
_STATE = re.compile(
    r"valkeys?://(?P<host>\[[^\]@/]*\]|[^:\[\]@/]+)(?::(?P<port>[0-9]{1,5}))?(?:/(?P<database>[0-9]{0,4}))?"
)
_INET = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]+)")


def parse_duration(text: str) -> float:
    """Parses `5s`, `500ms`, `1.5m`, `1h`, `2d` into seconds. Raises ValueError."""
    match = _DURATION_PATTERN.fullmatch(text)
    if not match:
        raise ValueError(f"{quoted(text)} is not a duration; write a number with its unit, as 500ms, 5s, 10m or 1h")
    return float(match[1]) * SECONDS[match[2]]


def parse_listen(text: str) -> InetAddress | UnixAddress:
    """Parses `inet:HOST:PORT`, `inet:[::1]:PORT` or `unix:/path`, as in main.cf. Raises ValueError."""
    kind, _, address = text.partition(":")
    if kind == "unix":
        if not address:
            raise ValueError("'unix:' lacks a path, as in unix:/run/policyd/policyd.sock")
        if len(os.fsencode(address)) > MAX_UNIX_PATH:
            raise ValueError(f"{quoted(address)} is longer than a socket's path can be ({MAX_UNIX_PATH} bytes)")
        return UnixAddress(address)
    if kind == "inet":
        return InetAddress(*parse_host_port(address))
    raise ValueError(
        f"{quoted(text)} is not an address to listen on; write inet:127.0.0.1:10040, inet:[::1]:10040 or unix:/path"
    )


def parse_host_port(text: str) -> tuple[str, int]:
    """Parses `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    match = _INET.fullmatch(text)
    if not match:
        if text.count(":") > 1 and not text.startswith("["):
            raise ValueError(f"{quoted(text)}: an IPv6 address needs brackets, as in [::1]:PORT")
        raise ValueError(f"{quoted(text)} is neither HOST:PORT nor [IPV6]:PORT")
    if match["ipv6"] is not None:
        try:
            host = str(ipaddress.IPv6Address(match["ipv6"]))
        except ValueError as error:
            raise ValueError(f"'[{match['ipv6']}]' is not an IPv6 address") from error
    else:
        host = match["host"]
        if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", host):
            raise ValueError(
                f"{quoted(host)} is not a host" + ("; to listen everywhere write 0.0.0.0" if not host else "")
            )
        if host.rpartition(".")[2].isdigit():
            try:
                ipaddress.IPv4Address(host)
            except ValueError as error:
                raise ValueError(f"{quoted(host)} is not an IPv4 address") from error
    return host, _parse_port(match["port"])


def parse_dns_server(text: str) -> DnsServer:
    """Parses `ADDRESS`, `ADDRESS:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    match = _DNS_SERVER.fullmatch(text)
    address = (match["ipv6"] or match["ipv4"]) if match else text
    try:
        server = str(ipaddress.ip_address(address))
    except ValueError as error:
        raise ValueError(
            f"{quoted(text)} is not a resolver's address; write 192.0.2.53, 127.0.0.1:10053 or [::1]:53"
        ) from error
    return DnsServer(server, _parse_port(match["port"])) if match and match["port"] else DnsServer(server)


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= MAX_PORT:
        raise ValueError(f"{quoted(text)} is not a port (1 to {MAX_PORT})")
    return int(text)


def _parse_mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f'{quoted(text)} is not a file mode; write it in octal, as "0660"')
    return int(text, 8)


def _parse_socket_path(text: str) -> str:
    if not text:
        raise ValueError("is empty; write a path, as in /run/policyd/control.sock")
    if len(os.fsencode(text)) > MAX_UNIX_PATH:
        raise ValueError(f"{quoted(text)} is longer than the path of a socket can be ({MAX_UNIX_PATH} bytes)")
    return text


def _parse_metrics(text: str) -> InetAddress:
    return InetAddress(*parse_host_port(text))


def _parse_whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{quoted(text)} is not a whole number")
    return int(text)


def parse_state(text: str) -> StateServer:
    """Parses `valkey://HOST:PORT/DB`, `valkeys://HOST:PORT/DB` (TLS) or `unix:/path`. Raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError("'unix:' lacks a path that begins with /, as in unix:/run/valkey/valkey.sock")
        return StateServer(path=path)
    match = _STATE.fullmatch(text)
    if match is None:
        if text.startswith(("redis:", "rediss:")):
            raise ValueError(f"{quoted(text)}: write {text.replace('redis', 'valkey', 1)}; Redis understands it, too")
        if "@" in text:
            raise ValueError("a user or password has no place here; give them in state_credentials")
        raise ValueError(f"{quoted(text)} is not a server; write valkey://HOST:PORT/DB, valkeys://... or unix:/path")
    host, port = match["host"], match["port"]
    if port is None:
        parse_host_port(f"{host}:{VALKEY_PORT}")
    else:
        parse_host_port(f"{host}:{port}")
    return StateServer(
        host.strip("[]"), int(port or VALKEY_PORT), "", int(match["database"] or 0), tls=text.startswith("valkeys")
    )


def _parse_truth(text: str) -> bool:
    if text.lower() in {"true", "yes", "on"}:
        return True
    if text.lower() in {"false", "no", "off"}:
        return False
    raise ValueError(f"{quoted(text)} is neither true nor false")


T = TypeVar("T")


def _from_text(parse: Callable[[str], T]) -> BeforeValidator:
    """Makes a validator from a function that takes text. None passes, for settings that may be null."""

    def validate(value: object) -> T | None:
        if value is not None and not isinstance(value, str):
            raise ValueError("expected one value")
        return None if value is None else parse(value)

    return BeforeValidator(validate)


def _format_duration(seconds: float) -> str:
    for unit in ("d", "h", "m", "s"):
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:g}{unit}"
    return f"{seconds * 1000:g}ms"


def _format_state(state: StateServer | None) -> str | None:
    return None if state is None else str(state)


def _format_mode(mode: int) -> str:
    return f"{mode:04o}"


def _text(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


# For each type: the validator, the schema for an editor, and the form in which the schema shows a default.
_WHOLE = _from_text(_parse_whole)
_TRUTH = _from_text(_parse_truth)
_DURATION = _from_text(parse_duration)
_DURATION_TEXT = PlainSerializer(_format_duration)
_DURATION_SCHEMA = _text(r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$", "5s", "500ms", "1h")
Listen = Annotated[
    InetAddress | UnixAddress,
    _from_text(parse_listen),
    PlainSerializer(str),
    _text("^(inet:.+:[0-9]+|unix:.+)$", "inet:127.0.0.1:10040", "unix:/run/policyd/policyd.sock"),
]
Server = Annotated[
    DnsServer,
    _from_text(parse_dns_server),
    PlainSerializer(str),
    _text(".", "192.0.2.53", "127.0.0.1:10053", "[::1]:53"),
]
Mode = Annotated[int, _from_text(_parse_mode), PlainSerializer(_format_mode), _text("^0?[0-7]{3}$", "0660")]
Metrics = Annotated[
    InetAddress | None,
    _from_text(_parse_metrics),
    WithJsonSchema({"type": ["string", "null"], "pattern": "^.+:[0-9]+$", "examples": ["127.0.0.1:9440"]}),
]
State = Annotated[
    StateServer | None,
    _from_text(parse_state),
    PlainSerializer(_format_state),
    WithJsonSchema(
        {
            "type": ["string", "null"],
            "pattern": "^(valkeys?://.+|unix:.+)$",
            "examples": ["valkey://192.0.2.1:6379/0", "unix:/run/valkey/valkey.sock"],
        }
    ),
]
OptionalText = Annotated[str | None, WithJsonSchema({"type": ["string", "null"]})]
Control = Annotated[
    str | None,
    _from_text(_parse_socket_path),
    WithJsonSchema({"type": ["string", "null"], "examples": ["/run/policyd/control.sock"]}),
]

# --- The settings -----------------------------------------------------------------------------------------------------

# An unknown key is an error. pydantic reads this from the attribute `__pydantic_config__` of a dataclass.
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class DecisionLog:
    """File and format of the decision log."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: Annotated[str, Field(min_length=1, description="A path relative to this file; '-': standard output.")] = "-"
    format: Annotated[
        Literal["text", "json"], Field(description="One line in the style of Postfix's log, or one JSON object a line.")
    ] = "text"


@dataclass(frozen=True, slots=True)
class Dns:
    """Settings of DNS lookups. `timeout` in seconds."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    servers: Annotated[
        tuple[Server, ...], Field(description="Resolvers, as address or address:port; empty: the system's.")
    ] = ()
    lookups: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="Maximum number of clients looked up at once; further clients get `error`, reason timeout.",
        ),
        _WHOLE,
    ] = 2000
    timeout: Annotated[
        float,
        Field(gt=0, le=300, description="Deadline for all lookups of one client, not for one query."),
        _DURATION,
        _DURATION_TEXT,
        _DURATION_SCHEMA,
    ] = 5.0
    trust_postfix: Annotated[
        bool,
        Field(description="Trust a client_name other than `unknown`, because Postfix has checked it both ways."),
        _TRUTH,
    ] = True
    cache_size: Annotated[
        int, Field(ge=0, le=10_000_000, description="Maximum number of clients whose answers are kept."), _WHOLE
    ] = 100_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what clients use. Times in seconds."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    connections: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Maximum number of open connections; more are refused and logged."),
        _WHOLE,
    ] = 4096
    request_bytes: Annotated[
        int,
        Field(
            ge=1024, le=1 << 24, description="Maximum length of a request, and of the bytes that wait during a lookup."
        ),
        _WHOLE,
    ] = 65536
    idle_timeout: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum time between requests. Postfix keeps a connection for 300 s if idle, 1000 s in all.",
        ),
        _DURATION,
        _DURATION_TEXT,
        _DURATION_SCHEMA,
    ] = 3600.0
    request_timeout: Annotated[
        float,
        Field(gt=0, description="Maximum time from a request's first byte to its last."),
        _DURATION,
        _DURATION_TEXT,
        _DURATION_SCHEMA,
    ] = 30.0
    state_keys: Annotated[
        int,
        Field(
            ge=100,
            le=10_000_000,
            description="Maximum number of keys of counters and greylisting in memory; beyond it, the least recently "
            "used are dropped.",
        ),
        _WHOLE,
    ] = 200_000


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of policyd.yaml. Relative paths are joined to the file's folder."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    listen: Annotated[
        tuple[Listen, ...],
        Field(min_length=1, description="Addresses to which Postfix connects; sockets passed by systemd replace them."),
    ] = (InetAddress("127.0.0.1", 10040),)
    socket_mode: Annotated[
        Mode, Field(description="Mode of a unix socket, in octal; set before the first connection.")
    ] = 0o660
    socket_owner: Annotated[OptionalText, Field(description="Owner of a unix socket; null: the process's user.")] = None
    socket_group: Annotated[OptionalText, Field(description="Group of a unix socket, for instance postfix.")] = None
    rules: Annotated[str, Field(min_length=1, description="The ruleset, relative to this file.")] = "rules.yaml"
    decision_log: Annotated[DecisionLog, Field(description="Where decisions are written, and how.")] = field(
        default_factory=DecisionLog
    )
    dns: Annotated[Dns, Field(description="How clients are looked up.")] = field(default_factory=Dns)
    limits: Annotated[Limits, Field(description="Limits on what clients use.")] = field(default_factory=Limits)
    metrics: Annotated[
        Metrics, Field(description="HOST:PORT to serve Prometheus metrics at /metrics; null: nowhere.")
    ] = None
    control: Annotated[
        Control,
        Field(description="The unix socket for policyd status, reload and others; null: none. Relative to this file."),
    ] = None
    control_group: Annotated[
        OptionalText,
        Field(description="Group that may use the control socket, which then has the mode 0660; null: 0600."),
    ] = None
    state_file: Annotated[
        OptionalText,
        Field(description="A file (SQLite) that keeps counters and greylisting over a restart; null: only in memory."),
    ] = None
    state: Annotated[
        State, Field(description="A Valkey or Redis server in which several hosts share counters and greylisting.")
    ] = None
    state_timeout: Annotated[
        float,
        Field(
            ge=0.001,
            le=0.1,
            description="Timeout of one call to the server of `state`; after it, the process's own memory answers.",
        ),
        _DURATION,
        _DURATION_TEXT,
        _DURATION_SCHEMA,
    ] = 0.05
    state_credentials: Annotated[
        OptionalText,
        Field(description="A file that others cannot read: the user in its first line, the password in the second."),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Level of the operational log on standard error."),
    ] = "info"


ADAPTER: pydantic.TypeAdapter[Settings] = pydantic.TypeAdapter(Settings)

# The null values of YAML.
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_NULLABLE = frozenset(
    {
        ("socket_owner",),
        ("socket_group",),
        ("metrics",),
        ("control",),
        ("control_group",),
        ("state_file",),
        ("state",),
        ("state_credentials",),
    }
)


def read_settings(root: Node, path: str, report: Report) -> Settings | None:
    """Reads settings from a parsed file. Reports problems, and returns None if there are any."""
    if not isinstance(root, Mapping):
        report.add(Problem(path, root.line, root.column, f"expected settings (key: value), not {describe(root)}"))
        return None
    try:
        settings = ADAPTER.validate_python(_plain(root, ()))
    except pydantic.ValidationError as errors:
        for error in errors.errors(include_url=False):
            item = _find(root, error["loc"])
            if error["type"] == "too_short" and isinstance(item.value, Sequence) and item.value.items:
                continue  # its items are wrong, and each has its own message
            at = item.key if error["type"] == _UNKNOWN_KEY else item.value
            report.add(Problem(path, at.line, at.column, _message(error, item.value)))
        return None
    return _joined(settings, Path(path).parent)


def rules_path_of(root: Node, path: str) -> str | None:
    """Returns the rules file that settings name, even if they have errors, so that one run checks both.

    None if they name no file.
    """
    if not isinstance(root, Mapping):
        return None
    rules = root.get("rules")
    named = Settings().rules if rules is None else rules.text if isinstance(rules, Scalar) else ""
    return str(Path(path).parent / named) if named else None


def _joined(settings: Settings, folder: Path) -> Settings:
    """Joins relative paths to the folder of the settings file."""
    log = settings.decision_log
    return dataclasses.replace(
        settings,
        listen=tuple(
            UnixAddress(str(folder / address.path)) if isinstance(address, UnixAddress) else address
            for address in settings.listen
        ),
        rules=str(folder / settings.rules),
        control=None if settings.control is None else str(folder / settings.control),
        state_file=None if settings.state_file is None else str(folder / settings.state_file),
        state_credentials=None if settings.state_credentials is None else str(folder / settings.state_credentials),
        decision_log=log if log.path == "-" else dataclasses.replace(log, path=str(folder / log.path)),
    )


def _plain(node: Node, loc: tuple[str, ...]) -> Any:
    """Converts a tree for pydantic: dicts, lists, text; None for null, if the setting may be null."""
    match node:
        case Mapping():
            return {item.key.text: _plain(item.value, (*loc, item.key.text)) for item in node}
        case Sequence():
            return [_plain(item, loc) for item in node.items]
        case Scalar():
            return None if node.plain and node.text in _NULLS and loc in _NULLABLE else node.text


# pydantic's names of errors: https://docs.pydantic.dev/latest/errors/validation_errors/
_UNKNOWN_KEY = "unexpected_keyword_argument"


def _find(root: Mapping, loc: tuple[str | int, ...]) -> Item:
    """Finds the item at a location from pydantic; an element of a list has the list's key."""
    item = Item(Scalar("", root.line, root.column), root)
    for step in loc:
        node = item.value
        if isinstance(node, Mapping) and step in node.items:
            item = node.items[str(step)]
        elif isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
            item = Item(item.key, node.items[step])
    return item


def _message(error: Any, node: Node) -> str:  # noqa: PLR0911 - a return for each kind of error
    loc = [step for step in error["loc"] if isinstance(step, str)]
    name = ".".join(loc)
    context = error.get("ctx", {})
    match error["type"]:
        case "unexpected_keyword_argument":
            return unknown_key(loc[-1], _known_keys(loc[:-1]))
        case "value_error":
            return f"{name}: {context['error']}{'' if isinstance(node, Scalar) else f', not {describe(node)}'}"
        case "literal_error" if isinstance(node, Scalar):
            return f"{name}: {quoted(node.text)} is not one of {context['expected'].replace(chr(39), '')}"
        case "tuple_type":
            return f"{name}: expected a list, as in [a, b], not {describe(node)}"
        case "string_type" | "literal_error":
            return f"{name}: expected text, not {describe(node)}"
        case "dataclass_type":
            return f"{name}: expected settings (key: value), not {describe(node)}"
        case "too_short" | "string_too_short":
            return f"{name}: is empty"
        case "greater_than" | "greater_than_equal" | "less_than_equal":
            value = quoted(node.text) if isinstance(node, Scalar) else ""
            return f"{name}: {value} {error['msg'].replace('Input ', '')}"
        case _:
            return f"{name}: {error['msg']}"


def _known_keys(loc: list[str]) -> list[str]:
    group: Any = Settings()
    for step in loc:
        group = getattr(group, step)
    return [field.name for field in dataclasses.fields(group)]
