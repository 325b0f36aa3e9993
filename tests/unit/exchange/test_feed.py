"""Which message of the stream answers a slot, and how long it is awaited."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from worker.exchange.http import Observation
from worker.exchange.sockets.feed import Feed

SLOT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def message(seconds: float, price: str = "1.50") -> Observation:
    """Of `seconds` after the slot began."""
    return Observation("btc_usd", Decimal(price), SLOT + seconds * SECOND, False)


def feed_of(*seconds: float, latency: float = 0.05) -> Feed:
    feed = Feed("btc_usd")
    for one in seconds:
        feed.add(message(one), message(one + latency).observed_at)
    return feed


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ((), None),
        ((-0.001, 1.0), None),
        ((0.0, 0.5), 0.0),
        ((-0.1, 0.999), 0.999),
        ((0.9, 0.2, -0.3), 0.2),  # out of order
    ],
)
def test_a_slot_has_its_first_message(seconds: tuple[float, ...], found: float | None) -> None:
    assert feed_of(*seconds).find(SLOT, SECOND) == (None if found is None else message(found))


def test_a_repeat_is_not_added_and_does_not_change_the_price() -> None:
    feed = feed_of(0.1)
    assert not feed.add(message(0.1, "9"), SLOT)
    assert feed.add(message(0.2, "9"), SLOT)
    assert feed.find(SLOT, SECOND) == message(0.1)


def test_the_messages_of_a_minute_are_kept() -> None:
    feed = feed_of(*range(200))
    assert feed.find(SLOT, SECOND) is None
    assert feed.find(SLOT, timedelta(minutes=5)) == message(136)
    assert feed.newest == SLOT + 199 * SECOND


@pytest.mark.parametrize(
    ("newest", "interval", "until"),
    [
        (None, 1, 0.5),
        (-0.9, 1, 0.5),  # due at 0.1
        (-0.3, 1, 0.95),  # due at 0.7, arrives by 0.75, and may be 0.2 late
        (-0.05, 1, 1.2),
        (-0.004, 1, 0.5),  # as likely in the next slot: HTTP in time
        (-2.5, 1, 0.5),  # nothing came when it was due
        (-0.3, 6, 3),
        (-0.3, 60, 5),
    ],
)
def test_http_is_asked_at_half_slot_unless_a_message_is_due_later(
    newest: float | None, interval: int, until: float
) -> None:
    feed = feed_of() if newest is None else feed_of(newest)
    assert feed.wait_until(SLOT, interval * SECOND) == SLOT + until * SECOND


@pytest.mark.parametrize(
    ("gaps", "until"),
    [
        ([0.95] * 16, 1.196),  # due at 0.946
        ([1.0] * 16, 0.5),
        ([0.95] * 15 + [1.1], 0.5),
        ([1.1] + [0.95] * 16, 1.196),  # long ago
        ([0.95] * 15 + [20], 1.196),  # an outage
        ([0.95] * 8 + [20], 0.5),  # too few to tell
    ],
)
def test_a_message_is_due_after_the_longest_of_the_last_gaps(gaps: list[float], until: float) -> None:
    newest = -0.004
    seconds = [newest - sum(gaps[place:]) for place in range(len(gaps) + 1)]
    assert feed_of(*seconds).wait_until(SLOT, SECOND) == SLOT + until * SECOND


def test_messages_that_arrive_very_late_are_not_awaited_beyond_the_slot() -> None:
    assert feed_of(-0.3, latency=1.5).wait_until(SLOT, SECOND) == SLOT + SECOND / 2


async def test_a_message_is_awaited_and_ends_the_waiting() -> None:
    feed = feed_of(-0.8)
    waiting = asyncio.create_task(feed.first_in(SLOT, SECOND, lambda: SLOT, lambda: True))
    await asyncio.sleep(0)
    feed.add(message(-0.2), SLOT)  # of the slot before
    await asyncio.sleep(0)
    assert not waiting.done()
    feed.add(message(0.1), SLOT)
    assert await waiting == message(0.1)


async def test_http_is_asked_at_once_when_no_socket_has_the_index() -> None:
    feed = feed_of(-0.8)
    is_open = [True]
    waiting = asyncio.create_task(feed.first_in(SLOT, SECOND, lambda: SLOT, lambda: is_open[0]))
    await asyncio.sleep(0)
    is_open[0] = False
    feed.wake()
    assert await waiting is None
    assert await feed.first_in(SLOT, SECOND, lambda: SLOT, lambda: False) is None


async def test_after_http_has_failed_a_message_is_awaited_until_the_end() -> None:
    half, end = SLOT + SECOND / 2, SLOT + SECOND
    feed = feed_of(-3)
    waiting = asyncio.create_task(feed.first_in(SLOT, SECOND, lambda: half, lambda: True, end))
    await asyncio.sleep(0)
    assert not waiting.done()
    feed.add(message(0.7), half)
    assert await waiting == message(0.7)
    assert await feed_of(-3).first_in(SLOT, SECOND, lambda: end, lambda: True, end) is None
    assert await feed_of(0.7).first_in(SLOT, SECOND, lambda: end, lambda: False, end) == message(0.7)


@pytest.mark.parametrize("newest", [1.0, 2.5])
async def test_http_is_asked_at_once_when_a_message_of_a_later_slot_has_come(newest: float) -> None:
    assert await feed_of(-0.1, newest).first_in(SLOT, SECOND, lambda: SLOT, lambda: True) is None


async def test_http_is_asked_when_the_waiting_is_over() -> None:
    half = SLOT + SECOND / 2
    assert await feed_of(-3).first_in(SLOT, SECOND, lambda: half, lambda: True) is None
    assert await feed_of(-3).first_in(SLOT, SECOND, lambda: half - SECOND / 100, lambda: True) is None
