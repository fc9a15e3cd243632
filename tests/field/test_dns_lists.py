"""DNS lists through a real Postfix, with a real unbound and a real rbldnsd: each kind of answer, and its effect."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests import name_server
from tests.field.policyd import Policyd
from tests.field.postfix import Client
from tests.field.waiting import until
from tests.name_server import REFUSED, SERVFAIL, ScriptedServer, host, start_unbound
from tests.ports import free_port
from tests.rbl_server import Rbldnsd, Zone, start_rbldnsd
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.field.conftest import StartPolicyd
    from tests.field.postfix import Postfix, Reply

TIMEOUT = 2.0  # `dns.timeout`
ANY = "any"  # answer of a list
KEY = "k3ythatn0b0dymays33"

TEST = ":127.0.0.2:listed\n127.0.0.2\n"
ZONES = {
    "zen.rbl.example": Zone("ip4set", TEST + "198.18.0.1\n198.18.0.0/28 :127.0.0.4:range\n"),
    "trie.rbl.example": Zone("ip4trie", TEST + "198.18.0.1\n198.18.0.0/28 :127.0.0.4:range\n"),
    "six.rbl.example": Zone("ip6trie", ":127.0.0.2:listed\n0:0:0:0:0:ffff:7f00:2\n2a00:1450:bad::/48\n"),
    "names.rbl.example": Zone("dnset", ":127.0.1.2:listed\ntest\n.bad.example\n"),
    "wild.rbl.example": Zone("ip4set", ":127.0.0.2:listed\n0.0.0.0/1\n128.0.0.0/1\n"),
    "limit.rbl.example": Zone("ip4set", TEST + "198.18.0.0/24 :127.255.255.254:public resolver\n"),
    "parked.rbl.example": Zone("ip4set", TEST + "198.18.0.0/24 :10.0.0.1:parked\n"),
    "flaky.rbl.example": Zone("ip4set", TEST),
    "friends.rbl.example": Zone("ip4set", TEST + "198.18.0.9\n"),
    f"{KEY}.dq.rbl.example": Zone("ip4set", TEST + "198.18.0.1\n"),
}
NAMES = ["zen", "trie", "six", "wild", "limit", "parked", "flaky", "friends", "silent", "servfail", "refusing", "slow"]

# The field `self_test` of each list that has a self-test.
SELF_TESTS = {"six": ", self_test: '::ffff:127.0.0.2'", "wild": "", "zen": "", "trie": "", "flaky": ""}

RULES = (
    "dns_lists:\n"
    + "".join(
        f"  {name}: {{zone: {name}.rbl.example, codes: '127.0.0.[2..11]'"
        + SELF_TESTS.get(name, ", self_test: no")
        + "}\n"
        for name in NAMES
    )
    + """\
  names: {zone: names.rbl.example, ask: sender_domain, codes: 127.0.1.2}
  keyed: {zone: '{key}.dq.rbl.example', key_file: keyed.key, codes: '127.0.0.[2..11]'}
rules:
"""
    + "".join(
        f"  - {{name: {name}, match: {{listed: {name}, helo_name: {name}.helo.example}}, except: {{listed: friends}}, "
        f"action: 'REJECT 5.7.1 {{client_address}} listed by {{list}} ({{id}})'}}\n"
        for name in [*NAMES, "names", "keyed"]
    )
    + """\
  - {name: unless-silent, match: {helo_name: unless.helo.example}, except: {listed: silent}, action: REJECT 5.7.1 no}
"""
)


class Case(NamedTuple):
    """The list that the HELO name selects, a client, the reply to its recipient, and the list's answer in the log."""

    name: str
    client_address: str
    code: int
    text: str
    answer: str | None
    sender: str = "someone@sender.example"


CASES = [
    Case("zen", "198.18.0.1", 554, "5.7.1 .* listed by zen", "127.0.0.2+127.0.0.4"),  # one for each covering entry
    Case("trie", "198.18.0.1", 554, "5.7.1 .* listed by trie", "127.0.0.2"),  # only the narrowest entry
    Case("zen", "198.18.0.99", 250, "Ok", "-"),
    Case("zen", "198.18.0.9", 250, "Ok", ANY),  # `friends` exempts it, so zen's answer does not matter
    Case("six", "2a00:1450:bad::25", 554, "listed by six", "127.0.0.2"),
    Case("six", "2a00:1450:900d::25", 250, "Ok", "-"),
    Case("names", "198.18.0.50", 554, "listed by names", "127.0.1.2", "a@mx.bad.example"),
    Case("names", "198.18.0.50", 250, "Ok", "-", "a@good.example"),
    Case("wild", "198.18.0.51", 250, "Ok", "?out_of_use"),
    Case("limit", "198.18.0.52", 250, "Ok", "?refused_by_list"),
    Case("parked", "198.18.0.53", 250, "Ok", "?outside_127"),
    Case("servfail", "198.18.0.54", 250, "Ok", "?servfail"),
    Case("refusing", "198.18.0.55", 250, "Ok", "?servfail"),  # unbound answers SERVFAIL if a server answers REFUSED
    Case("silent", "198.18.0.56", 250, "Ok", "?timeout"),
    Case("slow", "198.18.0.57", 554, "listed by slow", "127.0.0.2"),
    Case("keyed", "198.18.0.1", 554, "listed by keyed", "127.0.0.2"),
    Case("zen", "10.0.0.1", 250, "Ok", None),  # no list is asked about a private address
]


@pytest.fixture(scope="module")
def rbldnsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rbldnsd]:
    require("rbldnsd")
    with start_rbldnsd(tmp_path_factory.mktemp("rbldnsd"), ZONES) as running:
        yield running


@pytest.fixture(scope="module")
def lists_resolver(tmp_path_factory: pytest.TempPathFactory, rbldnsd: Rbldnsd) -> Iterator[str]:
    """An unbound that knows the zones of rbldnsd, and those of scripted servers that fail or are slow."""
    listed = name_server.Reply(["@ 60 A 127.0.0.2"], delay=0.1)
    with ExitStack() as stack:
        bad = {
            "silent": stack.enter_context(ScriptedServer({}, otherwise=name_server.Reply(silent=True))),
            "servfail": stack.enter_context(ScriptedServer({}, otherwise=name_server.Reply(rcode=SERVFAIL))),
            "refusing": stack.enter_context(ScriptedServer({}, otherwise=name_server.Reply(rcode=REFUSED))),
            "slow": stack.enter_context(ScriptedServer({}, otherwise=listed)),
        }
        zones = {f"{name}.rbl.example": server.port for name, server in bad.items()}
        zones |= dict.fromkeys(ZONES, rbldnsd.port)
        folder = tmp_path_factory.mktemp("lists-unbound")
        yield stack.enter_context(start_unbound(folder, host("mx.sender.example", "198.18.0.1"), zones))


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def policyd(start_policyd: StartPolicyd, lists_resolver: str, metrics_port: int) -> Iterator[Policyd]:
    dns = {"servers": [lists_resolver], "timeout": f"{TIMEOUT:.0f}s", "trust_postfix": False}
    started = start_policyd(RULES, dns=dns, metrics=f"127.0.0.1:{metrics_port}", control="control.sock")
    assert isinstance(started, Policyd)
    key = started.rules.with_name("keyed.key")
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    with started as daemon:
        until("the self-test of the wildcard zone", lambda: "DNS list wild" in log_of(daemon) or None)
        yield daemon


def log_of(daemon: Policyd) -> str:
    return daemon.operational_log.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.answer}")
def test_each_answer_of_a_list_has_its_effect_in_postfix(
    postfix: Postfix, policyd: Policyd, service: str, case: Case
) -> None:
    recipient = f"{case.name}-{CASES.index(case)}-{service}@field.example"
    began = time.monotonic()
    reply = offer(postfix, service, case.client_address, case.name, recipient, case.sender)
    assert time.monotonic() - began < TIMEOUT + 10
    assert reply.code == case.code, reply
    assert re.search(case.text, reply.text), reply
    (logged,) = policyd.decisions(recipient=recipient)
    if case.answer != ANY:
        assert logged.get("lists", {}).get(case.name) == case.answer


def offer(
    postfix: Postfix, service: str, address: str, name: str, recipient: str, sender: str = "someone@sender.example"
) -> Reply:
    """The reply to a recipient. The HELO name selects the rule, and so the list."""
    with Client(postfix.port[service], address, helo_name=f"{name}.helo.example") as client:
        (reply,) = client.offer(sender, recipient)
    return reply


def test_an_unknown_exception_defers_what_would_be_rejected(postfix: Postfix, policyd: Policyd, service: str) -> None:
    recipient = f"unless-{service}@field.example"
    reply = offer(postfix, service, "198.18.0.60", "unless", recipient)
    assert (reply.code, reply.text[:5]) == (450, "4.7.1")
    (logged,) = policyd.decisions(recipient=recipient)
    assert (logged["downgraded"], logged["lists"]) == (True, {"silent": "?timeout"})


def test_a_zone_that_breaks_is_not_used_until_it_recovers(
    postfix: Postfix, policyd: Policyd, rbldnsd: Rbldnsd, service: str
) -> None:
    good = TEST + "198.18.1.0/24\n"
    broken = ":127.255.255.254:public resolver\n0.0.0.0/1\n128.0.0.0/1\n"
    rbldnsd.change("flaky.rbl.example", good)
    first, second = ("198.18.1.1", "198.18.1.2") if service == "inet" else ("198.18.1.3", "198.18.1.4")
    assert offer(postfix, service, first, "flaky", "flaky-1@field.example").code == 554
    rbldnsd.change("flaky.rbl.example", broken)
    time.sleep(1.1)  # the TTL of cached answers
    assert offer(postfix, service, second, "flaky", "flaky-2@field.example").code == 250
    until("the end of its use", lambda: "?out_of_use" in answers_of(postfix, policyd, service, first) or None)
    assert "flaky: 127.255.255.254: your resolver is a public one, and this list does not answer those" in log_of(
        policyd
    )
    status = run("status", "-c", policyd.settings)
    assert status.returncode == 1
    assert "DNS list flaky is out of use" in status.stdout
    rbldnsd.change("flaky.rbl.example", good)
    until(
        "the return of the zone",
        lambda: offer(postfix, service, first, "flaky", "flaky-3@field.example").code == 554 or None,
        seconds=60,
    )


def answers_of(postfix: Postfix, policyd: Policyd, service: str, address: str) -> str:
    """The list's current answer for a client, from the decision log."""
    recipient = f"flaky-{time.monotonic_ns()}@field.example"
    offer(postfix, service, address, "flaky", recipient)
    (logged,) = policyd.decisions(recipient=recipient)
    return str(logged["lists"]["flaky"])


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of policyd."""
    command = [sys.executable, "-m", "policyd", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_is_in_no_output_of_daemon_and_tools(
    postfix: Postfix, policyd: Policyd, service: str, metrics_port: int
) -> None:
    """The tests above use the same daemon, so its logs include their lines."""
    offer(postfix, service, "198.18.0.1", "keyed", "key@field.example")
    rules, settings, log = policyd.rules, policyd.settings, policyd.decision_log
    page = urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10).read().decode()
    assert 'policyd_dns_list_usable{list="keyed"} 1.0' in page
    request = ["client_address=198.18.0.1", "helo_name=keyed.helo.example"]
    outputs = {
        "metrics": page,
        "decision log": log.read_text(),
        "operational log": log_of(policyd),
        "mail log": postfix.maillog.read_text(),
    }
    commands: tuple[list[str | Path], ...] = (
        ["status", "-c", settings],
        ["status", "-c", settings, "--json"],
        ["check", "-c", settings],
        ["explain", "-c", settings, *request],
        ["explain", "-c", settings, *request, "--json"],
        ["export", "postfix-cidr", "-c", settings],
        ["replay", "-c", settings, log],
        ["stats", log],
        ["reload", "-c", settings],
    )
    for arguments in commands:
        ended = run(*arguments)
        assert ended.stdout + ended.stderr
        outputs[" ".join(map(str, arguments))] = ended.stdout + ended.stderr
    key = rules.with_name("keyed.key")
    for content, mode in ((f"{KEY} {KEY}\n", 0o600), (f"{KEY}\n", 0o644), (f"{KEY}" * 5, 0o600)):
        key.write_text(content)
        key.chmod(mode)
        ended = run("check", "-c", settings)
        assert ended.returncode == 1
        assert "keyed.key" in ended.stderr
        outputs[f"check with {mode:o}"] = ended.stdout + ended.stderr
        outputs[f"reload with {mode:o}"] = run("reload", "-c", settings).stderr + log_of(policyd)
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    assert "{key}.dq.rbl.example" in outputs["explain -c " + str(settings) + " " + " ".join(request)]
    assert [where for where, text in outputs.items() if KEY in text] == []
