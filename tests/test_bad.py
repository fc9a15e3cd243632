"""Bad settings and rulesets in tests/bad, each beside the exact messages that it must give.

Files named `warn-*` load, with these warnings on 21 November 2026. Files named `settings-*` are settings. All others
are rules that do not load; a file with `warnings` in its name gives warnings beside the errors. Run one by its name:
`pytest tests/test_bad.py -k networks`. If you change a message, change its `.expected` as well.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from policyd.config.load import load
from policyd.config.problems import ConfigErrors

BAD = Path(__file__).parent / "bad"
TODAY = datetime.date(2026, 11, 21)
FILES = sorted(path.name for path in BAD.glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_bad_file_gives_exactly_these_messages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    expected = Path(name).with_suffix(".expected").read_text().splitlines()
    assert expected, "a valid file does not belong here"
    if name.startswith("warn-"):
        assert [*load(rules_path=name, warnings_on=TODAY).warning_lines] == expected
        return
    paths = (name, None) if name.startswith("settings-") else (None, name)
    with pytest.raises(ConfigErrors) as caught:
        load(*paths, warnings_on=TODAY if "warnings" in name else None)
    assert [*caught.value.lines] == expected
    assert caught.value.exit_status == 1


def test_every_expectation_has_its_file() -> None:
    assert {path.stem for path in BAD.glob("*.expected")} == {name.removesuffix(".yaml") for name in FILES}
