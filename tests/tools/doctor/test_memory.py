"""`policyd doctor` and memory: a store that answers, refuses or is away, and counters of users that never count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load_settings
from policyd.config.settings import Settings
from policyd.tools.doctor.diagnosis import diagnose
from policyd.tools.doctor.memory import check_memory
from policyd.tools.doctor.postfix_config import read_postfix
from tests.requirements import require
from tests.state.servers import PROGRAMS, StateServer
from tests.tools.doctor.test_doctor import inet_daemon, queue

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.tools.doctor.diagnosis import Diagnosis

__all__ = ["queue"]  # a fixture

needs_server = pytest.mark.skipif(not PROGRAMS, reason="needs Debian's redis-server or valkey-server")


def settings(server: StateServer, credentials: Path | None = None) -> Settings:
    path = server.folder / "policyd.yaml"
    more = f"state_credentials: {credentials}\n" if credentials is not None else ""
    path.write_text(f"state: unix:{server.socket}\n{more}rules: rules.yaml\n")
    return load_settings(str(path))


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_password_that_the_store_refuses_is_reported_and_never_shown(tmp_path: Path, program: str) -> None:
    server = StateServer(tmp_path, program)
    credentials = tmp_path / "credentials"
    try:
        findings, right = check_memory(settings(server))
        assert findings == ()
        assert right[0].startswith(f"policyd.yaml: state: unix:{server.socket} accepts writes, after ")
        server.command("config", "set", "requirepass", "right")
        credentials.write_text("hunter2\n")
        credentials.chmod(0o600)
        (missing,), _ = check_memory(settings(server))
        (refused,), right = check_memory(settings(server, credentials))
        assert "it wants a password; set state_credentials" in missing.what
        assert "it refuses the user or password of state_credentials" in refused.what
        assert "hunter2" not in str(refused)
        assert right == ()
        credentials.write_text("right\n")
        credentials.chmod(0o644)
        (open_to_all,), right = check_memory(settings(server, credentials))
        assert open_to_all.what == f"{credentials} can be read by others"
        assert len(right) == 1
    finally:
        server.stop()
    (away,), _ = check_memory(settings(server))
    assert "mail goes on" in away.write


def test_without_a_store_nothing_is_asked() -> None:
    assert check_memory(Settings()) == ((), ())


SUBMISSION = "submission inet n - n - - smtpd -o smtpd_sasl_auth_enable=yes -o smtpd_recipient_restrictions="


def diagnosis_of(folder: Path, master: str, *, user_counters: tuple[str, ...] = ("mails-of-user",)) -> Diagnosis:
    """Returns doctor's diagnosis of a Postfix that asks policyd at port 25 after permit_sasl_authenticated."""
    require("postconf")
    with inet_daemon() as address:
        asking = f"check_policy_service,{address}"
        main = (
            "compatibility_level = 3.6\nsmtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, "
            f"reject_unauth_destination, check_policy_service {{ {address}, timeout=10s, default_action=DUNNO }}\n"
        )
        (folder / "main.cf").write_text(main)
        (folder / "master.cf").write_text("smtp inet n - n - - smtpd\n" + master.replace("ASK", asking))
        return diagnose(read_postfix(str(folder)), Settings(listen=(address,)), user_counters=user_counters)


@pytest.mark.parametrize(
    "master",
    ["", f"{SUBMISSION}permit_sasl_authenticated,reject\n", f"{SUBMISSION}permit_sasl_authenticated,ASK,reject\n"],
    ids=["no submission service", "submission never asks", "submission asks after it lets users through"],
)
def test_a_counter_of_users_that_never_counts_is_reported(tmp_path: Path, master: str) -> None:
    finding = next(finding for finding in diagnosis_of(tmp_path, master).findings if "counter" in finding.where)
    assert finding.where == "rules.yaml: counter mails-of-user"
    assert "no service asks policyd about authenticated users" in finding.what
    assert "permit_sasl_authenticated, reject" in finding.write
    assert not any("counter" in finding.where for finding in diagnosis_of(tmp_path, master, user_counters=()).findings)


def test_a_counter_of_users_counts_if_submission_asks_before_it_lets_users_through(tmp_path: Path) -> None:
    master = f"{SUBMISSION}ASK,permit_sasl_authenticated,reject\n"
    diagnosis = diagnosis_of(tmp_path, master)
    assert not [
        finding for finding in diagnosis.findings if "counter" in finding.where or "judged as strangers" in finding.what
    ]
    assert any("authenticated users, whom counter mails-of-user counts" in line for line in diagnosis.right)
    without = diagnosis_of(tmp_path, master, user_counters=())
    assert any("judged as strangers" in finding.what for finding in without.findings)
