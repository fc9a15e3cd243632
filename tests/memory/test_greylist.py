"""Judging the tries of greylisted clients."""

from policyd.core.facts import Greylisted
from policyd.memory.definitions import GreylistSettings
from policyd.memory.greylist import judge

SETTINGS = GreylistSettings(wait=300, retry_within=3600, remember=86400)
KEYS = (b"network", b"domain")
NOW = 1_000_000.0


def test_an_early_try_is_stored_under_a_name_whose_first_try_is_too_old() -> None:
    verdict = judge(SETTINGS, NOW, KEYS, (NOW - 60, NOW - 4000), None)
    assert (verdict.state, verdict.first_tries) == (Greylisted.EARLY, ((b"domain", NOW - 60),))


def test_an_early_try_changes_nothing_if_both_names_have_a_first_try() -> None:
    verdict = judge(SETTINGS, NOW, KEYS, (NOW - 60, NOW - 120), None)
    assert (verdict.state, verdict.first_tries) == (Greylisted.EARLY, ())


def test_first_tries_that_are_all_too_old_begin_the_wait_again() -> None:
    verdict = judge(SETTINGS, NOW, KEYS, (NOW - 3601, None), None)
    assert (verdict.state, verdict.first_tries) == (Greylisted.NEW, ((b"network", NOW), (b"domain", NOW)))
