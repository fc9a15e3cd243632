import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from policyd.daemon.decision_ids import ALPHABET, MAX_CLAIMS, WINDOWS_A_SECOND, DecisionIds

# A time in the past, in Unix seconds and different for each run: no daemon and no other run of these tests uses its
# windows.
LONG_AGO = 1e6 + os.getpid() * 1e4

IDS_IN_WINDOW = 1024

Make = Callable[[float | list[float]], DecisionIds]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[DecisionIds] = []

    def make(now: float | list[float]) -> DecisionIds:
        clock = (lambda: now) if isinstance(now, float) else (lambda: now[0])
        made.append(DecisionIds(clock))
        return made[-1]

    yield make
    for ids in made:
        ids.close()


def test_an_id_is_eight_characters_of_crockfords_base_32(make: Make) -> None:
    for decision_id in islice(make(LONG_AGO), 3 * IDS_IN_WINDOW):
        assert re.fullmatch(f"[{ALPHABET}]{{8}}", decision_id.decode())


def test_ids_increase_and_do_not_repeat(make: Make) -> None:
    ids = [*islice(make(LONG_AGO), 40 * IDS_IN_WINDOW)]
    assert ids == sorted(set(ids))


def test_processes_at_the_same_time_share_no_id(make: Make) -> None:
    first, second = make(LONG_AGO), make(LONG_AGO)
    pairs = [(next(first), next(second)) for _ in range(5 * IDS_IN_WINDOW)]
    assert len({decision_id for pair in pairs for decision_id in pair}) == 10 * IDS_IN_WINDOW


def test_a_process_that_starts_a_second_later_repeats_none_of_65536_ids(make: Make) -> None:
    earlier = make(LONG_AGO)
    ids = {*islice(earlier, WINDOWS_A_SECOND * IDS_IN_WINDOW)}  # 65,536
    earlier.close()
    assert ids.isdisjoint(islice(make(LONG_AGO + 1), IDS_IN_WINDOW))


def test_a_process_repeats_no_id_after_its_clock_is_set_back(make: Make) -> None:
    now = [LONG_AGO]
    ids = make(now)
    before = {*islice(ids, 3 * IDS_IN_WINDOW)}
    now[0] -= 3600
    assert before.isdisjoint(islice(ids, 3 * IDS_IN_WINDOW))


def test_claims_are_bounded_and_released_when_their_window_has_passed(make: Make) -> None:
    now = [LONG_AGO]
    ids = make(now)
    for _ in islice(ids, 100 * IDS_IN_WINDOW):
        pass
    assert len(ids._claims) == MAX_CLAIMS
    now[0] += 3600
    for _ in islice(ids, IDS_IN_WINDOW + 1):
        pass
    assert len(ids._claims) <= 2


def test_without_a_descriptor_there_are_still_ids_and_one_warning(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ids = make(LONG_AGO)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", no_socket)
        without = [*islice(ids, 3 * IDS_IN_WINDOW)]
    assert without == sorted(set(without))
    assert [record.getMessage() for record in caplog.records] == [
        "cannot claim decision ids (Too many open files); another process could use the same ones"
    ]
    assert next(ids) > without[-1]
    assert len(ids._claims) == 1
