"""Slots are multiples of the interval since the epoch, and instants keep every microsecond."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.grid import EPOCH, from_microseconds, slot_of

INTERVALS = st.sampled_from((1, 2, 5, 7, 10, 30, 60, 120, 300, 900, 3600)).map(lambda s: timedelta(seconds=s))
INSTANTS = st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  hypothesis adds the zone
MICROSECOND = timedelta(microseconds=1)
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@given(INSTANTS, INTERVALS)
def test_a_slot_is_on_the_grid_and_running(instant: datetime, interval: timedelta) -> None:
    slot = slot_of(instant, interval)
    assert (slot - EPOCH) % interval == timedelta(0)
    assert slot <= instant < slot + interval
    assert slot.tzinfo is UTC


@given(INSTANTS, INTERVALS)
def test_a_slot_is_its_own_slot_and_ends_where_the_next_begins(instant: datetime, interval: timedelta) -> None:
    slot = slot_of(instant, interval)
    assert slot_of(slot, interval) == slot
    assert slot_of(slot + interval - MICROSECOND, interval) == slot
    assert slot_of(slot + interval, interval) == slot + interval


@given(INSTANTS, INTERVALS, st.integers(-1439, 1439))
def test_the_grid_is_the_same_in_every_zone(instant: datetime, interval: timedelta, minutes: int) -> None:
    elsewhere = instant.astimezone(timezone(timedelta(minutes=minutes)))
    assert slot_of(elsewhere, interval) == slot_of(instant, interval)


@given(st.integers(-(10**16), 2 * 10**17))
def test_microseconds_are_exact(microseconds: int) -> None:
    assert (from_microseconds(microseconds) - EPOCH) // MICROSECOND == microseconds


def test_the_first_and_the_last_instant_there_are() -> None:
    assert [from_microseconds((instant - EPOCH) // MICROSECOND) for instant in (FIRST, LAST)] == [FIRST, LAST]


@pytest.mark.parametrize("beyond", [1, -1])
def test_beyond_the_years_1_to_9999_is_an_overflow(beyond: int) -> None:
    end = LAST if beyond > 0 else FIRST
    microseconds = (end - EPOCH) // MICROSECOND
    with pytest.raises(OverflowError):
        from_microseconds(microseconds + beyond)
