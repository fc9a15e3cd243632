"""Tests that `$name` in parameters is expanded as by postconf(1)."""

from __future__ import annotations

import os
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from policyd.tools.doctor.expansion import expand
from tests.requirements import require

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = {
    "set": "yes",
    "empty": "",
    "list": "a, b",
    "nested": "$set and ${list}",
    "ten": "10",
}
VALUES = [
    "$set",
    "${set}",
    "$(set)",
    "$set.$list",
    "x$nested",
    "${set?{is $list}:{is not}}",
    "${empty?{is}:{is not $list}}",
    "${set?text with blanks}",
    "${empty:text with $list}",
    "${set:no}x",
    "${empty?no}x",
    "${ set ?{a}:{b}}",
    "${set ? {a} : {b}}",
    "${empty ? {a} : {b}}",
    "${{$set} == {yes} ? {equal} : {other}}",
    "${{$set} != {yes} ? {other} : {equal}}",
    "${{$ten} > {9} ? {as numbers} : {as text}}",
    "${{$set} > {9} ? {as text} : {as numbers}}",
    "${{$ten} <= {10} ? {a {b} c} : {}}",
    "${{3.10} <level {3.9} ? {older} : {newer}}",
    "${{2} <level {3.6} ? {older} : {newer}}",
    "${{3.6} >=level {3.6} ? {newer} : {older}}",
    "${{$empty} == {} ? {${list}} : {no}}",
    "{ a, b } and $$5",
]


@pytest.mark.parametrize("value", VALUES)
def test_values_are_expanded_as_postconf_does(tmp_path: Path, value: str) -> None:
    require("postconf")
    parameters = {**PARAMETERS, "examined": value}
    lines = [f"{name} = {text}\n" for name, text in parameters.items()]
    # postconf ignores a parameter that Postfix does not have, unless it is the name of a restriction class.
    (tmp_path / "main.cf").write_text(f"smtpd_restriction_classes = {' '.join(parameters)}\n{''.join(lines)}")
    os.utime(tmp_path / "main.cf", (0, 0))
    (tmp_path / "master.cf").write_text("")
    ran = subprocess.run(
        ["postconf", "-c", tmp_path, "-x", "-h", "examined"], capture_output=True, text=True, check=False
    )
    expected = ran.stdout.rstrip("\n")
    if ran.stderr and "warning" in ran.stderr and not expected:
        pytest.skip(f"this postconf cannot read it: {ran.stderr}")
    assert expand(value, lambda name: parameters.get(name, "")).strip() == expected


@pytest.mark.parametrize(
    "value", ["${", "${}", "${set", "${{a} ? {b}}", "${{a} ~ {b} ? {c}}", "$", "a$", "$(set", "${-}"]
)
def test_references_that_postfix_cannot_read_are_left_unchanged(value: str) -> None:
    assert expand(value, lambda _: "x") == value


def _value_of_each_parameter(value: str, _name: str) -> str:
    return value


@pytest.mark.slow
def test_expanding_parameters_that_name_each_other_many_times_is_fast() -> None:
    started = time.process_time()
    for value in ("$a" * 8, "${a?{$a$a$a}:{$a}}" * 8, "${{$a$a} == {$a$a} ? {$a$a} : {$a}}", "${{" * 5000, "{" * 20000):
        assert len(expand(value, partial(_value_of_each_parameter, value))) <= 64 * 1024
    assert time.process_time() - started < 5
