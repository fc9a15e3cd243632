"""Completion in real shells, each in its own terminal: a test types text and TAB, and reads the screen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.shell_completion import get_completion_class

from policyd.cli import COMMANDS, COMPLETE, completion, policyd
from policyd.exchange.exporting import EXPORT_FORMATS
from policyd.exchange.importing import IMPORT_FORMATS
from tests.field.waiting import until
from tests.packaging.terminal import Terminal, terminal
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "--private", "-i"],
}

FILES = {"bash": "policyd.bash", "zsh": "_policyd", "fish": "policyd.fish"}

# Commands typed at the start. After them, one TAB shows the choices. bash reads the script as its completion package
# would; zsh and fish find it in a folder of their search path, as they find an installed script.
SETTINGS = {
    "bash": "bind 'set show-all-if-ambiguous on'; bind 'set bell-style none'; . {folder}/policyd.bash",
    "zsh": "PS1='$ '; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; setopt no_list_ambiguous",
    "fish": "set -p fish_complete_path {folder}",
}

RULES = """
lists:
  own-networks: [192.0.2.0/24]
  own-names: [mail.example.com]
  '$(touch ran)': [192.0.2.0/24]
databases: {asn: asn.mmdb, country: country.mmdb}
dns_lists:
  zen: {zone: zen.spamhaus.org, codes: '127.0.0.[2..11]'}
counters:
  mails-of-user: {count: requests, per: sasl_username, within: 1h}
rules:
  - {name: sakura-vps, match: {hostname_suffix: vs.sakura.ne.jp}, action: REJECT}
  - {name: 'a `touch ran` b', match: {cidr: 192.0.2.0/24}, action: REJECT}
  - {name: no-reverse-dns, match: {reverse_dns: missing}, action: DEFER}
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the completion scripts."""
    folder = tmp_path_factory.mktemp("completion")
    for shell, name in FILES.items():
        maker = get_completion_class(shell)
        assert maker is not None
        assert maker.__module__ == completion.__name__
        (folder / name).write_text(maker(policyd, {}, "policyd", COMPLETE).source())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the shells, with a ruleset, and with a policyd that records each of its starts."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "rules.yaml").write_text(RULES)
    (folder / "policyd.yaml").write_text("rules: rules.yaml\n")
    (folder / "broken.yaml").write_text("rules: [\n  'x\n")
    (folder / "only-log.txt").write_text("")
    (folder / "bin").mkdir()
    program = folder / "bin/policyd"
    program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/started\nexec {sys.executable} -m policyd "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, scripts: Path, folder: Path) -> Iterator[Terminal]:
    name = request.param
    require(name)
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "TERM": "xterm",
        "PS1": "$ ",
        "INPUTRC": "/dev/null",
        "LC_ALL": "C.UTF-8",
    }
    with terminal(SHELLS[name], environment) as screen:
        screen.keys(f"cd {folder}; {SETTINGS[name].format(folder=scripts)}; echo rea''dy\n")
        screen.shows("ready")
        yield screen


@pytest.fixture(autouse=True)
def _without_earlier_starts(folder: Path) -> None:
    """Removes the record of earlier starts."""
    (folder / "started").unlink(missing_ok=True)


def after_tab(shell: Terminal, typed: str, expected: str) -> str:
    """Types, presses TAB, and returns the output as soon as it has the expected text."""
    shell.keys("\x15")  # removes the earlier line
    shell.shows("")
    shell.keys(f"{typed}\t")
    return shell.shows(expected)


def later_output(shell: Terminal) -> str:
    """Removes the typed line, and returns the output that TAB has caused since."""
    shell.keys("\x15echo en''ded\n")
    return shell.shows("ended")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("policyd impo", "policyd import "),
        ("policyd check --qui", "policyd check --quiet "),
        ("policyd status --al", "policyd status --alive "),
        ("policyd import postfix-c", "policyd import postfix-cidr "),
        ("policyd import --strict spam", "policyd import --strict spamhaus-drop "),
        ("policyd export nft", "policyd export nftables "),
        ("policyd export csv --condition hostname_s", "policyd export csv --condition hostname_suffix "),
        ("policyd explain --reverse-dns miss", "policyd explain --reverse-dns missing "),
        ("policyd explain client_a", "policyd explain client_address="),
        ("policyd schema set", "policyd schema settings "),
        ("policyd import plain only-l", "policyd import plain only-log.txt "),
        ("policyd stats only-l", "policyd stats only-log.txt "),
        ("policyd check --rules brok", "policyd check --rules broken.yaml "),
    ],
)
def test_fixed_words_are_completed_without_starting_policyd(
    shell: Terminal, folder: Path, typed: str, expected: str
) -> None:
    after_tab(shell, typed, expected)
    assert not (folder / "started").exists()


@pytest.mark.parametrize(
    ("typed", "choices"),
    [
        ("policyd re", ("reload", "replay", "report")),
        ("policyd import postfix-", ("postfix-access", "postfix-cidr", "postfix-pcre", "postfix-regexp")),
        ("policyd tail --action=D", ("DEFER", "DEFER_IF_PERMIT", "DUNNO")),
    ],
)
def test_choices_are_shown(shell: Terminal, typed: str, choices: tuple[str, ...]) -> None:
    shown = after_tab(shell, typed, choices[-1])
    assert [choice for choice in choices if choice not in shown] == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("policyd tail -c policyd.yaml --rule sak", "--rule sakura-vps "),
        ("policyd fetch --config=policyd.yaml --list own-ne", "--list own-networks "),
        ("policyd fetch --rules rules.yaml --accept coun", "--accept country "),
        ("policyd export --rules rules.yaml csv --list=own-na", "--list=own-names "),
        ("policyd check --rules rules.yaml --list own-ne", "--list own-networks="),
        ("policyd explain --rules rules.yaml --listed z", "--listed zen="),
        ("policyd status -c policyd.yaml --counter m", "--counter mails-of-user "),
    ],
)
def test_names_of_the_ruleset_are_completed(shell: Terminal, typed: str, expected: str) -> None:
    after_tab(shell, typed, expected)


@pytest.mark.parametrize("rules", ["broken.yaml", "missing.yaml", "bin", "/dev/zero"])
def test_an_unreadable_ruleset_completes_nothing(shell: Terminal, folder: Path, rules: str) -> None:
    shown = after_tab(shell, f"policyd tail --rules {rules} --rule x", "--rule x")
    until("the start of policyd for names", lambda: (folder / "started").exists() or None)
    shown += later_output(shell)
    assert not re.search(r"(?i)error|traceback|cannot|no such", shown)


@pytest.mark.parametrize("typed", ["policyd nonsense --x", "policyd tail --nonsense x", "policyd import 'plain x"])
def test_nonsense_completes_nothing(shell: Terminal, typed: str) -> None:
    shown = after_tab(shell, typed, typed[-1]) + later_output(shell)
    assert not re.search(r"(?i)error|traceback|cannot|no such|not found", shown)


def test_a_name_that_a_shell_would_run_is_left_out(shell: Terminal, folder: Path) -> None:
    shown = after_tab(shell, "policyd tail --rules rules.yaml --rule ", "sakura-vps")
    assert "no-reverse-dns" in shown
    assert "touch" not in shown
    assert not (folder / "ran").exists()


def test_the_script_is_printed_on_demand(scripts: Path) -> None:
    environment = {**os.environ, COMPLETE: "bash_source"}
    printed = subprocess.run([sys.executable, "-m", "policyd"], check=True, env=environment, stdout=subprocess.PIPE)
    assert printed.stdout == (scripts / FILES["bash"]).read_bytes()


# --- Completeness -----------------------------------------------------------------------------------------------------


def options() -> dict[str, set[str]]:
    """The long options of each command."""
    context = policyd.make_context("policyd", [], resilient_parsing=True)
    found = {}
    for name in COMMANDS:
        command = policyd.get_command(context, name)
        assert command is not None
        parameters = command.get_params(click.Context(command, parent=context))
        found[name] = {
            name
            for parameter in parameters
            if isinstance(parameter, click.Option)
            for name in parameter.opts
            if name.startswith("--")
        }
    return found


def test_bash_knows_every_command_option_and_format(scripts: Path) -> None:
    require("bash")
    ask = (
        f". {scripts}/policyd.bash\n"
        'ask() { COMP_WORDS=(policyd "$@"); COMP_CWORD=$#; _policyd 2>/dev/null; echo "$*: ${COMPREPLY[*]}"; }\n'
        "ask ''\nask import ''\nask export ''\n" + "".join(f"ask {name} --\n" for name in COMMANDS)
    )
    shown = subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True, timeout=60).stdout
    found = {line.split(":")[0]: line.split(":")[1].split() for line in shown.splitlines()}
    assert found.pop("") == list(COMMANDS)
    assert found.pop("import ") == list(IMPORT_FORMATS)
    assert found.pop("export ") == list(EXPORT_FORMATS)
    assert {name.removesuffix(" --"): set(words) for name, words in found.items()} == options()


def test_fish_knows_every_command_option_and_format(scripts: Path) -> None:
    require("fish")
    lines = ["policyd ", "policyd import ", "policyd export ", *(f"policyd {name} --" for name in COMMANDS)]
    ask = f"source {scripts}/policyd.fish\n" + "".join(f"echo '# {line}'\ncomplete -C '{line}'\n" for line in lines)
    shown = subprocess.run(
        ["fish", "--no-config", "-c", ask], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    answers = dict(part.split("\n", 1) for part in shown.removeprefix("# ").split("\n# "))
    found = {line: {answer.split("\t")[0] for answer in text.splitlines()} for line, text in answers.items()}
    assert found.pop("policyd ") == set(COMMANDS)
    assert found.pop("policyd import ") == set(IMPORT_FORMATS)
    assert found.pop("policyd export ") == set(EXPORT_FORMATS)
    assert {line.split()[1]: words for line, words in found.items()} == options()


def test_zsh_knows_every_command_and_option(scripts: Path) -> None:
    text = (scripts / "_policyd").read_text()
    cases = re.findall(r"^        ([a-z]+)\)\n(.*?)^ +;;$", text, re.MULTILINE | re.DOTALL)
    assert {name: set(re.findall(r"(?:\)|\*)(--[a-z0-9-]+)[=\[]", body)) for name, body in cases} == options()
    assert set(re.findall(r"^        '([a-z]+):", text, re.MULTILINE)) == set(COMMANDS)
