import logging
import os
import re
from collections.abc import Iterator

import pytest

from policyd.daemon.operational_log import OperationalLog, excerpt


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def log_through(handler: OperationalLog, level: int, message: str, *arguments: object, exc_info: bool = False) -> None:
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.log(level, message, *arguments, exc_info=exc_info)


def test_a_line_has_time_name_level_and_message(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log_through(OperationalLog({}, writer), logging.WARNING, "rule %s", "x")
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
    assert re.fullmatch(rf"{time} policyd\[{os.getpid()}\]: warning: rule x\n", os.read(reader, 1000).decode())


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)]
)
def test_lines_for_the_journal_have_a_priority_and_no_time(pipe: tuple[int, int], level: int, priority: int) -> None:
    reader, writer = pipe
    status = os.fstat(writer)
    log_through(OperationalLog({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, writer), level, "message")
    assert os.read(reader, 1000).decode() == f"<{priority}>message\n"


def test_lines_for_another_stream_have_a_time(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log_through(OperationalLog({"JOURNAL_STREAM": "1:1"}, writer), logging.INFO, "message")
    assert b"info: message\n" in os.read(reader, 1000)


def test_each_line_of_a_traceback_is_a_line_of_the_log(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    status = os.fstat(writer)
    try:
        int("two\nlines")
    except ValueError:
        handler = OperationalLog({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, writer)
        log_through(handler, logging.ERROR, "a bug", exc_info=True)
    lines = os.read(reader, 10000).decode().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_control_characters_are_escaped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log_through(OperationalLog({}, writer), logging.INFO, "%s", "a\nb\x1b[2J\u202eé\udcff\x7f")
    line = os.read(reader, 1000).decode()
    assert line.endswith("info: a\\nb\\x1b[2J\\u202eé\\udcff\\x7f\n")


def test_lines_lost_to_a_slow_reader_are_counted(pipe: tuple[int, int]) -> None:
    handler = OperationalLog({}, pipe[1])
    for _ in range(200):
        log_through(handler, logging.INFO, "x" * 1000)
    assert 100 < handler.lost < 200


def test_client_text_in_messages_is_short_and_ascii() -> None:
    assert excerpt(b"plain") == "plain"
    assert excerpt("é\n\x00".encode()) == "\\xc3\\xa9\\n\\x00"
    assert excerpt(b"x" * 100, 10) == "xxxxxxxxxx..."
