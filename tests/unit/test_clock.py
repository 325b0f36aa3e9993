"""The clock that all workers share."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from worker.clock import Clock

HOUR = 3600.0


class Machine:
    """Redis, whose time is what the machine's monotonic clock says plus `redis_ahead`; an answer takes `seconds`."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.own_ahead = self.redis_ahead = 1_790_000_000.0
        self.seconds = 0.002

    async def time(self) -> tuple[int, int]:
        self.monotonic += self.seconds / 2
        answer = divmod(round((self.monotonic + self.redis_ahead) * 1_000_000), 1_000_000)
        self.monotonic += self.seconds / 2
        return answer


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    machine = Machine()
    monkeypatch.setattr(time, "monotonic", lambda: machine.monotonic)
    monkeypatch.setattr(time, "time", lambda: machine.monotonic + machine.own_ahead)
    yield machine
    monkeypatch.undo()


async def test_the_time_is_that_of_redis_whatever_becomes_of_our_own_clock(machine: Any) -> None:
    machine.own_ahead += HOUR
    clock = Clock()
    await clock.synchronize(machine)
    for step in (HOUR, -3 * HOUR, 0.0):
        machine.own_ahead += step
        machine.monotonic += 10
        assert clock.now().timestamp() == pytest.approx(machine.monotonic + machine.redis_ahead, abs=0.001)
    assert clock.own_offset_seconds() == pytest.approx(-HOUR, abs=0.001)
    assert clock.started_at.timestamp() == pytest.approx(1000 + machine.redis_ahead, abs=0.001)


async def test_a_slow_answer_is_not_believed_if_there_was_a_quick_one(machine: Any) -> None:
    clock = Clock()
    machine.seconds = 4.0
    await clock.synchronize(machine)
    assert clock.synchronized.is_set()
    machine.seconds, machine.redis_ahead = 0.002, machine.redis_ahead + 5
    await clock.synchronize(machine)
    expected = clock.now().timestamp() - machine.monotonic
    assert expected == pytest.approx(machine.redis_ahead, abs=0.001)
    machine.seconds, machine.redis_ahead = 4.0, machine.redis_ahead + 5
    await clock.synchronize(machine)
    assert clock.now().timestamp() - machine.monotonic == expected


async def test_a_clock_that_is_off_is_logged_once_and_when_it_is_right_again(
    machine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO):
        for ahead in (0.9, 9, 9, 0, 0):
            machine.own_ahead = machine.redis_ahead + ahead
            await clock.synchronize(machine)
    assert [record.getMessage() for record in caplog.records] == [
        "this machine's clock differs from Redis's by +9.0 s; slots follow Redis's clock",
        "this machine's clock agrees with Redis's again",
    ]
