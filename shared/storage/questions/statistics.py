"""Statistics of a period, from the prices that are kept: exact except for the volatility, which is a float."""

from dataclasses import fields
from datetime import datetime

import asyncpg

from shared.errors import QueryTooComplex
from shared.grid import EPOCH
from shared.storage.coverage import HOURS, MAX_HOURS, Coverage, coverage, too_long
from shared.storage.database import Statement
from shared.storage.prices import COLUMNS, FIELDS, WITH_CURSOR
from shared.storage.schedules import NEXT_SLOT_END

MAX_PRICES = 200_000
"138 days of minutes, two days of seconds: reading them takes about half of the deadline of a statement."

SECONDS_OF_A_YEAR = 365 * 86_400
COVERAGE_FIELDS = (*(field.name for field in fields(Coverage)), "observed", "ratio", "complete")


def _price(name: str, order: str) -> str:
    """A common table expression of one row at most."""
    return f"""
        {name}_price as materialized (
            select {WITH_CURSOR}
            from kept
            order by {order}
            limit 1
        )
    """


def _columns(names: tuple[str, ...], prefix: str, source: str) -> str:
    return ", ".join(f"(select {name} from {source}) as {prefix}_{name}" for name in names)


# $1 ticker, $2 from, $3 to (exclusive), $4 now or null: those of `coverage`, because its gaps are made from them. Each
# common table expression runs only if a selected column needs it: `change` reads two rows.
_STATISTICS = f"""
    with period as (
        select
            greatest($2::timestamptz, (select kept_from from dropped_prices where ticker = $1)) as lower,
            coalesce($4::timestamptz, now()) as now
    ), beyond as materialized (
        -- The first price that is too many.
        select timestamp
        from prices
        where ticker = $1
          and timestamp >= (select lower from period)
          and timestamp < $3
        order by timestamp
        offset {MAX_PRICES}
        limit 1
    ), kept as not materialized (
        select {COLUMNS}
        from prices
        where ticker = $1
          and timestamp >= (select lower from period)
          and timestamp < $3
          and not exists (select from beyond)
    ),
    {_price("open", "timestamp")},
    {_price("close", "timestamp desc")},
    {_price("high", "price desc, timestamp")},
    {_price("low", "price, timestamp")},
    summed as materialized (
        select
            count(*) as samples,
            min(timestamp) as first,
            max(timestamp) as last,
            sum(previous * extract(epoch from timestamp - since)) as held,
            sum(power(ln((price / previous)::float8), 2)) as squares
        from (
            select
                timestamp,
                price,
                lag(timestamp) over series as since,
                lag(price) over series as previous
            from kept
            window series as (order by timestamp)
        ) as step
    ), averaged as materialized (
        -- The last price holds until the period's end, or until now.
        select trim_scale(coalesce(
            (coalesce(held, 0) + price * extract(epoch from until - last))
                / nullif(extract(epoch from until - first), 0),
            price
        )) as twap
        from summed
        cross join close_price
        cross join lateral (select greatest(least($3, (select now from period)), last) as until) as bound
    ), covered as materialized (
        select coverage.*
        from ({coverage("", EPOCH, EPOCH).sql}) as coverage
        where not exists (select from beyond)
    )
    select
        {", ".join(_columns(FIELDS, name, f"{name}_price") for name in ("open", "close", "high", "low"))},
        (
            select close_price.price - open_price.price
            from open_price
            cross join close_price
            where open_price.timestamp < close_price.timestamp
        ) as change,
        (
            select trim_scale(100 * (close_price.price - open_price.price) / open_price.price)
            from open_price
            cross join close_price
            where open_price.timestamp < close_price.timestamp
        ) as change_percent,
        (select twap from averaged) as twap,
        (
            select sqrt(squares * {SECONDS_OF_A_YEAR} / extract(epoch from last - first)::float8)
            from summed
            where samples > 1
        ) as realized_volatility,
        (select samples from summed) as samples,
        {_columns(COVERAGE_FIELDS, "coverage", "covered")},
        $3 > now as is_running,
        case when $3 > now then least($3, ({NEXT_SLOT_END})) end as expires_at,
        exists (select from beyond) or hours > {MAX_HOURS} as is_refused,
        (select timestamp from beyond) as readable_until,
        hours
    from period
    cross join ({HOURS}) as size
    -- Keeps the planner from writing a column's subquery anew wherever the answer uses it.
    offset 0
"""


def statistics(ticker: str, from_dt: datetime, to_dt: datetime, now: datetime | None = None) -> Statement:
    """One row. `high` and `low` are the first of equal prices. `now` is PostgreSQL's clock unless it is given."""
    return Statement(_STATISTICS, (ticker, from_dt, to_dt, now), expires=True, refuse=_too_many)


def _too_many(row: asyncpg.Record) -> QueryTooComplex:
    if row["readable_until"] is None:
        return too_long(row)
    until = row["readable_until"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return QueryTooComplex(
        f"Statistics read at most {MAX_PRICES:,} prices. From fromDt on, those reach to {until}: accepted is a toDt "
        "that is not later."
    )
