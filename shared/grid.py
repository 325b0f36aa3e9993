"""The schedule's grid: slots are multiples of the interval since the Unix epoch, in UTC."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def slot_of(instant: datetime, interval: timedelta) -> datetime:
    """The slot that contains `instant`."""
    return instant - (instant - EPOCH) % interval


def from_microseconds(microseconds: int) -> datetime:
    """An instant from the exchange's clock. Raises `OverflowError` outside the years 1 to 9999."""
    return EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)
