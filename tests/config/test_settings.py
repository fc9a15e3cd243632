"""Settings: values, defaults and relative paths. Wrong settings are in tests/bad/settings-*.yaml."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path

import pytest
import yaml

from policyd.config.load import load
from policyd.config.problems import ConfigErrors, Report
from policyd.config.settings import (
    DecisionLog,
    Dns,
    DnsServer,
    InetAddress,
    Limits,
    Settings,
    UnixAddress,
    parse_dns_server,
    parse_duration,
    parse_listen,
    read_settings,
)
from policyd.config.yaml_tree import parse_yaml

SHIPPED = Path(__file__).parents[2] / "config" / "policyd.yaml"


def read(text: str, path: str = "policyd.yaml") -> Settings:
    report = Report()
    root = parse_yaml(text.encode(), path, report)
    assert root is not None
    settings = read_settings(root, path, report)
    assert settings is not None, [*report.lines()]
    return settings


def test_the_defaults_are_as_documented() -> None:
    assert Settings() == Settings(
        listen=(InetAddress("127.0.0.1", 10040),),
        socket_mode=0o660,
        socket_owner=None,
        socket_group=None,
        rules="rules.yaml",
        decision_log=DecisionLog("-", "text"),
        dns=Dns((), 2000, 5.0, trust_postfix=True, cache_size=100_000),
        limits=Limits(4096, 65536, 3600.0, 30.0, 200_000),
        metrics=None,
        control=None,
        control_group=None,
        state_file=None,
        state=None,
        state_timeout=0.05,
        state_credentials=None,
        log_level="info",
    )
    assert read("{}") == Settings()


def test_the_shipped_file_shows_the_defaults_and_explains_each() -> None:
    text = SHIPPED.read_text()
    assert read(text) == dataclasses.replace(Settings(), control="/run/policyd/control.sock")
    shown = yaml.load(text, Loader=yaml.BaseLoader)
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert set(shown) == fields
    for group in ("decision_log", "dns", "limits"):
        assert set(shown[group]) == {field.name for field in dataclasses.fields(getattr(Settings(), group))}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*[a-z_]+:", line):
            comment = re.match(r"\s*#", lines[number - 1])
            beside = re.match(r"\s*[a-z_]+:", lines[number - 1])  # keys that share a comment
            assert comment or beside, line


def test_settings_are_read_as_written() -> None:
    settings = read("""
listen: [inet:192.0.2.1:25, 'inet:[::1]:10040', inet:mail.example.com:10040, unix:/run/policyd/policyd.sock]
socket_mode: 0666
socket_owner: policyd
socket_group: postfix
rules: other.yaml
decision_log: {path: decisions.log, format: json}
dns:
  servers: [192.0.2.53, 127.0.0.1:10053, '[::1]:53', 2001:db8::53]
  lookups: 5
  timeout: 1500ms
  trust_postfix: no
  cache_size: 0
limits: {connections: 10, request_bytes: 4096, idle_timeout: 1.5m, request_timeout: 2d}
metrics: '[::1]:9440'
log_level: debug
""")
    assert settings == Settings(
        listen=(
            InetAddress("192.0.2.1", 25),
            InetAddress("::1", 10040),
            InetAddress("mail.example.com", 10040),
            UnixAddress("/run/policyd/policyd.sock"),
        ),
        socket_mode=0o666,
        socket_owner="policyd",
        socket_group="postfix",
        rules="other.yaml",
        decision_log=DecisionLog("decisions.log", "json"),
        dns=Dns(
            (
                DnsServer("192.0.2.53"),
                DnsServer("127.0.0.1", 10053),
                DnsServer("::1", 53),
                DnsServer("2001:db8::53"),
            ),
            5,
            1.5,
            trust_postfix=False,
            cache_size=0,
        ),
        limits=Limits(10, 4096, 90.0, 172800.0),
        metrics=InetAddress("::1", 9440),
        log_level="debug",
    )


def test_paths_are_relative_to_the_settings_file() -> None:
    settings = read(
        "rules: r.yaml\ndecision_log: {path: log/d}\nlisten: [unix:run/s, unix:/run/s]\n", "etc/policyd/policyd.yaml"
    )
    assert settings.rules == "etc/policyd/r.yaml"
    assert settings.decision_log.path == "etc/policyd/log/d"
    assert settings.listen == (UnixAddress("etc/policyd/run/s"), UnixAddress("/run/s"))
    assert read("rules: /etc/r.yaml\n", "etc/policyd.yaml").rules == "/etc/r.yaml"
    assert read("decision_log: {path: '-'}\n", "etc/policyd.yaml").decision_log.path == "-"


@pytest.mark.parametrize("nothing", ["null", "~", "", "Null"])
def test_settings_that_may_be_null_accept_null(nothing: str) -> None:
    settings = read(f"socket_owner: {nothing}\nsocket_group: {nothing}\nmetrics: {nothing}\n")
    assert settings == Settings()


def test_a_group_called_null_needs_quotes() -> None:
    assert read("socket_group: 'null'\n").socket_group == "null"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5.0),
        ("5 s", 5.0),
        ("0.5s", 0.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
    ],
)
def test_a_duration_is_converted_to_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1e3s", "5 seconds", "1h30m", "\u0665s", "infs", ".5s"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text", ["inet:127.0.0.1:10040", "inet:[::1]:10040", "inet:localhost:1", "unix:/a b", "unix:run/s"]
)
def test_addresses_are_written_in_the_form_in_which_they_are_read(text: str) -> None:
    assert str(parse_listen(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "inet:", "inet:1", "inet:127.0.0.1", "inet::1", "inet:[::1]", "inet:::1:1", "inet:a b:1", "unix:"),
        *("inet:127.0.0.1:0", "inet:127.0.0.1:65536", "inet:127.0.0.1:+1", "inet:256.0.0.1:1", "inet:1.2.3:1"),
        *("inet:[127.0.0.1]:1", "inet:[::1%lo]:1x", "tcp:127.0.0.1:1", "unix:" + "x" * 108),
    ],
)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|lacks|needs|neither|longer"):
        parse_listen(text)


@pytest.mark.parametrize(
    "text", ["", "localhost", "1.2.3", "[::1", "::1]", "1.2.3.4:", "1.2.3.4:0", "[1.2.3.4]:x", "1.2.3.4:1:2"]
)
def test_an_invalid_resolver_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|lacks|needs|neither|longer"):
        parse_dns_server(text)


def test_settings_can_be_passed_between_processes() -> None:
    settings = read(SHIPPED.read_text())
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_the_command_line_takes_precedence_over_the_settings(tmp_path: Path) -> None:
    (tmp_path / "policyd.yaml").write_text("rules: missing.yaml\nlisten: [unix:/run/s]\n")
    (tmp_path / "r.yaml").write_text("rules: []\n")
    loaded = load(tmp_path / "policyd.yaml", tmp_path / "r.yaml", listen=(InetAddress("127.0.0.1", 1),))
    assert loaded.settings.rules == str(tmp_path / "r.yaml")
    assert loaded.settings.listen == (InetAddress("127.0.0.1", 1),)
    with pytest.raises(ConfigErrors, match=r"missing\.yaml: cannot be read"):
        load(tmp_path / "policyd.yaml")
