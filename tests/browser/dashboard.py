"""Reads the dashboard by what it shows, never by the state of its scripts."""

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.conftest import Visitor, visit
from tests.faults.stack import ROOT, Stack, quiet_port

TOKEN = "a-token-of-some-length"
UNCOLLECTED = "doge_usd"
"No worker fetches it, so a test writes its history."

_OUTAGE = re.compile(r"error: (Failed to load resource: |WebSocket connection to )")


@dataclass
class Dashboard:
    visitor: Visitor
    page: Page

    def card(self, ticker: str) -> Locator:
        return self.page.locator(f'[data-ticker="{ticker}"]:has(.card)')

    async def state(self, name: str, seconds: float = 15) -> None:
        await expect(self.page.locator("#connection")).to_have_text(name, timeout=seconds * 1000)

    async def notice(self, pattern: str, seconds: float = 15) -> None:
        await expect(self.page.locator("#notice-words")).to_have_text(re.compile(pattern), timeout=seconds * 1000)

    async def try_now(self) -> None:
        """Works even if the page has reconnected by itself and hidden the button."""
        await self.page.locator("#retry").evaluate("button => button.click()")

    async def newest(self, ticker: str) -> tuple[datetime, str, str]:
        """A card's timestamp, its price and the price's text, all of the same moment."""
        timestamp, value, text = await self.card(ticker).evaluate(
            "card => [card.querySelector('time').dateTime, card.querySelector('data').value, "
            "card.querySelector('data').textContent]"
        )
        return datetime.fromisoformat(timestamp), value, text

    async def rows(self) -> list[tuple[datetime, str, str]]:
        """All rows of the table below the chart, oldest first: timestamp, price, source."""
        if await self.page.locator("#table").get_attribute("open") is None:
            await self.page.locator("#table summary").click()
            # The table is drawn on the `toggle` event, which follows the click.
            await expect(self.page.locator("#rows caption")).not_to_be_empty()
        while await self.page.locator("#more").is_visible():
            await self.page.locator("#more").click()
        rows = await self.page.locator("#rows").evaluate(
            "table => [...table.tBodies[0].rows].filter(row => row.dataset.timestamp)"
            ".map(row => [row.dataset.timestamp, ...[...row.cells].map(cell => cell.textContent)])"
        )
        return [(datetime.fromisoformat(row[0]), row[2].replace(",", ""), row[3].split(",")[0]) for row in rows][::-1]

    async def close(self, *, but_outages: bool = False) -> None:
        """Fail on anything in the console. `but_outages` allows the browser's own messages about failed requests."""
        await self.visitor.context.close()
        problems = [p for p in self.visitor.problems if not (but_outages and _OUTAGE.match(p))]
        assert problems == [], problems


async def open_dashboard(
    browser: Browser,
    url: str,
    path: str = "/",
    *,
    width: int = 1280,
    scheme: str = "light",
    prepare: Callable[[Visitor], Awaitable[Any]] | None = None,
) -> Dashboard:
    visitor = await visit(browser, url, scheme)
    if prepare is not None:
        await prepare(visitor)
    page = await visitor.open(path)
    await page.set_viewport_size({"width": width, "height": 800})
    return Dashboard(visitor, page)


async def take_picture(dashboard: Dashboard, folder: Path, name: str) -> None:
    """Save a screenshot for people to look at, and fail if the page scrolls sideways."""
    await dashboard.page.screenshot(path=folder / f"{name}.png", full_page=True)
    widths = await dashboard.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], f"{name} scrolls sideways: {widths}"


async def stored(stack: Stack, ticker: str, first: datetime, last: datetime) -> list[tuple[datetime, str, str]]:
    """The rows of the database in the form of `Dashboard.rows`."""
    sql = """
        select timestamp, price, source::text
        from prices
        where ticker = $1
          and timestamp between $2 and $3
        order by timestamp
    """
    return [(at, plain(price), source.lower()) for at, price, source in await stack.rows(sql, ticker, first, last)]


def plain(price: Decimal) -> str:
    return format(price, "f")


async def start_guarded_api(stack: Stack, **settings: str) -> str:
    """Start another API on the same data. It needs a token, and no worker collects its ticker."""
    port = str(quiet_port())
    environment = {**stack.environment, "PORT": port, "API_TOKEN": TOKEN, "TICKERS": UNCOLLECTED, **settings}
    with (stack.folder / "guarded.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server"],
            cwd=stack.folder,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    stack.processes.append(process)
    url = f"http://127.0.0.1:{port}"

    async def is_up() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await stack.http.get(f"{url}/livez")).is_success
        return False

    await until(is_up, "the second API", seconds=20)
    return url


async def until(happened: Callable[[], Awaitable[bool]], what: str, seconds: float = 10) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await happened():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None
