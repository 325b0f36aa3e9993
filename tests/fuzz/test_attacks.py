"""No client can take the service: whatever it does, neighbours are answered in time and the memory comes back."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from arq.connections import ArqRedis

from shared.config.settings import Settings
from shared.storage.database import Pool, fetch
from shared.storage.prices import insert_prices
from tests.fuzz.attacks import ATTACKS, Attackers
from tests.fuzz.conftest import IS_LONG
from tests.integration.api_process import ROOT, ApiProcess, run_api
from tests.integration.live import price

LONG_SCALE = 5

MAX_SECONDS = {"livez": 0.5, "latestPrice": 1.0, "readyz": 2.0, "held": 0.15}
"`held`: CPU time of the event loop while /livez waits."
MAX_GROWTH_MIB = 80

_FILL = """
    insert into prices (ticker, price, timestamp, observed_at, source, testnet)
    select ticker, 91234.56 + n %% 977, at, at, 'SCHEDULED', false
    from generate_series(%d, %d) as n
    cross join lateral (select timestamptz '2026-01-31T12:00:00Z' - n * interval '1 minute' as at) as slot
    cross join (values ('btc_usd'), ('eth_usd')) as tickers (ticker)
"""
MINUTES = 35 * 24 * 60


def resident_mib(api: ApiProcess) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{api.process.pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


async def attack(api: ApiProcess, pool: Pool, name: str, scale: int) -> dict[str, Any]:
    watch = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fuzz.watch", str(api.port), str(api.process.pid), cwd=ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    before = resident_mib(api)
    logged = len(api.log)
    await asyncio.sleep(0.3)
    attackers = Attackers(api.port, scale)
    storing = asyncio.create_task(store(pool))
    try:
        await asyncio.wait_for(ATTACKS[name](attackers), 60)
    except TimeoutError:
        pass
    finally:
        storing.cancel()
        await asyncio.gather(storing, return_exceptions=True)
    output, _ = await watch.communicate(b"")
    seen: dict[str, Any] = json.loads(output)
    await attackers.close()
    await asyncio.sleep(1.5)
    seen |= {"before": before, "during": seen["resident"] / 1024, "after": resident_mib(api)}
    seconds = seen["seconds"]
    print(
        f"{name:32} held {seconds['held'] * 1000:6.0f} ms  livez {seconds['livez']:.2f}  "
        f"latest {seconds['latestPrice']:.2f}  readyz {seconds['readyz']:.2f}  "
        f"RSS {before:4.0f} {seen['during']:5.0f} {seen['after']:5.0f}  log {len(api.log) - logged:8}  "
        f"{seen['answers']}",
        flush=True,
    )
    return seen


def complaints(seen: dict[str, Any]) -> list[str]:
    """What a neighbour of the attackers would complain of."""
    found = [f"answered {answer}" for answer in seen["answers"] if not answer.endswith(" 200")]
    found += [
        f"{name} took {seen['seconds'][name]:.2f} s"
        for name, most in MAX_SECONDS.items()
        if seen["seconds"][name] > most
    ]
    found += [
        f"{seen[when] - seen['before']:.0f} MiB more {when}"
        for when in ("during", "after")
        if seen[when] - seen["before"] > MAX_GROWTH_MIB
    ]
    return found


async def store(pool: Pool) -> None:
    minute = 0.0
    while True:
        minute += 1
        await insert_prices(pool, [price(ticker, minute) for ticker in ("btc_usd", "eth_usd")])
        await asyncio.sleep(0.5)


@pytest.mark.skipif(not IS_LONG and "ATTACKS" not in os.environ, reason="it takes two minutes")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", [list(ATTACKS)])
async def test_attacks(settings: Settings, pool: Pool, redis: ArqRedis, names: list[str]) -> None:
    names = os.environ.get("ATTACKS", ",".join(names)).split(",")
    connection = await asyncpg.connect(settings.database_url)
    for first in range(0, MINUTES, 2000):
        await connection.execute(_FILL % (first + 1, first + 2000))
    await connection.close()
    found = {}
    for name in names:
        await fetch(pool, "delete from prices where timestamp >= '2026-01-31T12:00:00Z'")
        async with run_api(settings) as api:
            await api.execute("{ latestPrices { price } }")
            if complained := complaints(await attack(api, pool, name, LONG_SCALE if IS_LONG else 1)):
                found[name] = complained
    assert found == {}
