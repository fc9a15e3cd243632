"""Warnings of files that every user of the host may write or replace."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load

if TYPE_CHECKING:
    from pathlib import Path

WRITE = "every user of this host may write to it, and so decide whose mail arrives; chmod o-w"
REPLACE = "every user of this host may put another file in its place, and so decide whose mail arrives; chmod o-w"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with settings and rules, and a list in a subfolder."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "drop.txt").write_text("192.0.2.0/24\n")
    (tmp_path / "policyd.yaml").write_text("{}\n")
    (tmp_path / "rules.yaml").write_text(
        "lists: {drop: {file: lists/drop.txt}}\nrules: [{name: a, match: {cidr: $drop}, action: REJECT}]\n"
    )
    return tmp_path


def warnings(folder: Path) -> dict[str, str]:
    loaded = load(folder / "policyd.yaml")
    return {problem.path.removeprefix(f"{folder}/"): problem.message for problem in loaded.warnings}


def test_private_files_cause_no_warning(folder: Path) -> None:
    assert warnings(folder) == {}


@pytest.mark.parametrize("name", ["policyd.yaml", "rules.yaml", "lists/drop.txt"])
def test_a_file_that_every_user_may_write_causes_a_warning(folder: Path, name: str) -> None:
    (folder / name).chmod(0o666)
    assert warnings(folder) == {name: WRITE}


def test_group_write_permission_causes_no_warning(folder: Path) -> None:
    (folder / "rules.yaml").chmod(0o664)
    (folder / "lists").chmod(0o775)
    assert warnings(folder) == {}


def test_a_file_that_every_user_may_replace_causes_a_warning_unless_its_folder_is_sticky(folder: Path) -> None:
    (folder / "lists").chmod(0o777)
    assert warnings(folder) == {"lists/drop.txt": f"{REPLACE} '{folder}/lists'"}
    (folder / "lists").chmod(0o1777)
    assert warnings(folder) == {}


def test_the_target_of_a_link_is_checked(folder: Path) -> None:
    (folder / "lists").chmod(0o777)
    (folder / "rules.yaml").rename(folder / "lists" / "real.yaml")
    (folder / "rules.yaml").symlink_to("lists/real.yaml")
    (folder / "lists" / "lists").mkdir()
    assert warnings(folder)["rules.yaml"] == f"{REPLACE} '{folder}/lists'"


def test_check_reports_a_writable_file_in_a_warning(folder: Path) -> None:
    (folder / "rules.yaml").chmod(0o666)
    loaded = load(folder / "policyd.yaml", warnings_on=datetime.date(2026, 11, 21))
    assert loaded.warning_lines == (f"{folder}/rules.yaml: warning: {WRITE}",)
