"""Actions: words, codes and the text's template. Refused actions are in tests/bad/action-*.yaml."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.actions import PLACEHOLDERS, ActionError, parse_action
from policyd.core.ruleset import Action, Verb


@pytest.mark.parametrize(
    ("written", "action"),
    [
        ("DUNNO", Action(Verb.DUNNO)),
        ("dunno", Action(Verb.DUNNO)),
        ("Reject", Action(Verb.REJECT)),
        ("REJECT 5.7.1", Action(Verb.REJECT, "5.7.1")),
        ("REJECT 5.7.1 Access denied", Action(Verb.REJECT, "5.7.1", ("Access denied",))),
        ("REJECT go away", Action(Verb.REJECT, "", ("go away",))),
        ("  defer   4.7.25   a  b  ", Action(Verb.DEFER, "4.7.25", ("a  b",))),
        ("DEFER\t4.7.1\tlater", Action(Verb.DEFER, "4.7.1", ("later",))),
        ("Defer_If_Permit 4.0.0 x", Action(Verb.DEFER_IF_PERMIT, "4.0.0", ("x",))),
        ("REJECT 192.0.2.1 is listed", Action(Verb.REJECT, "", ("192.0.2.1 is listed",))),
        ("REJECT 5.999.999 x", Action(Verb.REJECT, "5.999.999", ("x",))),
        ("REJECT 5500 reasons", Action(Verb.REJECT, "", ("5500 reasons",))),
        ("REJECT {id}", Action(Verb.REJECT, "", ("", "id", ""))),
        ("REJECT a {client_address} b {rule}", Action(Verb.REJECT, "", ("a ", "client_address", " b ", "rule", ""))),
        ("REJECT {{id}} {{{id}}} }}{{", Action(Verb.REJECT, "", ("{id} {", "id", "} }{"))),
    ],
)
def test_an_action_is_parsed(written: str, action: Action) -> None:
    assert parse_action(written) == action


@pytest.mark.parametrize("written", [f"REJECT 5.7.{'1' * 4000} x", f"REJECT {{r{'u' * 4000}le}}"])
def test_a_refused_action_is_quoted_in_part(written: str) -> None:
    with pytest.raises(ActionError) as refused:
        parse_action(written)
    assert len(str(refused.value)) < 300


@given(st.text(max_size=60))
def test_any_text_is_an_action_or_an_error(written: str) -> None:
    try:
        action = parse_action(written)
    except ActionError as error:
        assert str(error)
        return
    assert len(action.text) % 2 == 1 or not action.text
    assert set(action.text[1::2]) <= set(PLACEHOLDERS)
    assert all(" " <= letter <= "~" for piece in action.text for letter in piece)


@given(st.lists(st.sampled_from(PLACEHOLDERS) | st.text("ab{} .", min_size=1), max_size=6))
def test_templates_are_split_into_text_and_placeholders(parts: list[str]) -> None:
    text = "x" + "".join(f"{{{p}}}" if p in PLACEHOLDERS else p.replace("{", "{{").replace("}", "}}") for p in parts)
    action = parse_action(f"REJECT {text.strip()}")
    shown = "".join(piece if place % 2 == 0 else f"<{piece}>" for place, piece in enumerate(action.text))
    assert shown == ("x" + "".join(f"<{p}>" if p in PLACEHOLDERS else p for p in parts)).strip()
