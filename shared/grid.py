"""The schedule's grid: slots are multiples of the interval since the Unix epoch, in UTC."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_INDEX_PRICE = datetime(2016, 8, 27, tzinfo=UTC)
"Of the exchange's longest chart."

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def slot_of(instant: datetime, interval: timedelta) -> datetime:
    """The slot that contains `instant`."""
    return instant - (instant - EPOCH) % interval


def from_microseconds(microseconds: int) -> datetime:
    """An instant from the exchange's clock. Raises `OverflowError` outside the years 1 to 9999."""
    return EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def count_steps(from_dt: datetime, to_dt: datetime, step: timedelta) -> int:
    """How many steps the period has, as far as there can be prices in it: to estimate what a statement reads."""
    start, end = max(from_dt, FIRST_INDEX_PRICE), min(to_dt, datetime.now(UTC))
    return max(-((start - end) // step), 0)
