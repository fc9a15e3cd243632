"""Other systems' lists and tables, as `policyd import` reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.core.ruleset import Verb
from policyd.exchange.importing import ImportFailedError, ImportForm, ImportOptions, ImportResult, import_files
from policyd.exchange.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Options of the command line. The first byte of an input, a digit, selects an entry.
OPTIONS = (
    ImportOptions(),
    ImportOptions(attribute="helo_name"),
    ImportOptions(attribute="sender", dotted=True),
    ImportOptions(attribute="recipient", delimiter="+"),
    ImportOptions(dotted=True),
    ImportOptions(shape=ImportForm.LIST),
    ImportOptions(shape=ImportForm.LIST, condition="sender_domain", attribute="sender"),
    ImportOptions(shape=ImportForm.RULES, name="a b", verdict=Verdict(Verb.DEFER, "4.7.1", "later")),
)

# Maximum characters of a message, which shows at most 100 characters of a line, and a reason.
LONGEST_LINE = 2_000


def importer(format_name: str) -> Callable[[bytes, Path], None]:
    """The target of one format."""

    def check(content: bytes, folder: Path) -> None:
        """Any file of another system gives rules or a list that load without a problem and contain each rule or entry
        reported as imported; each lost line is reported.
        """
        options = OPTIONS[(content[0] - ord("0")) % len(OPTIONS)] if content else OPTIONS[0]
        path = folder / "table"
        path.write_bytes(content[1:])
        try:
            result = import_files(format_name, [str(path)], options)
        except ImportFailedError as error:
            assert str(error).isprintable()
            assert len(str(error)) <= LONGEST_LINE
            assert error.exit_status in {1, 2}
            return
        # For nft's JSON, which is often one line, messages give the number of an object (docs/import-export.md).
        lines = content[1:].count(b"\n") + 1 + (content.count(b",") if format_name == "nft" else 0)
        for message in result.report.messages():
            assert message.isprintable(), message
            assert len(message) <= LONGEST_LINE
        assert all(0 < loss.line.number <= lines for loss in result.report.losses)
        assert result.report.taken >= 0
        _check_loads(result, folder)

    check.__name__ = format_name
    return check


def _check_loads(result: ImportResult, folder: Path) -> None:
    rules = folder / "rules.yaml"
    if result.shape is ImportForm.RULES:
        rules.write_text(result.text, encoding="utf-8")
    else:
        (folder / "list.txt").write_text(result.text, encoding="utf-8")
        (condition,) = {entry.condition for entry in result.entries}
        rules.write_text(
            f"lists: {{x: {{file: list.txt}}}}\nrules: [{{name: r, match: {{{condition}: $x}}, action: DEFER}}]\n"
        )
    try:
        loaded = load(None, rules)
    except ConfigErrors as errors:
        # Only one error is allowed here: expressions that are together too large for RE2.
        assert ["are too large for RE2" in line for line in errors.lines] == [True], errors
        return
    if result.shape is ImportForm.RULES:
        assert [rule.name for rule in loaded.ruleset.rules] == [rule.name for rule in result.rules]
        written = [{condition.name: condition.values for condition in rule.match} for rule in loaded.ruleset.rules]
        values = [{name: _as_written(values) for name, values in rule.match.items()} for rule in result.rules]
        assert written == values
    else:
        found = [entry.text for entry in loaded.lists["x"].entries()]
        assert found == [*dict.fromkeys(entry.value for entry in result.entries)]


def _as_written(values: tuple[str, ...]) -> tuple[str, ...]:
    """A `$` at the beginning is doubled, because it would name a list."""
    return tuple(f"${value}" if value.startswith("$") else value for value in values)
