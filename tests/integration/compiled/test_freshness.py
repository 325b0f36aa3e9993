"""No answer is older than the request that asked for it, whatever is written meanwhile, and by whom.

Several API processes, each with its own pool and its own kept answers. Each writer counts what it has committed, and
each reader notes these counts before it asks. The answer must hold at least that much.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq.connections import ArqRedis

from server.compiled.answers import Answers
from server.compiled.execution import Compiled
from server.metrics import Metrics
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.documents import GraphQLRequest
from server.schema.root import schema
from shared.config.settings import Settings
from shared.storage.database import Pool, create_pool
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots
from shared.storage.prices import Price, PriceSource, insert_prices
from shared.storage.retention import drop_oldest_prices, move_kept_from
from tests.integration.examples import example_price, insert_schedule_rows

SECONDS = 4.0
PROCESSES, READERS = 3, 6
DAY = datetime(2026, 1, 31, tzinfo=UTC)
NOON, MIDNIGHT = DAY + timedelta(hours=12), DAY + timedelta(days=1)
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
MAX_AGE = 1
PERIOD = f'(ticker: "eth_usd", fromDt: "{DAY.isoformat()}", toDt: "{MIDNIGHT.isoformat()}"'

LATEST = '{ latestPrice(ticker: "btc_usd") { price } }'
YOUNG = f'{{ latestPrice(ticker: "btc_usd", maxAgeSeconds: {MAX_AGE}) {{ price timestamp }} }}'
TICKERS = "{ tickers { name stale keptFrom latest { timestamp } } }"
COVERAGE = f"{{ coverage{PERIOD}) {{ expected present gaps(limit: 10000) {{ missing reason }} }} }}"
SOURCES = f"{{ pricesInPeriod{PERIOD}, limit: 10000) {{ source }} }}"
CANDLES = f"{{ candles{PERIOD}, interval: ONE_DAY) {{ samples }} }}"
RUNNING = '{ coverage(ticker: "btc_usd", fromDt: "%s", toDt: "2100-01-01T00:00:00Z") { expected } }'


@dataclass
class Stored:
    """What is committed. Everything only grows."""

    began: datetime
    newest: int = 0
    newest_at: datetime = DAY
    healed: int = 0
    observed: int = 0
    missed: int = 0
    schedules: int = 0
    kept_from: datetime = DAY - timedelta(days=1000)


@dataclass
class Process:
    context: Context
    compiled: Compiled = field(default_factory=lambda: Compiled(schema, Metrics()))

    def __post_init__(self) -> None:
        self.admission = Admission(self.context.pool)

    async def ask(self, query: str) -> Any:
        """`None` if the answer is an error, which Strawberry raises."""
        text = await self.compiled.text(self.context, GraphQLRequest(query), self.admission)
        return None if text is None else json.loads(text)["data"]


@pytest.fixture
async def processes(settings: Settings, redis: ArqRedis, pool: Pool) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(create_pool(settings, name="tests")) for _ in range(PROCESSES)]
        yield [Process(Context(one, redis, settings)) for one in pools]


def now() -> datetime:
    return datetime.now(UTC)


def check(query: str, data: Any, noted: Stored, asked: datetime) -> None:
    """Raises `AssertionError` if the answer does not hold what was committed at `asked`."""
    if query == LATEST:
        assert int(data["latestPrice"]["price"]) >= noted.newest
    elif query == YOUNG:
        if data is not None:
            assert int(data["latestPrice"]["price"]) >= noted.newest
            assert asked <= datetime.fromisoformat(data["latestPrice"]["timestamp"]) + MAX_AGE * SECOND
    elif query == TICKERS:
        btc, _ = data["tickers"]
        assert datetime.fromisoformat(btc["latest"]["timestamp"]) >= noted.newest_at
        assert btc["stale"] or asked <= datetime.fromisoformat(btc["latest"]["timestamp"]) + 2 * SECOND
        assert datetime.fromisoformat(btc["keptFrom"]) >= noted.kept_from
    elif query == COVERAGE:
        found = data["coverage"]
        assert found["present"] >= noted.healed
        assert found["expected"] >= 12 * 60 + noted.schedules
        missed = sum(gap["missing"] for gap in found["gaps"] if gap["reason"] == "EXCHANGE_ERROR")
        assert missed >= noted.missed
        assert found["present"] + sum(gap["missing"] for gap in found["gaps"]) == found["expected"]  # one snapshot
    elif query == SOURCES:
        sources = [price["source"] for price in data["pricesInPeriod"]]
        assert len(sources) >= noted.healed
        assert sources.count("SCHEDULED") >= noted.observed
    elif query == CANDLES:
        assert sum(candle["samples"] for candle in data["candles"]) >= noted.healed
    else:
        ended = int(asked.timestamp()) - int(noted.began.timestamp())
        assert data["coverage"]["expected"] >= ended


async def write(
    pool: Pool, stored: Stored, chance: random.Random, is_over: Callable[[], bool], processes: list[Process]
) -> None:
    """The schedule's worker: an observation now and then, and its own request after it."""
    while not is_over():
        number, timestamp = stored.newest + 1, now()
        await insert_prices(pool, [example_price(timestamp, str(number))])
        stored.newest, stored.newest_at = number, timestamp
        data = await chance.choice(processes).ask(LATEST)
        assert data == {"latestPrice": {"price": str(number)}}, "one's own insert is in the next answer"
        await asyncio.sleep(chance.choice([0, 0.002, 0.03, 0.03, 1.5]))


async def heal(pool: Pool, stored: Stored, chance: random.Random, is_over: Callable[[], bool]) -> None:
    """Averages for slots from noon on, then an observation in place of some; and reasons of slots after those."""

    def price(slot: int, source: PriceSource) -> Price:
        return example_price(NOON + slot * MINUTE, "7", ticker="eth_usd", source=source)

    while not is_over() and stored.healed < 300:
        match chance.randrange(3):
            case 0 if stored.observed < stored.healed:
                await insert_prices(pool, [price(stored.observed, PriceSource.SCHEDULED)])
                stored.observed += 1
            case 1 if stored.missed < 300:
                slot = NOON + (400 + stored.missed) * MINUTE
                await insert_missed_slots(pool, [MissedSlot("eth_usd", slot, GapReason.EXCHANGE_ERROR, None)])
                stored.missed += 1
            case _:
                await insert_prices(pool, [price(stored.healed, PriceSource.BACKFILLED)])
                stored.healed += 1
        await asyncio.sleep(chance.choice([0, 0.005, 0.05]))


async def change_schedules(pool: Pool, stored: Stored, chance: random.Random, is_over: Callable[[], bool]) -> None:
    while not is_over() and stored.schedules < 600:
        await insert_schedule_rows(pool, [("eth_usd", NOON - (stored.schedules + 1) * MINUTE, 60)])
        stored.schedules += 1
        await asyncio.sleep(chance.choice([0.01, 0.1]))


async def drop(pool: Pool, stored: Stored, chance: random.Random, is_over: Callable[[], bool]) -> None:
    days = 100
    while not is_over() and days > 2:
        days -= 1
        stored.kept_from = (await move_kept_from(pool, now(), timedelta(days=days))).get("btc_usd", stored.kept_from)
        await drop_oldest_prices(pool, "btc_usd", 100)
        await asyncio.sleep(chance.choice([0.01, 0.1]))


async def read(
    processes: list[Process], stored: Stored, chance: random.Random, is_over: Callable[[], bool], asked: list[str]
) -> None:
    running = RUNNING % stored.began.isoformat()
    while not is_over():
        query = chance.choice([LATEST, YOUNG, TICKERS, COVERAGE, SOURCES, CANDLES, running])
        noted, at = Stored(**vars(stored)), now()
        check(query, await chance.choice(processes).ask(query), noted, at)
        asked.append(query)


@pytest.mark.parametrize("seed", range(2))
async def test_no_answer_is_older_than_its_request(
    pool: Pool, settings: Settings, processes: list[Process], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    one_second = settings.model_copy(update={"fetch_interval_seconds": 1})
    processes = [Process(Context(one.context.pool, one.context.redis, one_second)) for one in processes]
    stored = Stored(began=now().replace(microsecond=0))
    await insert_schedule_rows(pool, [("btc_usd", stored.began, 1), ("eth_usd", NOON, 60)])
    old = [example_price(now() - timedelta(days=number)) for number in range(1, 100)]
    await insert_prices(pool, [*old, example_price(now(), "1")])
    stored.newest, stored.newest_at = 1, now() - SECOND
    stored.kept_from = (await move_kept_from(pool, now(), timedelta(days=98)))["btc_usd"]
    reused = 0
    answer = Answers.answer

    async def counted(self: Answers, pool: Pool, request: Any, tags: str | None = None) -> Any:
        nonlocal reused
        kept = request.kept
        found = await answer(self, pool, request, tags)
        reused += found is kept
        return found

    monkeypatch.setattr(Answers, "answer", counted)
    until = time.monotonic() + SECONDS

    def is_over() -> bool:
        return time.monotonic() > until

    asked: list[str] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(write(pool, stored, random.Random(chance.random()), is_over, processes))
        group.create_task(heal(pool, stored, random.Random(chance.random()), is_over))
        group.create_task(change_schedules(pool, stored, random.Random(chance.random()), is_over))
        group.create_task(drop(pool, stored, random.Random(chance.random()), is_over))
        for _ in range(READERS):
            group.create_task(read(processes, stored, random.Random(chance.random()), is_over, asked))
    assert len(set(asked)) == 7
    assert stored.newest > 3
    assert stored.healed > 3
    assert stored.schedules > 3
    assert 0 < reused < len(asked)
