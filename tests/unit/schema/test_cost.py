"""What the fields of one request may read together, in rows, whatever their limits."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.reads.columns import READ
from server.reads.context import MAX_ROWS_READ, Context
from server.reads.fields import ReadField
from server.schema.candles import CandleInterval, candles
from server.schema.coverage import Coverage, coverage
from server.schema.questions.statistics import statistics
from shared.errors import QueryTooComplex
from shared.grid import EPOCH, FIRST_INDEX_PRICE
from shared.storage.coverage import MAX_HOURS
from shared.storage.questions.statistics import MAX_PRICES
from tests.unit.conftest import UNUSED
from tests.unit.replies import settings_for

DAY = timedelta(days=1)
START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)
FUTURE = datetime(9999, 1, 1, tzinfo=UTC)


def build(field: Any) -> Callable[..., Any]:
    declared: ReadField = field.metadata[READ]
    return declared.build


def cost(use: Callable[[Context], object], **settings: Any) -> int:
    context = Context(UNUSED, UNUSED, settings_for(**settings))
    use(context)
    return context.rows_read


def weeks_of_candles(interval: CandleInterval, limit: int) -> Callable[[Context], object]:
    return lambda context: build(candles)(context, "btc_usd", interval, START, END, limit)


@pytest.mark.parametrize(
    ("interval", "limit", "rows"),
    [
        (CandleInterval.ONE_MINUTE, 10_000, 10_000),
        (CandleInterval.THIRTY_MINUTES, 10_000, 300_000),
        (CandleInterval.ONE_HOUR, 10_000, 10_000),
        (CandleInterval.ONE_WEEK, 10, 1680),
        (CandleInterval.ONE_WEEK, 10_000, (END - START) // timedelta(hours=1) + 168),
    ],
)
def test_candles_read_their_minutes_or_hours(interval: CandleInterval, limit: int, rows: int) -> None:
    assert cost(weeks_of_candles(interval, limit)) == rows


@pytest.mark.parametrize(
    ("from_dt", "to_dt", "hours"),
    [
        (START, START + DAY, 24),
        (START, START + DAY + timedelta(seconds=1), 25),
        (START, END, MAX_HOURS),
        (EPOCH, FUTURE, MAX_HOURS),
        (EPOCH, FIRST_INDEX_PRICE, 0),
        (FUTURE - DAY, FUTURE, 0),
    ],
)
def test_coverage_reads_hours_and_its_gaps_six_times_as_many(from_dt: datetime, to_dt: datetime, hours: int) -> None:
    def ask(context: Context) -> None:
        counted = build(coverage)(context, "btc_usd", from_dt, to_dt)
        assert context.rows_read == hours
        build(Coverage.__strawberry_definition__.get_field("gaps"))(context, counted, 1)  # type: ignore[attr-defined]

    assert cost(ask) == 7 * hours


@pytest.mark.parametrize(("interval", "rows"), [(60, 1440), (1, 86_400), (3600, 24)])
def test_statistics_read_prices(interval: int, rows: int) -> None:
    def ask(context: Context) -> object:
        return build(statistics)(context, "btc_usd", START, START + DAY)

    assert cost(ask, fetch_interval_seconds=interval) == rows
    assert cost(lambda context: build(statistics)(context, "btc_usd", START, END)) == MAX_PRICES


def test_what_is_too_much_says_what_each_field_reads() -> None:
    context = Context(UNUSED, UNUSED, settings_for())
    context.count_reads(MAX_ROWS_READ)
    with pytest.raises(
        QueryTooComplex, match=r"at most 400,000 rows together: `coverage` reads one .* several requests"
    ):
        context.count_reads(1)


def test_a_request_weighs_what_it_answers_or_what_it_reads() -> None:
    context = Context(UNUSED, UNUSED, settings_for())
    context.count_rows(3000, 1)
    context.count_reads(40_000)
    assert context.weight == 3000  # 40,000 rows are read in the time in which 2,000 are answered
    context.count_reads(40_000)
    assert context.weight == 4000
