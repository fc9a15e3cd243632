"""The Containerfile and its settings, as far as they can be tested without building the image."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.load import load
from policyd.config.settings import InetAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ended

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "packaging/container/policyd.yaml"

# Every instruction of the Containerfile: the number of its stage, its word (`RUN`), and its arguments.
INSTRUCTIONS: list[tuple[int, str, str]] = []
_stage = -1
for _line in re.sub(r"\\\n", " ", (ROOT / "packaging/Containerfile").read_text()).splitlines():
    if _line and not _line.startswith("#"):
        _word, _, _rest = _line.partition(" ")
        _stage += _word == "FROM"
        INSTRUCTIONS.append((_stage, _word, _rest))
LAST = [(word, rest) for stage, word, rest in INSTRUCTIONS if stage == _stage]


def test_every_copied_file_exists() -> None:
    copied = [rest for _, word, rest in INSTRUCTIONS if word == "COPY" and not rest.startswith("--from")]
    sources = [source for rest in copied for source in rest.split()[:-1]]
    assert {"requirements.lock", "policyd", "config/rules.yaml"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_ends_with_an_unprivileged_user_and_installs_nothing_as_that_user() -> None:
    words = [word for word, _ in LAST]
    (user,) = (rest for word, rest in LAST if word == "USER")
    assert re.fullmatch(r"[1-9][0-9]+:[1-9][0-9]+", user)
    assert not {"RUN", "COPY"} & set(words[words.index("USER") :])


def test_dependencies_come_from_the_lock_file_by_hash() -> None:
    commands = [command for _, word, rest in INSTRUCTIONS if word == "RUN" for command in rest.split("&&")]
    pip = [command for command in commands if "/pip install" in command]
    assert len(pip) == 2
    assert "--require-hashes" in pip[0]
    assert "--no-deps" in pip[1]


def test_health_check_and_command_are_commands_of_policyd(run: Callable[..., Ended]) -> None:
    (check,) = (rest.partition("CMD ")[2] for word, rest in LAST if word == "HEALTHCHECK")
    assert json.loads(check) == ["policyd", "status", "--alive"]
    assert [json.loads(rest) for word, rest in LAST if word in {"ENTRYPOINT", "CMD"}] == [["policyd"], ["serve"]]
    assert run(*json.loads(check)[1:], "--help").status == 0


def test_the_settings_load_and_fit_the_image(tmp_path: Path) -> None:
    settings = tmp_path / "policyd.yaml"
    settings.write_text(SETTINGS.read_text().replace("/rules/rules.yaml", str(ROOT / "config/rules.yaml")))
    loaded = load(settings, None)
    addresses = (*loaded.settings.listen, loaded.settings.metrics)
    ports = {str(address.port) for address in addresses if isinstance(address, InetAddress)}
    assert [set(rest.split()) for word, rest in LAST if word == "EXPOSE"] == [ports]
    words_of_run = {part for word, rest in LAST if word == "RUN" for part in shlex.split(rest)}
    assert loaded.settings.control == "/run/policyd/control.sock"
    assert "/run/policyd" in words_of_run
    assert [set(json.loads(rest)) for word, rest in LAST if word == "VOLUME"] == [{"/rules", "/var/lib/policyd"}]
