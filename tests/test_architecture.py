"""The directions of imports, and the files that may import each package, as in docs/architecture.md.

`core <- memory, decision_log, tables <- config <- dns, state, logs, control <- exchange, daemon`; `exchange <- tools <-
fetch`; everything `<- cli`. Core and memory are pure; no two files import each other; each third-party package is
imported by few files. Imports are read from the syntax tree, so those inside functions and under TYPE_CHECKING count as
well.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "policyd"
FILES = sorted(PACKAGE.rglob("*.py"))

# The rooms (folders of policyd/) from which each room may import, besides itself. Files outside all rooms, such as
# __main__.py, may import from all.
_DATA = {"core", "memory", "decision_log", "tables", "config"}
_MIDDLE = _DATA | {"dns", "state", "logs", "control"}
MAY_IMPORT = {
    "core": set(),
    "memory": {"core"},
    "decision_log": {"core"},
    "tables": {"core"},
    "config": {"core", "memory", "decision_log", "tables"},
    "dns": _DATA,
    "state": _DATA,
    "logs": _DATA,
    "control": _DATA,
    "exchange": _MIDDLE,
    "daemon": _MIDDLE,
    "tools": _MIDDLE | {"exchange"},
    "fetch": _MIDDLE | {"exchange", "tools"},
    "cli": _MIDDLE | {"exchange", "tools", "fetch", "daemon"},
}

# Pure rooms: time and everything else from outside is passed in.
PURE_ROOMS = {"core", "memory"}

# Modules of the standard library that pure rooms may import. None reads a clock, a file, a network or an environment,
# except in parts that PURE_PARTS leaves out.
PURE = {
    "__future__",
    "array",
    "bisect",
    "collections",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "hashlib",
    "itertools",
    "math",
    "operator",
    "pickle",
    "re",
    "socket",
    "string",
    "types",
    "typing",
    "weakref",
}

# The only parts of these modules that pure rooms may use.
PURE_PARTS = {
    "socket": {"AF_INET", "AF_INET6", "inet_ntop", "inet_pton"},
    "pickle": {"PickleBuffer"},
    "datetime": {"date", "timedelta"},
}

# Built-in functions that reach outside.
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__"}

# The files, or the folders with all their files, that may import a third-party package.
IMPORTERS = {
    "aiodns": {"dns/answers.py", "dns/channels.py"},
    "cachetools": {"dns"},
    "click": {"cli"},
    "idna": {"core/normalize.py", "config"},
    "maxminddb": {"config/mmdb.py"},
    "netaddr": {"config", "exchange", "tools"},
    "prometheus_client": {"daemon/metrics.py"},
    "publicsuffixlist": {"config/public_suffixes.py"},
    "pycares": {"dns/channels.py"},
    "pydantic": {"config"},
    "re2": {"core/lookups.py", "config", "exchange", "tools"},
    "rich": {"cli", "tools"},
    "urllib3": {"fetch/source.py"},
    "uvloop": {"daemon"},
    "valkey": {"state/valkey.py"},
    "yaml": {"config/yaml_tree.py", "exchange", "tools"},
    "zstandard": {"logs/files.py"},
}

# The import name of a package, if it differs from the name by which it is installed.
IMPORT_NAMES = {"google-re2": "re2", "prometheus-client": "prometheus_client", "PyYAML": "yaml"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide their direction"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(path: Path) -> str:
    """The room of a file, or an empty string for a file outside of all rooms."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def wrong_directions(path: Path, source: str) -> list[str]:
    """Imports of a file against the direction."""
    here = room(path)
    if here == "":
        return []
    seen = [(line, name.split(".")) for line, name in imports(ast.parse(source)) if name.startswith("policyd.")]
    return [
        f"{name_of(path)}:{line}: {here} may not import policyd.{parts[1]}"
        for line, parts in seen
        if parts[1] not in {here, "__version__"} | MAY_IMPORT[here]
    ]


def impurities(path: Path, source: str) -> list[str]:
    """Uses of the outside world in a file of a pure room: clocks, files, networks, the environment."""
    found = []
    tree = ast.parse(source)
    for line, name in imports(tree):
        top, _, part = name.partition(".")
        if top in sys.stdlib_module_names and (top not in PURE or (part and part not in PURE_PARTS.get(top, {part}))):
            found.append(f"{name_of(path)}:{line}: a pure room may not import {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = node.value.id
            if module in PURE_PARTS and node.attr not in PURE_PARTS[module]:
                found.append(f"{name_of(path)}:{node.lineno}: a pure room may not use {module}.{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            found.append(f"{name_of(path)}:{node.lineno}: a pure room may not call {node.func.id}()")
    return found


def forbidden_packages(path: Path, source: str) -> list[str]:
    """Third-party packages that a file imports, but may not."""
    found = []
    for line, name in imports(ast.parse(source)):
        package = name.split(".")[0]
        if package == "policyd" or package in sys.stdlib_module_names:
            continue
        importers = IMPORTERS.get(package, set())
        if not importers & {name_of(path), room(path)}:
            found.append(f"{name_of(path)}:{line}: {package} may only be imported by {sorted(importers) or 'no file'}")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_inward(path: Path) -> None:
    assert wrong_directions(path, path.read_text()) == []


def circles(sources: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of files that import each other, directly or through others; `sources` by module name."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        names = {name for _, name in imports(ast.parse(source))}
        parents = {name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in names | parents if name in sources} - {module}
    for via, beyond in graph.items():  # transitive closure (Warshall)
        for targets in graph.values():
            if via in targets:
                targets.update(beyond)
    together = {frozenset(x for x in targets if module in graph[x]) for module, targets in graph.items()}
    return [tuple(sorted(group)) for group in together if group]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.slow
def test_no_two_files_import_each_other() -> None:
    assert circles({module_name(path): path.read_text() for path in FILES}) == []


def test_a_circle_through_a_third_file_is_found() -> None:
    sources = {"a": "from b import x", "b": "if TYPE_CHECKING:\n    from c import x", "c": "import a", "d": "import a"}
    assert circles(sources) == [("a", "b", "c")]


def test_no_room_holds_more_than_a_quarter_of_the_code() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    by_room = {name: sum(n for path, n in lines.items() if room(path) == name) for name in MAY_IMPORT}
    assert max(by_room.values()) <= sum(lines.values()) / 4, by_room


def test_core_stays_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in FILES if room(path) == "core") <= 2500


def shared_names(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Public classes and type aliases that several modules define; `sources` by module name."""
    modules: dict[str, list[str]] = {}
    for module, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, []).append(module)
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
                modules.setdefault(ast.unparse(node.target), []).append(module)
    return {name: found for name, found in modules.items() if len(found) > 1 and not name.startswith("_")}


def test_no_class_name_stands_for_two_things() -> None:
    assert shared_names({module_name(path): path.read_text() for path in FILES}) == {}


def test_a_class_name_that_stands_for_two_things_is_found() -> None:
    sources = {"a": "class X: ...\nclass _Y: ...", "b": "X: TypeAlias = int\nclass _Y: ...", "c": "class Z: ..."}
    assert shared_names(sources) == {"X": ["a", "b"]}


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in PURE_ROOMS], ids=name_of)
def test_core_and_memory_are_pure(path: Path) -> None:
    assert impurities(path, path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_third_party_package_is_imported_by_few_files(path: Path) -> None:
    assert forbidden_packages(path, path.read_text()) == []


@pytest.mark.slow
def test_every_dependency_is_declared_and_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {line.split(">")[0].strip() for line in project["dependencies"]}
    used = {name.split(".")[0] for path in FILES for _, name in imports(ast.parse(path.read_text()))}
    third_party = used - set(sys.stdlib_module_names) - {"policyd"}
    assert {IMPORT_NAMES.get(name, name) for name in declared} == third_party


@pytest.mark.parametrize(
    ("check", "file", "source"),
    [
        (wrong_directions, "core/engine.py", "from policyd.config import load"),
        (wrong_directions, "config/checks/warnings.py", "import policyd.daemon.server"),
        (wrong_directions, "daemon/server.py", "def f():\n    from policyd.exchange.importing import FORMATS"),
        (wrong_directions, "tools/replay/replay.py", "if TYPE_CHECKING:\n    from policyd.daemon.server import Server"),
        (wrong_directions, "daemon/server.py", "from policyd.cli import main"),
        (impurities, "core/engine.py", "import asyncio"),
        (impurities, "core/engine.py", "import logging"),
        (impurities, "core/engine.py", "import os.path"),
        (impurities, "core/engine.py", "from time import monotonic"),
        (impurities, "core/engine.py", "from datetime import datetime"),
        (impurities, "core/engine.py", "import datetime\ntoday = datetime.datetime.now()"),
        (impurities, "core/index.py", "import socket\nsocket.socket()"),
        (impurities, "core/index.py", "import pickle\npickle.loads(b'')"),
        (impurities, "core/index.py", "rules = open('rules.yaml')"),
        (forbidden_packages, "daemon/server.py", "import aiodns"),
        (forbidden_packages, "core/engine.py", "import requests"),
    ],
)
def test_each_check_finds_its_violations(check: object, file: str, source: str) -> None:
    assert callable(check)
    assert len(check(PACKAGE / file, source)) == 1


@pytest.mark.parametrize(
    ("check", "file", "source"),
    [
        (wrong_directions, "daemon/server.py", "from policyd.config.settings import Settings"),
        (wrong_directions, "tools/replay/replay.py", "from policyd.core.engine import decide"),
        (
            wrong_directions,
            "cli/daemon.py",
            "from policyd.daemon.server import serve\nfrom policyd.tools import replay",
        ),
        (impurities, "core/index.py", "import socket\nsocket.inet_pton(socket.AF_INET, '')"),
        (impurities, "core/engine.py", "import datetime\nday: datetime.date"),
        (forbidden_packages, "dns/channels.py", "import aiodns"),
    ],
)
def test_each_check_passes_allowed_input(check: object, file: str, source: str) -> None:
    assert callable(check)
    assert check(PACKAGE / file, source) == []
