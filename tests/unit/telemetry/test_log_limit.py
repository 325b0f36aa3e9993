"""What repeats itself is logged a bounded number of times, and the log says how often it happened."""

import logging
import time

import pytest

from shared.telemetry.log_limit import LogLimit

Line = tuple[str, int | None]


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), getattr(record, "left_out", None)))


@pytest.fixture
def kept() -> Kept:
    handler = Kept()
    handler.addFilter(LogLimit(handler, lines_at_once=3, lines_per_second=20))
    return handler


@pytest.fixture
def logger(kept: Kept) -> logging.Logger:
    logger = logging.Logger("tests")
    logger.addHandler(kept)
    return logger


def wait_for(kept: Kept, count: int) -> None:
    until = time.monotonic() + 5
    while len(kept.lines) < count and time.monotonic() < until:
        time.sleep(0.005)


def test_the_newest_of_the_lines_that_were_left_out_says_how_many(logger: logging.Logger, kept: Kept) -> None:
    for number in range(1000):
        logger.warning("bad request %d", number)
    assert kept.lines[:3] == [("bad request 0", None), ("bad request 1", None), ("bad request 2", None)]
    wait_for(kept, 4)
    # On a busy machine the thousand lines may take longer than the pause.
    late = kept.lines[3:]
    assert late[-1][0] == "bad request 999"
    assert sum((left_out or 0) + 1 for _, left_out in late) == 997


def test_another_cause_is_not_affected(logger: logging.Logger, kept: Kept) -> None:
    for number in range(4):
        logger.warning("bad request %d", number)
        logger.error("bad request %d", number)
        logger.warning("something else")
        logger.debug("for a developer")
    assert [text for text, _ in kept.lines if text.startswith("bad")] == [
        f"bad request {number}" for number in range(3) for _ in range(2)
    ]
    assert len(kept.lines) >= 3 * 3


def test_after_a_pause_lines_are_logged_at_once_again(logger: logging.Logger, kept: Kept) -> None:
    for pause in (0, 0, 0, 0, 0.3, 0):
        time.sleep(pause)
        logger.warning("bad request")
    assert kept.lines == [("bad request", None)] * 6
