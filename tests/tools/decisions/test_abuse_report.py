from __future__ import annotations

import datetime
import email
import email.policy
from email.message import Message
from typing import TYPE_CHECKING, Any

from policyd.decision_log.reader import LoggedDecision
from policyd.tools.decisions import abuse_report as report_module
from policyd.tools.decisions.abuse_report import Incident, as_message, collect
from policyd.tools.decisions.networks import parse_networks
from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from email.message import EmailMessage
    from pathlib import Path

    import pytest

NOW = datetime.datetime(2026, 11, 22, 8, 0, tzinfo=datetime.UTC)

LINES = (
    line(id="A", client="h1.vs.sakura.ne.jp[49.212.201.1]", sender="bounce+joe=Here.example@list.example"),
    line(id="B", client="h2.vs.sakura.ne.jp[49.212.201.2]"),
    line(id="C", client="h2.vs.sakura.ne.jp[49.212.201.2]", more="sasl_username=x"),
    line("DUNNO", id="D", client="h3.vs.sakura.ne.jp[49.212.201.3]"),
    line("DUNNO would=REJECT", id="E", client="h4.vs.sakura.ne.jp[49.212.201.4]"),
    line("DEFER", id="F", client="unknown[49.212.201.5]").replace("rdns=verified", "claimed=X.vs.sakura.ne.jp"),
    line(id="G", client="vs.sakura.ne.jp[198.51.100.1]"),
    line(id="H", client="badvs.sakura.ne.jp[198.51.100.2]", time="2026-10-01T00:00:00Z"),
)  # fmt: skip


def incident_of(folder: Path, *lines: str, **options: Any) -> Incident:
    log = folder / "decisions.log"
    log.write_text("".join(lines or (text.replace("c@d.example", "joe@here.example") for text in LINES)))
    return collect([str(log)], **options)


def quoted(incident: Incident) -> list[LoggedDecision]:
    return [found.source for found in incident.quoted if isinstance(found.source, LoggedDecision)]


def ids(incident: Incident) -> str:
    return "".join(decision.id.decode() for decision in quoted(incident))


def test_mails_refused_from_a_suffix_are_reported(tmp_path: Path) -> None:
    assert ids(incident_of(tmp_path, suffix="VS.Sakura.ne.jp.")) == "ABCEFG"
    assert ids(incident_of(tmp_path, suffix=".vs.sakura.ne.jp")) == "ABCEF"


def test_mails_refused_from_a_network_are_reported(tmp_path: Path) -> None:
    (network,) = parse_networks(["49.212.201.0/30"])
    assert ids(incident_of(tmp_path, network=network)) == "ABC"


def test_since_leaves_out_earlier_mails(tmp_path: Path) -> None:
    since = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC).timestamp()
    assert ids(incident_of(tmp_path, suffix="sakura.ne.jp", since=since)) == "ABCEFG"
    assert ids(incident_of(tmp_path, suffix="sakura.ne.jp")) == "ABCEFGH"


def message_of(incident: Incident) -> EmailMessage:
    text = as_message(incident, "postmaster@here.example", "abuse@sakura.example", NOW).as_string()
    parsed = email.message_from_string(text, policy=email.policy.default)
    assert not parsed.defects
    return parsed


def test_the_report_has_the_form_of_rfc_5965(tmp_path: Path) -> None:
    message = message_of(incident_of(tmp_path, suffix="vs.sakura.ne.jp"))
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "feedback-report"
    assert (message["From"], message["To"]) == ("postmaster@here.example", "abuse@sakura.example")
    assert message["Subject"] == "Abuse report: 6 refused mails from vs.sakura.ne.jp"
    assert message["Date"].datetime == NOW
    text, feedback, header = message.iter_parts()
    assert [part.get_content_type() for part in (text, feedback, header)] == [
        "text/plain",
        "message/feedback-report",
        "text/rfc822-headers",
    ]
    content = feedback.get_payload(0)
    assert isinstance(content, Message)
    fields = email.message_from_string(content.as_string())
    assert list(fields.keys())[:3] == ["Feedback-Type", "User-Agent", "Version"]
    assert (fields["Feedback-Type"], fields["Version"]) == ("abuse", "1")
    assert (fields["Source-IP"], fields["Incidents"]) == ("49.212.201.2", "6")
    assert fields["Arrival-Date"] == "Sat, 21 Nov 2026 17:16:00 +0000"
    assert header.get_content().startswith("Return-Path: <a@b.example>\nReceived: from x.example (vs.sakura.ne.jp [198")


def test_no_line_of_the_message_is_too_long_for_a_mail(tmp_path: Path) -> None:
    incident = incident_of(tmp_path, line(sender=f"{'x' * 1500}@b.example"), suffix="vs.sakura.ne.jp")
    text = as_message(incident, "postmaster@here.example", None, NOW).as_string()
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 998  # RFC 5322 section 2.1.1
    assert "x" * 1500 in message_of(incident).get_body().get_content()  # type: ignore[union-attr] # it has a body


def test_recipients_are_hidden_even_in_bounce_addresses(tmp_path: Path) -> None:
    incident = incident_of(tmp_path, suffix="vs.sakura.ne.jp")
    text = message_of(incident).as_string().replace("=3D", "=").replace("=\n", "")
    for written in ("joe@here.example", "joe=here.example", "joe"):
        assert written not in text.lower()
    assert "bounce+hidden@list.example" in text
    assert "to=<hidden>" in text
    assert "recipients are hidden" in text


def test_recipients_are_shown_on_request(tmp_path: Path) -> None:
    text = message_of(incident_of(tmp_path, suffix="vs.sakura.ne.jp", show_recipients=True)).as_string()
    text = text.replace("=3D", "=").replace("=\n", "")
    assert "to=<joe@here.example>" in text
    assert "bounce+joe=Here.example@list.example" in text
    assert "hidden" not in text


def test_a_recipient_in_a_reply_is_hidden(tmp_path: Path) -> None:
    incident = incident_of(tmp_path, line(more='reply="no mail for c@d.example"'), suffix="vs.sakura.ne.jp")
    assert quoted(incident)[0].reply == b"no mail for hidden"


def test_quoted_lines_and_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "MAX_QUOTED", 3)
    monkeypatch.setattr(report_module, "_MAX_COUNTED", 5)
    incident = incident_of(
        tmp_path,
        *(line(id=f"N{n}", client=f"h{n}.vs.sakura.ne.jp[192.0.2.{n}]") for n in range(50)),
        suffix="vs.sakura.ne.jp",
    )
    assert (incident.count, len(incident.clients)) == (50, 5)
    assert len(incident.quoted) <= 6
    text = message_of(incident).as_string()
    assert "The last 3 of them" in text
    assert "id=3DN49" in text
    assert "id=3DN46" not in text
