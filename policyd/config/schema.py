"""JSON Schema (draft-07, which every editor's YAML plugin knows) of rules.yaml and policyd.yaml.

The schema is for editors: completion, descriptions, and mistakes that are visible without reading lists or comparing
rules. `policyd check` may refuse a file that passes the schema. The conditions come from the loader's own table, the
settings from the loader's own annotations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policyd.config.actions import PLACEHOLDERS
from policyd.config.conditions import CONDITIONS, PROTOCOL_STATES, Form
from policyd.config.counters import COUNTER_KEYS, GREYLIST_KEYS
from policyd.config.definition_reader import NAME_PATTERN, TRUTHS
from policyd.config.dns_list import Ask
from policyd.config.dns_lists import DNS_LIST_KEYS
from policyd.config.key_file import KEY
from policyd.config.list_sources import DATABASE_SOURCE_KEYS, SOURCE_FORMATS, SOURCE_KEYS
from policyd.config.rules_reader import MODES
from policyd.config.settings import ADAPTER, Settings
from policyd.core.facts import Greylisted
from policyd.core.identity import Status
from policyd.core.protocol import ATTRIBUTES
from policyd.core.ruleset import DEFAULT_RULE, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.config.conditions import ConditionType

DRAFT = "http://json-schema.org/draft-07/schema#"

Schema = dict[str, Any]

# policyd reads every scalar as text, but an editor converts some to numbers and booleans before it checks the schema.
_SCALAR = ["string", "number", "boolean"]
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"

_ACTION_HELP = (
    "DUNNO alone; or REJECT, DEFER, DEFER_IF_PERMIT or GREYLIST, then an optional enhanced status code (5.x.x for "
    "REJECT, 4.x.x for the others), then optional text. The text may contain "
    f"{', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}; {{{{ and }}}} are braces."
)


def schema() -> Schema:
    """One schema for both files, which an editor distinguishes by their keys."""
    rules, settings = rules_schema(), settings_schema()
    only_in_rules = [key for key in rules["properties"] if key not in settings["properties"]]
    rules_are_a_list = {"required": ["rules"], "properties": {"rules": {"type": "array"}}}
    return {
        "$schema": DRAFT,
        "title": "policyd: rules.yaml or policyd.yaml",
        "if": {"anyOf": [rules_are_a_list, *({"required": [key]} for key in only_in_rules)]},
        "then": {"$ref": "#/definitions/rules.yaml"},
        "else": {"$ref": "#/definitions/policyd.yaml"},
        "definitions": {
            **rules.pop("definitions"),
            **settings.pop("definitions"),
            "rules.yaml": rules,
            "policyd.yaml": settings,
        },
    }


def rules_schema() -> Schema:
    """The schema of rules.yaml."""
    return {
        "$schema": DRAFT,
        "title": "rules.yaml of policyd",
        **_object(
            {
                "mode": {
                    **_mode(),
                    "description": "observe: everything is decided and logged, and every answer is DUNNO.",
                },
                "databases": _object(
                    {
                        "asn": _database("says which autonomous system announces an address"),
                        "country": _database("says in which country an address is; may be the same file as asn"),
                    },
                    description="Local files about networks, for the conditions asn, asn_name_regex and country.",
                ),
                "lists": {
                    "type": "object",
                    "description": "Values that conditions name as $name, written here or read from files.",
                    "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
                    "additionalProperties": {"$ref": "#/definitions/list"},
                },
                "dns_lists": {
                    "type": "object",
                    "description": "DNS lists (RFC 5782) that `listed` names.",
                    "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
                    "additionalProperties": {"$ref": "#/definitions/dns_list"},
                },
                "counters": {
                    "type": "object",
                    "description": "Counters that `counter` compares: what clients did before.",
                    "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
                    "additionalProperties": {"$ref": "#/definitions/counter"},
                },
                "greylist": _greylist(),
                "rules": {
                    "type": "array",
                    "description": "Tried from top to bottom; the first that matches decides.",
                    "items": {"$ref": "#/definitions/rule"},
                },
                "default": {
                    **_action(),
                    "description": f"The action if no rule decides, not GREYLIST; DUNNO unless given. {_ACTION_HELP}",
                },
                "tests": {
                    "type": "array",
                    "description": "Run at every load; if a test fails, the old ruleset stays in force.",
                    "items": {"$ref": "#/definitions/test"},
                },
            },
            required=["rules"],
        ),
        "definitions": {
            "list": _list(),
            "dns_list": _dns_list(),
            "counter": _counter(),
            "rule": _rule(),
            "conditions": _object(
                {name: _condition(condition) for name, condition in CONDITIONS.items()}, minProperties=1
            ),
            "test": _test(),
        },
    }


def settings_schema() -> Schema:
    """The schema of policyd.yaml."""
    generated = ADAPTER.json_schema()
    definitions = generated.pop("$defs")
    defaults = ADAPTER.dump_python(Settings(), mode="json")
    for properties, values in (
        (generated["properties"], defaults),
        *((definitions[name]["properties"], defaults[key]) for key, name in _nested(generated["properties"])),
    ):
        for key, value in values.items():
            properties[key]["default"] = value
    # Without quotes, 0660 is a number to an editor.
    generated["properties"]["socket_mode"]["type"] = ["string", "integer"]
    return {
        "$schema": DRAFT,
        "title": "policyd.yaml of policyd",
        "description": "Settings of policyd. Everything has a default.",
        "type": "object",
        "additionalProperties": False,
        "properties": _as_draft7(generated["properties"]),
        "definitions": _as_draft7(definitions),
    }


def _nested(properties: Schema) -> list[tuple[str, str]]:
    """The settings that are groups of settings, each with the name of its definition."""
    return [(key, value["$ref"].rpartition("/")[2]) for key, value in properties.items() if "$ref" in value]


def _as_draft7(node: Any) -> Any:
    """Converts a schema from pydantic to draft-07, without the titles that pydantic makes from names.

    A reference with other keys beside it goes into `allOf`, because draft-07 ignores keys beside a reference.
    """
    match node:
        case {"$ref": reference, **beside}:
            there = {"$ref": reference.replace("#/$defs/", "#/definitions/")}
            return {"allOf": [there], **beside} if beside else there
        case dict():
            return {
                key: _as_draft7(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))
            }
        case list():
            return [_as_draft7(value) for value in node]
        case _:
            return node


# --- rules.yaml -------------------------------------------------------------------------------------------------------


def _object(properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties, **more}


def _one_or_more(scalar: Schema, least: int = 1) -> Schema:
    """One value, or a list of values."""
    return {"anyOf": [scalar, {"type": "array", "minItems": least, "items": scalar}]}


def _mode() -> Schema:
    return {"enum": list(MODES), "default": MODES[0]}


def _in_any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.lower()}]" if letter.isalpha() else letter for letter in word)


def _action() -> Schema:
    blocking = "|".join(_in_any_case(verb) for verb in Verb if verb is not Verb.DUNNO)
    return {
        "type": "string",
        "pattern": rf"^\s*({_in_any_case(Verb.DUNNO)}\s*$|({blocking})(\s|$))",
        "examples": [
            "DUNNO",
            "REJECT 5.7.1 Mail from {client_address} is not accepted here ({id})",
            "DEFER 4.7.25 cannot find your hostname, [{client_address}]",
        ],
    }


def _list() -> Schema:
    values = _one_or_more({"type": _SCALAR})
    file = _object(
        {
            "file": {
                "type": "string",
                "minLength": 1,
                "description": "A file with one entry a line; # and ; begin comments. A path is relative to this file.",
                "examples": ["lists/drop.txt"],
            },
            "allow_empty": {
                **_truth(),
                "description": "true: a file without any entry is not an error.",
            },
            "local": {
                **_truth(),
                "description": "true: this host writes the file, which may be missing and is not part of the hash.",
            },
            "from": _source(SOURCE_KEYS),
        },
        required=["file"],
    )
    return {"description": "Values, or the file that has them.", "anyOf": [*values["anyOf"], file]}


def _truth() -> Schema:
    # An editor that follows YAML 1.2 reads yes and no as text.
    return {"enum": [True, False, *TRUTHS], "default": False}


def _source(keys: Iterable[str]) -> Schema:
    fields: Schema = {
        "url": {
            "type": "string",
            "pattern": "^https?://",
            "description": f"Where policyd fetch gets the file; {KEY} stands for the first line of key_file.",
            "examples": ["https://www.spamhaus.org/drop/drop_v4.json"],
        },
        "key_file": {"type": "string", "minLength": 1, "description": "The file with the key, relative to this file."},
        "format": {"enum": list(SOURCE_FORMATS), "default": "plain", "description": "The format of the download."},
        "every": {
            "type": "string",
            "pattern": "^[0-9]{1,6}[mhdw]$",
            "default": "1d",
            "description": "How often policyd fetch looks for a new copy.",
        },
        "min_entries": {
            "type": ["integer", "string"],
            "pattern": "^[0-9]{1,9}$",
            "default": 1,
            "description": "A copy with fewer entries is refused.",
        },
        "max_change": {
            "type": "string",
            "pattern": "^[0-9]{1,6}%$",
            "default": "50%",
            "description": "Maximum share of entries that are added or removed; a copy with more changes is refused.",
        },
        "never": {
            **_one_or_more({"type": _SCALAR}, least=0),
            "description": "Lists whose networks and names no entry may overlap.",
        },
        "allow_reserved": {
            **_truth(),
            "description": "true: private and reserved networks are allowed.",
        },
    }
    assert set(fields) == set(SOURCE_KEYS)
    return _object(
        {key: fields[key] for key in keys}, required=["url"], description="policyd fetch keeps the file current."
    )


def _dns_list() -> Schema:
    code = {"type": "string", "examples": ["127.0.0.[2..11]"]}
    fields: Schema = {
        "zone": {
            "type": "string",
            "minLength": 1,
            "description": f"The zone to query; {KEY} stands for the first line of key_file.",
            "examples": ["zen.spamhaus.org"],
        },
        "key_file": {
            "type": "string",
            "minLength": 1,
            "description": "The file with the key, relative to this file; other users must not be able to read it.",
        },
        "ask": {"enum": list(Ask), "default": Ask.CLIENT_ADDRESS, "description": "What is looked up in the list."},
        "codes": {**_one_or_more(code), "description": "The answers that mean listed, in Postfix's syntax."},
        "refused": {**_one_or_more(code), "description": "The answers that mean: this list does not answer you."},
        "self_test": {
            "type": _SCALAR,
            "description": "The entry that must be listed, instead of 127.0.0.2 or, for names, TEST; no: the "
            "list is not tested.",
        },
    }
    assert tuple(fields) == DNS_LIST_KEYS
    return _object(fields, required=["zone", "codes"])


def _database(meaning: str) -> Schema:
    file = {
        "type": "string",
        "minLength": 1,
        "description": "A file: MMDB or lines of ranges (CSV or TSV), plain or gzip. A path is relative to this file.",
        "examples": ["asn.mmdb"],
    }
    max_age = {
        "type": "string",
        "default": "60d",
        "description": "Warn when the data are older than this.",
        "examples": ["30d"],
    }
    fields: Schema = {"file": file, "max_age": max_age, "from": _source(DATABASE_SOURCE_KEYS)}
    return {
        "description": f"The database that {meaning}.",
        "anyOf": [file, _object(fields, required=["file"])],
    }


def _rule() -> Schema:
    return _object(
        {
            "name": {
                "type": _SCALAR,
                "pattern": f"^{NAME_PATTERN}$",
                "not": {"const": DEFAULT_RULE},
                "description": "Unique; appears in the decision log.",
            },
            "match": {
                "description": "The rule matches if every condition given holds.",
                "allOf": [{"$ref": "#/definitions/conditions"}],
            },
            "except": {
                "description": "The rule is skipped if any one condition given holds.",
                "allOf": [{"$ref": "#/definitions/conditions"}],
            },
            "action": {**_action(), "description": _ACTION_HELP},
            "mode": {
                **_mode(),
                "description": "observe: a match is written to the decision log, and evaluation goes on below.",
            },
            "expires": {
                "type": "string",
                "pattern": _DATE,
                "description": "From this day on (UTC) the rule is skipped.",
                "examples": ["2027-03-31"],
            },
            "note": {"type": _SCALAR, "description": "For people."},
        },
        required=["name", "match", "action"],
    )


def _condition(condition: ConditionType) -> Schema:
    scalar: Schema = {"type": _SCALAR}
    if condition.form is Form.STATUS:
        scalar = {"anyOf": [{"enum": list(Status)}, {"type": "string", "pattern": r"^\$"}]}
    elif condition.form is Form.YES:
        scalar = {"anyOf": [{"enum": ["yes", "true", True]}, {"type": "string", "pattern": r"^\$"}]}
    elif condition.form is not Form.TEXT:
        scalar["minLength"] = 1
    if condition.form is Form.DNS_LIST:
        return _listed(condition, scalar)
    described: Schema = {"description": f"{condition.summary} One value or a list of values; $name stands for a list."}
    if condition.examples:
        described["examples"] = list(condition.examples)
    elif condition.name == "protocol_state":
        described["examples"] = list(PROTOCOL_STATES)
    return {**described, **_one_or_more(scalar)}


def _listed(condition: ConditionType, name: Schema) -> Schema:
    number = {"type": ["integer", "string"], "pattern": "^[1-9][0-9]?$", "description": "How many must say listed."}
    of = {**_one_or_more(name), "description": "The names of the lists."}
    at_least = _object({"at_least": number, "of": of}, required=["at_least", "of"])
    return {"description": condition.summary, "anyOf": [*of["anyOf"], at_least], "examples": [*condition.examples]}


_DURATION_SCHEMA: Schema = {"type": "string", "pattern": "^[0-9]+[smhd]$", "examples": ["30s", "10m", "2h", "7d"]}


def _counter() -> Schema:
    text: Schema = {"type": "string"}
    fields: dict[str, Schema] = {
        "count": {
            **text,
            "description": "requests: counts requests; distinct ATTRIBUTE: counts its different values.",
            "examples": ["requests", "distinct client_address"],
        },
        "per": {
            **_one_or_more(text),
            "description": "Counts separately for each value of these: attributes, client_network, "
            "sender_domain, recipient_domain, asn.",
        },
        "within": {**_DURATION_SCHEMA, "description": "The length of the sliding window."},
        "where": {"$ref": "#/definitions/conditions"},  # only requests for which these hold are counted
        "answered": {
            "enum": ["any", "DUNNO"],
            "default": "any",
            "description": "DUNNO: counts only requests that were let through.",
        },
    }
    assert tuple(fields) == COUNTER_KEYS
    return _object(fields, required=["count", "per", "within"])


def _greylist() -> Schema:
    fields: dict[str, Schema] = {
        "wait": {
            **_DURATION_SCHEMA,
            "default": "5m",
            "description": "How long a client must wait between its first try and one that passes.",
        },
        "retry_within": {
            **_DURATION_SCHEMA,
            "default": "24h",
            "description": "How long after the first try a second one counts as a retry.",
        },
        "remember": {
            **_DURATION_SCHEMA,
            "default": "35d",
            "description": "How long a network that came back passes without waiting.",
        },
    }
    assert tuple(fields) == GREYLIST_KEYS
    return _object(fields, description="Times of GREYLIST rules.")


def _test() -> Schema:
    text = {"type": _SCALAR}
    attributes: Schema = {name: {**text, "description": f"Postfix's attribute {name}."} for name in ATTRIBUTES}
    attributes["protocol_state"] |= {"default": "RCPT", "examples": list(PROTOCOL_STATES)}
    given = _object(
        {
            **attributes,
            "hostname": {**_one_or_more(text), "description": "A verified name of the client, or several."},
            "claimed": {**_one_or_more(text), "description": "PTR names that do not verify."},
            "reverse_dns": {
                "enum": list(Status),
                "description": "hostname alone means verified, claimed alone mismatch, neither missing.",
            },
            "listed": {**_one_or_more(text), "description": "DNS lists that say listed; all others are not listed."},
            "listed_unknown": {**_one_or_more(text), "description": "DNS lists whose answer is unknown."},
            "asn": {
                **text,
                "description": "The autonomous system that announces the client's address; none unless given.",
            },
            "asn_name": {**text, "description": "The name of that system."},
            "country": {**text, "description": "The country of the client's network; none unless given."},
            "counter": {
                "type": "object",
                "description": "Values of counters by name; other counters that count the request are at 1.",
                "additionalProperties": text,
            },
            "greylist": {"enum": list(Greylisted), "description": "The result of greylisting; new unless given."},
            "date": {
                "type": "string",
                "pattern": _DATE,
                "description": "The date of the request; without it, no rule has expired.",
            },
        },
        description="A request, and what DNS and the databases say about the client.",
    )
    return _object(
        {
            "given": given,
            "expect": {
                "type": "string",
                "pattern": f"^({'|'.join(_in_any_case(verb) for verb in Verb)})$",
                "description": "The action's word.",
                "examples": list(Verb),
            },
            "rule": {**text, "description": f"The rule that must decide; {DEFAULT_RULE} if no rule must match."},
            "text": {**text, "description": "A text that the reply must contain."},
            "observed": {
                **_one_or_more(text, least=0),
                "description": "The observed rules that must have matched, and no others.",
            },
        },
        required=["given", "expect"],
    )
