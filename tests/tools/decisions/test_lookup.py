from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policyd.core.identity import Identity, Reason, Status
from policyd.decision_log.reader import parse
from policyd.tools.decisions.lookup import find, identity_of, ids_in, request_of
from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("written", ["0A1B2C3D", "0a1b2c3d", " OAIB2C3D ", "0AlB2C3D"])
def test_an_id_is_found_as_people_write_it(tmp_path: Path, written: str) -> None:
    log = tmp_path / "decisions.log"
    log.write_text(line() + line(id="0A1B2C3D", rule="wanted"))
    assert [decision.rule for decision in find(ids_in(written), [str(log)])] == [b"wanted"]


@pytest.mark.parametrize(
    ("rdns", "client", "identity"),
    [
        ("rdns=verified", "a.example[192.0.2.1]", Identity(Status.VERIFIED, (b"a.example",))),
        ("", "a.example[192.0.2.1]", Identity(Status.VERIFIED, (b"a.example",))),
        ("claimed=b,c rdns=mismatch", "unknown[192.0.2.1]", Identity(Status.MISMATCH, (), (b"b", b"c"))),
        ("rdns=missing", "unknown[192.0.2.1]", Identity(Status.MISSING)),
        (
            "rdns=error dns_error=timeout",
            "unknown[192.0.2.1]",
            Identity(Status.ERROR, (), (), Reason.TIMEOUT, names_known=False),
        ),
        (
            "claimed=b rdns=error dns_error=odd",
            "unknown[192.0.2.1]",
            Identity(Status.ERROR, (), (b"b",), Reason.SERVFAIL),
        ),
        ("", "unknown[192.0.2.1]", None),
    ],
)
def test_the_clients_identity_is_taken_from_the_log(rdns: str, client: str, identity: Identity | None) -> None:
    decision = parse(line(client=client).replace("rdns=verified", rdns).encode())
    assert decision is not None
    assert identity_of(decision) == identity


def test_the_request_has_the_attributes_of_the_log() -> None:
    decision = parse(line(more="sasl_username=joe instance=1.2 queue_id=ABC").encode())
    assert decision is not None
    assert request_of(decision).attributes() == {
        "request": b"smtpd_access_policy",
        "protocol_state": b"RCPT",
        "client_address": b"49.212.201.177",
        "client_name": b"os3-1-2.vs.sakura.ne.jp",
        "reverse_client_name": b"os3-1-2.vs.sakura.ne.jp",
        "helo_name": b"x.example",
        "sender": b"a@b.example",
        "recipient": b"c@d.example",
        "sasl_username": b"joe",
        "instance": b"1.2",
        "queue_id": b"ABC",
    }
