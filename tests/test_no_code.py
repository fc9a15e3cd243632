"""A ruleset, a list or a request can never run code: policyd runs no text as code, unpickles no data of others, and
lets no text choose an attribute of an object.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "policyd"
FILES = sorted(PACKAGE.rglob("*.py"))

# Functions that run text as code, or create any kind of object from a file.
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen", "execfile"}
UNPICKLES = {("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("marshal", "loads"), ("shelve", "open")}
UNSAFE_YAML = {"load", "load_all", "unsafe_load", "full_load", "Loader", "FullLoader", "UnsafeLoader"}

# Uses that are safe, because the text or data comes from policyd's own tables or processes.
ALLOWED = {
    "cli/__init__.py": {"import_module", "getattr"},  # the table of commands
    "config/settings.py": {"getattr"},  # the names of settings, from pydantic
    "daemon/main.py": {"getattr"},  # the settings that need a restart
    "daemon/reload.py": {"load", "loads", "Unpickler"},  # the result of a load, in a sealed memory file
    "exchange/firewall/iptables.py": {"format"},  # messages in the table of options without an equivalent
    "exchange/firewall/chains.py": {"format"},  # a message with one count
    "exchange/importing.py": {"getattr"},  # the options of a format
    "logs/counts.py": {"format"},  # messages in a table, with a count each
}


def findings(name: str, source: str) -> list[str]:
    """Line and reason of everything in a file that must not be there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            called = getattr(function, "id", getattr(function, "attr", ""))
            reason = _reason(node)
            if reason and called not in ALLOWED.get(name, set()):
                found.append(f"{name}:{node.lineno}: {called}(): {reason}")
    return found


def _reason(call: ast.Call) -> str:
    function = call.func
    if any(keyword.arg == "shell" for keyword in call.keywords):
        return "a shell"
    if isinstance(function, ast.Name):
        if function.id in RUNS_TEXT:
            return "runs a text"
        of_names = call.args[1:2] if function.id in {"getattr", "setattr", "delattr"} else []
        if any(not isinstance(name, ast.Constant) for name in of_names):
            return "gets an attribute whose name is not a constant"
    elif isinstance(function, ast.Attribute):
        module = function.value.id if isinstance(function.value, ast.Name) else ""
        if module in {"os", "importlib", "builtins"} and function.attr in RUNS_TEXT:
            return "runs a text"
        if (module, function.attr) in UNPICKLES or (module == "yaml" and function.attr in UNSAFE_YAML):
            return "creates any object that the bytes describe"
        if function.attr in {"format", "format_map"} and not isinstance(function.value, ast.Constant):
            return "a format string that is not a constant can read attributes"
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_text_becomes_code(path: Path) -> None:
    assert findings(str(path.relative_to(PACKAGE)), path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "importlib.import_module(text)",
        "pickle.loads(content)",
        "pickle.Unpickler(file)",
        "yaml.load(content)",
        "yaml.unsafe_load(content)",
        "text.format(request=request)",
        "template.format_map(values)",
        "getattr(request, text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_check_finds_its_violations(source: str) -> None:
    assert len(findings("config/x.py", source)) == 1


@pytest.mark.parametrize("source", ["'{}'.format(text)", "getattr(request, 'get')", "yaml.safe_load(content)", "f(x)"])
def test_the_check_passes_harmless_text(source: str) -> None:
    assert findings("config/x.py", source) == []
