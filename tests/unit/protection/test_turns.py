"""Work of many tasks is spread over iterations of the event loop; followers are woken in turns."""

import asyncio

import pytest

from server.protection import turns as module
from server.protection.turns import MAX_RELEASED, SLICE_SECONDS, Signal, Turns

TASKS = 3 * MAX_RELEASED


class Clock:
    """Goes on only by the work that is done."""

    now = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "monotonic", lambda: made.now)
    return made


async def iterations_of(tasks: list[asyncio.Task[None]], clock: Clock) -> list[float]:
    """The seconds of work in each iteration of the event loop until all tasks have ended."""
    spent = []
    while not all(task.done() for task in tasks):
        began = clock.now
        await asyncio.sleep(0)
        spent.append(clock.now - began)
    return spent


async def test_an_iteration_has_one_slice_for_all_tasks_which_are_served_in_order(clock: Clock) -> None:
    turns = Turns()
    done: list[int] = []

    async def task(number: int) -> None:
        await turns.take()
        clock.work(SLICE_SECONDS / 2)
        done.append(number)

    spent = await iterations_of([asyncio.create_task(task(number)) for number in range(TASKS)], clock)
    assert done == list(range(TASKS))
    assert max(spent) <= 2 * SLICE_SECONDS
    assert turns.waited == 0


async def test_a_signal_wakes_those_that_wait_a_few_at_a_time(clock: Clock) -> None:
    signal = Signal(Turns())
    woken: list[int] = []

    async def follow(number: int) -> None:
        await signal.wait()
        woken.append(number)
        clock.work(SLICE_SECONDS / 4)

    tasks = [asyncio.create_task(follow(number)) for number in range(TASKS)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    signal.set()
    late = asyncio.create_task(follow(TASKS))
    spent = await iterations_of(tasks, clock)
    assert woken == [number for number in range(TASKS) if number != 1]
    assert max(spent) <= 2 * SLICE_SECONDS
    assert not late.done(), "it came after the signal"
    late.cancel()


async def test_how_long_the_next_task_has_waited(clock: Clock) -> None:
    turns = Turns()
    await turns.take()
    clock.work(2 * SLICE_SECONDS)
    assert turns.are_due()
    waiting = asyncio.get_running_loop().create_future()
    turns.queue([waiting])
    clock.work(0.5)
    assert turns.waited == 0.5
    await turns.wait(waiting)
    assert turns.waited == 0
