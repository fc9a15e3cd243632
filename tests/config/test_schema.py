"""The JSON Schema agrees with the loader: the same keys everywhere, the same words, the same defaults."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from policyd.config.actions import ActionError, parse_action
from policyd.config.checks.ruleset_tests import GIVEN_KEYS, TEST_KEYS
from policyd.config.conditions import CONDITIONS
from policyd.config.rules_reader import LIST_KEYS, RULE_KEYS, TOP_KEYS
from policyd.config.schema import rules_schema, schema, settings_schema
from policyd.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = Path(__file__).parents[2] / "config"
RULES, SETTINGS, BOTH = rules_schema(), settings_schema(), schema()


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, list):
        for child in node:
            yield from walk(child)


def test_the_keys_of_a_ruleset_are_those_of_the_loader() -> None:
    definitions = RULES["definitions"]
    assert set(RULES["properties"]) == set(TOP_KEYS)
    assert set(definitions["rule"]["properties"]) == set(RULE_KEYS)
    assert set(definitions["conditions"]["properties"]) == set(CONDITIONS)
    assert set(definitions["list"]["anyOf"][-1]["properties"]) == set(LIST_KEYS)
    assert set(definitions["test"]["properties"]) == set(TEST_KEYS)
    assert set(definitions["test"]["properties"]["given"]["properties"]) == set(GIVEN_KEYS)


def test_the_settings_are_those_of_the_loader_with_their_defaults() -> None:
    shipped = yaml.load((CONFIG / "policyd.yaml").read_text(), Loader=yaml.BaseLoader)
    assert set(SETTINGS["properties"]) == {field.name for field in dataclasses.fields(Settings)}
    for key, definition in SETTINGS["properties"].items():
        reference = next((node["$ref"] for node in walk(definition) if "$ref" in node), None)
        if reference is None:
            if key == "control":  # the installed daemon has a control socket; a daemon without settings has none
                assert (definition["default"], shipped[key]) == (None, "/run/policyd/control.sock")
                continue
            default = definition["default"]
            assert shipped[key] == ("null" if default is None else default)
            continue
        group = SETTINGS["definitions"][reference.rpartition("/")[2]]["properties"]
        assert {name: json.dumps(value["default"]).strip('"') for name, value in group.items()} == {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in shipped[key].items()
        }


@pytest.mark.parametrize("checked", [RULES, SETTINGS, BOTH], ids=["rules", "settings", "both"])
def test_references_exist_and_patterns_compile(checked: dict[str, Any]) -> None:
    json.dumps(checked)
    for node in walk(checked):
        if "$ref" in node:
            head, _, name = node["$ref"].rpartition("/")
            assert head == "#/definitions"
            assert name in checked["definitions"]
            assert len(node) == 1, "draft-07 ignores other keys beside a reference"
        if isinstance(node.get("pattern"), str):
            re.compile(node["pattern"])


@pytest.mark.parametrize("checked", [RULES, SETTINGS], ids=["rules", "settings"])
def test_every_key_is_described_and_no_other_is_allowed(checked: dict[str, Any]) -> None:
    for node in walk(checked):
        if "properties" in node and "type" in node:
            assert node["additionalProperties"] is False
            for key, value in node["properties"].items():
                assert value.get("description") or "$ref" in json.dumps(value), key


@pytest.mark.parametrize(
    "action",
    [
        *("DUNNO", "dunno", " Reject ", "REJECT 5.7.1 x", "defer x", "DEFER_IF_PERMIT 4.7.1", "DUNNO x", "OK", "550"),
        *("REJECTED", "DEFER_IF_REJECT", "REJECT: x", "permit", "x REJECT", ""),
    ],
)
def test_the_schema_and_the_loader_accept_the_same_actions(action: str) -> None:
    pattern = RULES["definitions"]["rule"]["properties"]["action"]["pattern"]
    try:
        parse_action(action)
        good = True
    except ActionError:
        good = False
    assert bool(re.search(pattern, action)) is good


def test_the_examples_of_actions_are_actions() -> None:
    for example in RULES["definitions"]["rule"]["properties"]["action"]["examples"]:
        parse_action(example)


def test_one_schema_distinguishes_the_two_files() -> None:
    """The schema's `if`, evaluated by hand, requires a list of rules, or a key that settings do not have."""
    first, *others = BOTH["if"]["anyOf"]
    assert first == {"required": ["rules"], "properties": {"rules": {"type": "array"}}}
    assert {other["required"][0] for other in others} == set(TOP_KEYS) - set(SETTINGS["properties"])
    assert BOTH["then"]["$ref"] == "#/definitions/rules.yaml"
    assert BOTH["definitions"]["rules.yaml"]["required"] == ["rules"]
    assert BOTH["else"]["$ref"] == "#/definitions/policyd.yaml"
