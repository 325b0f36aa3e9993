"""Nothing that anybody sends makes the API fail, tell of its inside, wait, grow or end."""

import os

import pytest
from arq.connections import ArqRedis

from shared.config.settings import Settings
from shared.storage.database import Pool
from shared.storage.prices import insert_prices
from tests.fuzz.conftest import IS_LONG, SEED
from tests.fuzz.inputs import KINDS
from tests.fuzz.target import Target
from tests.integration.api_process import run_api
from tests.integration.live import price

COUNT = 1_000_000 if IS_LONG else 600
SECONDS = float(os.environ.get("FUZZ_SECONDS", 60 if IS_LONG else 5))
SLOWEST_SECONDS = 10.0
GROWTH_KIB = 64 * 1024


@pytest.mark.timeout(SECONDS + 240)
async def test_bad_inputs_of_every_kind(
    settings: Settings, pool: Pool, redis: ArqRedis, request: pytest.FixtureRequest
) -> None:
    await insert_prices(pool, [price(ticker, minute) for ticker in ("btc_usd", "eth_usd") for minute in range(500)])
    async with run_api(settings, FETCH_LIMIT_PER_CLIENT="0", FETCH_LIMIT_OVERALL="0") as api:
        record = await Target(api, SEED).try_all(list(KINDS), COUNT, SECONDS)
        assert (await api.http.get("/livez")).text == "ok\n"
        assert "errors" not in await api.execute("{ latestPrices { price } tickers { name } }")
    for kind, tried in record.tried.items():
        seconds, number = record.slowest[kind]
        count = sum(finding.startswith(f"{kind} ") for finding in record.findings)
        row = (kind, tried, record.answered[kind], f"{seconds:.2f} s", count)
        request.node.user_properties.append(("bad inputs", row))
        request.node.user_properties.append(("bad inputs, process", f"slowest of {kind}: number {number}"))
    fifths = ", ".join(f"{mib:.0f}" for mib in record.fifths)
    told = f"memory after each fifth: {fifths} MiB, {record.slope():.0f} KiB a thousand inputs in the last half; "
    told += f"held {record.held:.2f} s at most"
    request.node.user_properties.append(("bad inputs, process", told))
    assert record.findings == []
    assert "Traceback" not in api.final_log, api.final_log[-3000:]
    assert "internal error" not in api.final_log, api.final_log[-3000:]
    assert all(record.answered[kind] > 10 for kind in KINDS)
    assert max(seconds for seconds, _ in record.slowest.values()) < SLOWEST_SECONDS
    assert record.growth < GROWTH_KIB
