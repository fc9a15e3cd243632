"""The DNS lists of a saved `postconf -n` become rules."""

from __future__ import annotations

import pytest

from policyd.exchange.importing import ImportFailedError, ImportForm, ImportOptions
from tests.exchange.answers import import_text, ruleset


def imported_rules(text: str) -> tuple[list[tuple[object, ...]], list[str], list[str]]:
    """Returns the imported rules, the losses and the notes.

    A rule consists of its lists, the number of them that must match, its exceptions, its verb and whether it is
    observed.
    """
    result = import_text("postconf", text)
    found: list[tuple[object, ...]] = []
    for rule in ruleset(result.text).rules:
        (match,) = rule.match
        excepted = [value for condition in rule.exceptions for value in condition.values]
        found.append((list(match.values), match.at_least, excepted, str(rule.action.verb), rule.observe))
    losses = [loss.reason for loss in result.report.losses]
    return found, losses, [note.reason for note in result.report.notes]


def test_a_permit_exempts_from_the_restrictions_after_it_in_the_same_list() -> None:
    text = (
        "smtpd_client_restrictions = reject_rbl_client a.example=127.0.0.2, permit_dnswl_client w.example=127.0.0.2,\n"
        "  reject_rbl_client b.example=127.0.0.[2..9]\n"
        "smtpd_recipient_restrictions = reject_rbl_client c.example=127.0.0.2\n"
    )
    found, losses, _ = imported_rules(text)
    assert found == [
        (["a.example"], 1, [], "REJECT", False),
        (["b.example"], 1, ["w.example"], "REJECT", False),
        (["c.example"], 1, [], "REJECT", False),
    ]
    assert losses == []


def test_each_restriction_asks_for_its_own_name_and_warn_if_reject_observes() -> None:
    text = (
        "maps_rbl_reject_code = 450\n"
        "smtpd_helo_restrictions = reject_rhsbl_helo d.example=127.0.1.2, warn_if_reject reject_rhsbl_sender "
        "d.example=127.0.1.2 reject_rhsbl_reverse_client d.example=127.0.1.2 reject_rhsbl_recipient d.example\n"
    )
    result = import_text("postconf", text)
    for ask in ("helo_name", "sender_domain", "hostname"):
        assert f"ask: {ask}, codes: '127.0.1.2'" in result.text
    found, losses, _ = imported_rules(text)
    assert [rule[3:] for rule in found] == [("DEFER", False), ("DEFER", True), ("DEFER", False)]
    assert losses == ["reject_rhsbl_recipient d.example: policyd asks no list about recipients"]


def test_a_list_without_a_filter_gets_codes_and_a_note() -> None:
    text = "smtpd_client_restrictions = reject_rbl_client a.example\n"
    assert "codes: '127.0.[0..255].[2..254]'" in import_text("postconf", text).text
    assert any("without a filter" in note for note in imported_rules(text)[2])


def test_dns_lists_cannot_become_a_list_file() -> None:
    text = "smtpd_client_restrictions = reject_rbl_client a.example=127.0.0.2\n"
    with pytest.raises(ImportFailedError, match="asks DNS lists, which a list file cannot define; write rules"):
        import_text("postconf", text, ImportOptions(shape=ImportForm.LIST))


@pytest.mark.parametrize("code", ["254.0.0.2", "128.0.[0..255].[1..3]", "127.255.255.[0..255]"])
def test_a_filter_that_no_answer_can_match_is_reported(code: str) -> None:
    text = f"smtpd_client_restrictions = reject_rbl_client a.example={code}, reject_rbl_client b.example=127.0.0.2\n"
    found, losses, _ = imported_rules(text)
    assert [rule[0] for rule in found] == [["b.example"]]
    why = "no answer of a list can match the filter: answers are in 127.0.0.0/8, and are not refusals"
    assert losses == [f"reject_rbl_client a.example={code}: {why}"]


@pytest.mark.parametrize(
    ("sites", "threshold", "wanted"),
    [
        ("a.example=127.0.0.2", 1, [(["a.example"], 1, [])]),
        ("a.example=127.0.0.2 b.example=127.0.0.2", 1, [(["a.example", "b.example"], 1, [])]),
        ("a.example=127.0.0.2*2 b.example=127.0.0.2*2 c.example=127.0.0.2*2", 3, [
            (["a.example", "b.example", "c.example"], 2, []),
        ]),
        ("a.example=127.0.0.2*3 b.example=127.0.0.2*2 c.example=127.0.0.2*2", 3, [
            (["a.example"], 1, []), (["b.example", "c.example"], 2, []),
        ]),
        ("a.example=127.0.0.2*3 w.example=127.0.0.2*-9", 3, [(["a.example"], 1, ["w.example"])]),
        ("a.example=127.0.0.2*3 b.example=127.0.0.2*1", 3, [(["a.example"], 1, [])]),
    ],
)  # fmt: skip
def test_weights_become_at_least_if_that_is_equivalent(
    sites: str, threshold: int, wanted: list[tuple[list[str], int, list[str]]]
) -> None:
    text = (
        f"postscreen_dnsbl_sites = {sites}\npostscreen_dnsbl_threshold = {threshold}\n"
        "postscreen_dnsbl_action = enforce\n"
    )
    found, losses, _ = imported_rules(text)
    assert [rule[:3] for rule in found] == wanted
    assert not any(rule[4] for rule in found)
    assert losses == []


@pytest.mark.parametrize(
    "sites",
    [
        "a.example=127.0.0.2*2 b.example=127.0.0.2*1 c.example=127.0.0.2*1",
        "a.example=127.0.0.2*3 b.example=127.0.0.2*3 w.example=127.0.0.2*-1",
        "a.example=127.0.0.2*x",
        "a.example=127.0.0.300*2",
    ],
)
def test_sites_that_rules_cannot_express_are_reported(sites: str) -> None:
    text = f"postscreen_dnsbl_sites = {sites}\npostscreen_dnsbl_threshold = 3\n"
    text += "smtpd_client_restrictions = reject_rbl_client z.example=127.0.0.2\n"
    found, losses, _ = imported_rules(text)
    assert [rule[0] for rule in found] == [["z.example"]]
    assert len(losses) == 1


def test_the_rules_only_observe_if_postscreen_ignores_its_lists() -> None:
    found, _, notes = imported_rules("postscreen_dnsbl_sites = a.example=127.0.0.2\n")
    assert found[0][4] is True
    assert any("only observe" in note for note in notes)


def test_a_key_appears_in_neither_rules_nor_report() -> None:
    text = (
        "smtpd_client_restrictions = reject_rbl_client S3cretKey.zen.dq.spamhaus.net=127.0.0.[2..11] "
        "reject_rbl_client S3cretKey.zen.dq.spamhaus.net=nonsense "
        "reject_rhsbl_recipient S3cretKey.dbl.dq.spamhaus.net\n"
    )
    result = import_text("postconf", text)
    assert "zone: '{key}.zen.dq.spamhaus.net', key_file: zen.dq.spamhaus.net.key" in result.text
    assert len(result.report.losses) == 2
    assert "s3cretkey" not in result.text.lower()
    assert all("s3cretkey" not in f"{loss.line}{loss.reason}".lower() for loss in result.report.losses)
    assert all("s3cretkey" not in f"{note.lines}{note.reason}".lower() for note in result.report.notes)


def test_parameters_are_replaced_by_their_values() -> None:
    text = "my_list = a.example=127.0.0.2\n"
    text += "smtpd_client_restrictions = reject_rbl_client $my_list, reject_rbl_client $gone\n"
    found, losses, _ = imported_rules(text)
    assert [rule[0] for rule in found] == [["a.example"]]
    assert len(losses) == 1
