"""Exports: equal to the queries row by row, refused as queries are, and never whole when they are not."""

import asyncio
import contextlib
import csv
import gzip
import io
import json
import socket
import zlib
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest
from arq.connections import ArqRedis

from server.http.export import MAX_EXPORTS
from shared.config.settings import Settings
from shared.storage.candles import CandleInterval
from shared.storage.database import Pool
from shared.storage.pool import Connection
from shared.storage.prices import PriceSource, insert_prices
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows
from tests.integration.live import LiveApi, serve_live

DAY = "2026-01-31T"
PRICES, CANDLES = "/export/prices.csv", "/export/candles.csv"
PRICE_COLUMNS = ["ticker", "timestamp", "price", "observed_at", "source", "testnet"]
CANDLE_COLUMNS = ["ticker", "start", "open", "high", "low", "close", "samples", "complete"]
MANY = 300_000


@pytest.fixture(scope="module")
async def _live(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    async with serve_live(settings) as api:
        yield api


@pytest.fixture
def live(_live: LiveApi, pool: Pool, redis: ArqRedis) -> LiveApi:
    return _live


def asked(from_dt: str, to_dt: str, **more: str) -> dict[str, str]:
    return {"ticker": "btc_usd", "from": f"{DAY}{from_dt}Z", "to": f"{DAY}{to_dt}Z", **more}


async def rows(live: LiveApi, path: str, given: dict[str, str]) -> list[list[str]]:
    response = await live.http.get(path, params=given)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.reader(io.StringIO(response.text)))


async def queried(live: LiveApi, field: str, names: list[str]) -> list[list[str]]:
    """The same rows from GraphQL, in the spelling of CSV."""
    camel = [{"observed_at": "observedAt"}.get(name, name) for name in names]
    answer = (await live.http.post("/graphql", json={"query": f"{{ {field} {{ {' '.join(camel)} }} }}"})).json()
    [found] = answer["data"].values()
    return [[json.dumps(row[name]).strip('"') for name in camel] for row in found]


@pytest.fixture
async def stored(pool: Pool) -> None:
    digits = ["91234.56", "2722.40", "0.00001583", "7", "123456789012345678.123456789012345678"]
    await insert_schedule_rows(pool, [("btc_usd", NOON, 60)])
    prices = [
        example_price(NOON + MINUTE * n / 2, digits[n % 5], ticker=ticker, source=list(PriceSource)[n % 3])
        for n in range(400)
        if n % 7
        for ticker in ("btc_usd", "eth_usd")
    ]
    await insert_prices(pool, prices)


@pytest.mark.usefixtures("stored")
async def test_prices_are_those_of_the_query(live: LiveApi) -> None:
    found = await rows(live, PRICES, asked("12:01:00", "15:00:00"))
    period = f'ticker: "btc_usd", fromDt: "{DAY}12:01:00Z", toDt: "{DAY}14:59:59.999999Z", limit: 10000'
    assert found == [PRICE_COLUMNS, *await queried(live, f"pricesInPeriod({period})", PRICE_COLUMNS)]
    assert len(found) > 300
    [_, one] = await rows(live, PRICES, asked("12:59:00", "12:59:00.000001"))
    assert one in found
    assert await rows(live, PRICES, asked("12:59:00", "12:59:00")) == [PRICE_COLUMNS], "the end is exclusive"
    assert await rows(live, PRICES, asked("10:00:00", "11:00:00")) == [PRICE_COLUMNS]


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("interval", list(CandleInterval))
async def test_candles_are_those_of_the_query(live: LiveApi, interval: str) -> None:
    """From the candle that contains `from` to the last one that begins before `to`."""
    for from_dt, to_dt in (("12:01:30", "14:00:00"), ("00:00:00", "23:00:00"), ("12:00:00", "12:00:00.000001")):
        found = await rows(live, CANDLES, asked(from_dt, to_dt, interval=interval))
        period = f'fromDt: "{DAY}{from_dt}Z", toDt: "{DAY}{to_dt}Z", limit: 10000'
        wanted = await queried(live, f'candles(ticker: "btc_usd", interval: {interval}, {period})', CANDLE_COLUMNS)
        before = f"{DAY}{to_dt}".ljust(26, ".").replace(".......", ".000000") + "Z"
        assert found == [CANDLE_COLUMNS, *(row for row in wanted if row[1] < before)]
        assert len(found) > 1
    assert await rows(live, CANDLES, asked("12:30:00", "12:30:00", interval=interval)) == [CANDLE_COLUMNS]


@pytest.mark.usefixtures("stored")
async def test_a_file_has_a_speaking_name_and_may_be_compressed(live: LiveApi) -> None:
    given = asked("12:00:00", "15:00:00", interval="ONE_HOUR")
    plain = await live.http.get(PRICES, params=given, headers={"accept-encoding": "identity"})
    named = 'attachment; filename="btc_usd_prices_20260131T120000Z_20260131T150000Z.csv"'
    assert plain.headers["content-disposition"] == named
    assert plain.headers["cache-control"] == "no-store"
    assert plain.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in plain.headers
    async with live.http.stream("GET", PRICES, params=given, headers={"accept-encoding": "gzip"}) as zipped:
        assert zipped.headers["content-encoding"] == "gzip"
        raw = b"".join([piece async for piece in zipped.aiter_raw()])
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 3
    head = await live.http.head(CANDLES, params=given)
    named = 'attachment; filename="btc_usd_candles_ONE_HOUR_20260131T120000Z_20260131T150000Z.csv"'
    assert (head.status_code, head.headers["content-disposition"], head.content) == (200, named, b"")
    assert (await live.http.post(PRICES, params=given)).status_code == 405


@pytest.mark.usefixtures("stored")
async def test_an_offset_may_come_with_a_bare_plus_sign(live: LiveApi) -> None:
    query = "ticker=BTC_usd&from=2026-01-31T15:01:00+03:00&to=2026-01-31T15:02:00%2B03:00"
    response = await live.http.get(f"{PRICES}?{query}")
    assert [row.split(",")[1] for row in response.text.splitlines()[1:]] == [
        f"{DAY}12:01:00.000000Z",
        f"{DAY}12:01:30.000000Z",
    ]


@pytest.mark.parametrize(
    ("path", "change", "code", "said"),
    [
        (PRICES, {"ticker": ""}, "BAD_USER_INPUT", "ticker is missing"),
        (PRICES, {"ticker": "doge_usd"}, "UNKNOWN_TICKER", "'doge_usd' is not collected here"),
        (PRICES, {"from": ""}, "BAD_USER_INPUT", "from is missing"),
        (PRICES, {"to": ""}, "BAD_USER_INPUT", "to is missing"),
        (PRICES, {"from": "2026-01-31T12:00:00"}, "BAD_USER_INPUT", "from is '2026-01-31T12:00:00'; accepted is"),
        (PRICES, {"to": "yesterday"}, "BAD_USER_INPUT", "to is 'yesterday'"),
        (PRICES, {"to": f"{DAY}11:00:00Z"}, "BAD_USER_INPUT", "from is after to"),
        (CANDLES, {}, "BAD_USER_INPUT", "interval is missing; accepted: ONE_MINUTE, THREE_MINUTES"),
        (CANDLES, {"interval": "ONE_MONTH"}, "BAD_USER_INPUT", "interval is 'ONE_MONTH'; accepted: ONE_MINUTE"),
    ],
)
async def test_refused_arguments(live: LiveApi, path: str, change: dict[str, str], code: str, said: str) -> None:
    response = await live.http.get(path, params=asked("12:00:00", "13:00:00") | change)
    [error] = response.json()["errors"]
    assert (response.status_code, error["extensions"]) == (400, {"code": code})
    assert said in error["message"]


async def test_a_token_is_needed_if_reads_need_one(settings: Settings, pool: Pool) -> None:
    closed = settings.model_copy(update={"api_token": "correct-horse-battery", "require_token_for_reads": True})
    async with serve_live(closed) as live:
        given = asked("12:00:00", "13:00:00")
        refused = await live.http.get(PRICES, params=given)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        bearer = {"Authorization": "Bearer correct-horse-battery"}
        assert (await live.http.get(PRICES, params=given, headers=bearer)).status_code == 200


async def test_without_postgresql_there_is_an_error_and_no_file(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql://postgres@127.0.0.1:1/deribit"})
    async with serve_live(away) as live:
        response = await live.http.get(PRICES, params=asked("12:00:00", "13:00:00"))
    assert response.status_code == 503
    assert response.json()["errors"][0]["extensions"]["code"] == "STORAGE_UNAVAILABLE"


@pytest.fixture
async def many(pool: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    """A file of 28 MB, at full speed. The rows have no candles, because nothing here asks for them."""
    monkeypatch.setattr("server.http.export.MAX_BYTES_PER_SECOND", 10**9)
    connection: Connection = await asyncpg.connect(settings.database_url)
    await connection.execute("set session_replication_role = replica")
    await connection.execute(
        """
        insert into prices (ticker, timestamp, price, observed_at, source, testnet)
        select 'btc_usd', at, 91234.56 + n % 977, at + interval '27885 us', 'SCHEDULED', true
        from generate_series(1, $1::integer) as n
        cross join lateral (select timestamptz '2026-01-01Z' + n * interval '1 s' as at) as slot
        """,
        MANY,
    )
    yield connection
    await connection.close()


WHOLE = {"ticker": "btc_usd", "from": "2026-01-01T00:00:00Z", "to": "2027-01-01T00:00:00Z"}
EXPORTING = "from pg_stat_activity where query like 'COPY%' and pid <> pg_backend_pid()"


@contextlib.asynccontextmanager
async def open_export(live: LiveApi, encoding: str = "identity") -> AsyncIterator[asyncio.StreamReader]:
    """With its headers and the file's first bytes read, and nothing read after them.

    The client's receive buffer is small and fixed. Linux would let it grow by megabytes, and a file of which the kernel
    holds the whole rest makes the server wait for nothing.
    """
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)
    own.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", live.port))
        reader, writer = await asyncio.open_connection(sock=own, limit=2**16)
    except BaseException:
        own.close()
        raise
    try:
        target = f"{PRICES}?{httpx.QueryParams(WHOLE)}"
        writer.write(f"GET {target} HTTP/1.1\r\nhost: test\r\naccept-encoding: {encoding}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert b"transfer-encoding: chunked" in head
        await reader.readexactly(1000)
        yield reader
    finally:
        writer.transport.abort()


async def until_none_runs(connection: Connection) -> None:
    async with asyncio.timeout(20):
        while await connection.fetchval(f"select count(*) {EXPORTING}"):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_large_file_is_whole(live: LiveApi, many: Connection, encoding: str) -> None:
    response = await live.http.get(PRICES, params=WHOLE, headers={"accept-encoding": encoding})
    lines = response.text.splitlines()
    assert len(lines) == MANY + 1
    assert len(set(lines)) == MANY + 1
    assert lines == [lines[0], *sorted(lines[1:])]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_broken_file_never_looks_whole(
    live: LiveApi, many: Connection, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_export(live, encoding) as reader:
        assert await many.fetchval(f"select count(pg_terminate_backend(pid)) {EXPORTING}") == 1
        rest = await reader.read()
    assert not rest.endswith(b"\r\n0\r\n\r\n"), "the last chunk"
    assert "an export broke off" in caplog.text


async def test_clients_notice_a_broken_file(live: LiveApi, many: Connection) -> None:
    received = b""
    async with live.http.stream("GET", PRICES, params=WHOLE, headers={"accept-encoding": "gzip"}) as response:
        pieces = response.aiter_raw()
        received += await anext(pieces)
        assert await many.fetchval(f"select count(pg_terminate_backend(pid)) {EXPORTING}") == 1
        with pytest.raises(httpx.RemoteProtocolError):
            received += b"".join([piece async for piece in pieces])
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
    unzip.decompress(received)
    assert not unzip.eof


async def test_an_export_waits_for_its_client_and_ends_with_it(live: LiveApi, many: Connection) -> None:
    async with open_export(live):
        await asyncio.sleep(0.5)
        assert await many.fetchval(f"select count(*) {EXPORTING}") == 1, "the rest is not read"
        answer = await live.http.post("/graphql", json={"query": "{ latestPrices { ticker } }"})
        assert answer.json() == {"data": {"latestPrices": [{"ticker": "btc_usd"}]}}
    await until_none_runs(many)


async def test_a_few_exports_at_a_time(live: LiveApi, many: Connection) -> None:
    async with contextlib.AsyncExitStack() as opened:
        for _ in range(MAX_EXPORTS):
            await opened.enter_async_context(open_export(live))
        refused = await live.http.get(PRICES, params=WHOLE)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert refused.json()["errors"][0]["extensions"] == {"code": "RATE_LIMITED", "retryAfter": 10}
        assert (await live.http.get(PRICES, params={**WHOLE, "ticker": "x"})).status_code == 400
    await until_none_runs(many)
    async with asyncio.timeout(10):
        while (await live.http.head(PRICES, params=WHOLE)).status_code != 200:
            await asyncio.sleep(0.02)


async def test_a_client_that_does_not_read_is_cut_off(
    live: LiveApi, many: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.transport.http.ANSWER_SECONDS", 1.0)
    async with open_export(live):
        await until_none_runs(many)


async def test_a_client_that_reads_slowly_is_not_cut_off(
    live: LiveApi, many: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.transport.http.ANSWER_SECONDS", 1.5)
    async with open_export(live) as reader:
        for _ in range(30):
            # 6 of 28 MB in all, in 3 s: twice what a client that does not read is given.
            await reader.readexactly(200_000)
            await asyncio.sleep(0.1)
        assert await many.fetchval(f"select count(*) {EXPORTING}") == 1
    await until_none_runs(many)
