"""`replay` with greylisting: the number of mails that would have waited, the waits, and mails that never came back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.tools.replay.output import replay_as_json
from policyd.tools.replay.replay import Replay, replay
from tests.tools.replay.test_replay import TODAY, log_of, mail, printed, ruleset_of

if TYPE_CHECKING:
    from pathlib import Path

RULES = """
greylist: {wait: 5m, retry_within: 4h}
rules:
  - {name: friend, match: {sender_domain: friend.example}, action: DUNNO}
  - {name: grey, match: {reverse_dns: [verified, missing, mismatch]}, action: GREYLIST}
"""

REFUSED = "450 4.7.1 <c@d.example>: Recipient address rejected: Greylisted"


def at(time: str, lines: str) -> str:
    """Returns a mail at another time. Ends the session of a refused mail, so the parser waits for no more lines."""
    if "NOQUEUE" in lines:
        head, _, rest = lines.partition(": ")
        client = rest.partition(" from ")[2].partition(":")[0]
        lines += f"{head}: disconnect from {client}\n"
    return lines.replace("10:00:00", time)


def replayed(folder: Path, *mails: str) -> Replay:
    return replay(ruleset_of(folder, RULES), log_of(folder, *mails), TODAY)


def test_all_tries_with_the_same_sender_and_recipient_count_as_a_single_mail(tmp_path: Path) -> None:
    pool, other = "mail{}.pool.example[192.0.{}.25]", "unknown[198.51.100.7]"
    found = replayed(
        tmp_path,
        at("10:00:00", mail(1, pool.format(1, 1), sender="a@pool.example", status=REFUSED)),
        at("10:01:00", mail(2, pool.format(2, 2), sender="a@pool.example", status=REFUSED)),
        at("10:07:00", mail(3, pool.format(3, 3), sender="a@pool.example")),  # waited 7 minutes
        at("10:08:00", mail(4, pool.format(3, 3), sender="b@pool.example")),  # from a network that has passed
        at("10:09:00", mail(5, "mx.at.example[203.0.113.9]", sender="c@at.example")),  # delivered at once
        at("10:10:00", mail(6, other, sender="spam@x.example", status=REFUSED)),
        at("10:10:09", mail(7, other, sender="spam@x.example", status=REFUSED)),  # too early, and never again
        at("10:11:00", mail(8, other, sender="me@friend.example")),
    )
    assert replay_as_json(found)["greylisting"] == {
        "deferred": 3,
        "delivered": 2,
        "longest_wait_seconds": 420,
        "never_came_back": 1,
        "uncounted": False,  # whether there were more mails than could be followed
    }
    text = printed(found)
    assert "greylisting: 2 delivered mails would have waited, 420 s at most; 1 mail never came back" in text


def test_an_unknown_wait_is_reported_as_unknown(tmp_path: Path) -> None:
    text = printed(replayed(tmp_path, mail(1, "unknown[198.51.100.7]")))
    assert "1 delivered mail would have waited, for a time that the log does not show; 0 mails never came back" in text


def test_each_recipient_of_a_mail_waits_separately(tmp_path: Path) -> None:
    found = replayed(tmp_path, mail(1, "unknown[198.51.100.7]", to="c@d.example e@d.example"))
    assert replay_as_json(found)["greylisting"]["deferred"] == 2


def test_without_greylisting_there_is_no_line_about_it(tmp_path: Path) -> None:
    rules = ruleset_of(tmp_path, "rules: []")
    found = replay(rules, log_of(tmp_path, mail(1, "unknown[198.51.100.7]")), TODAY)
    assert replay_as_json(found)["greylisting"] is None
    assert "greylisting" not in printed(found)
