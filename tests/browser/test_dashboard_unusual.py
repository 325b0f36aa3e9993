"""The dashboard with unusual prices, schedules and tickers. No worker runs: the tests write what is stored."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser.conftest import Visitor
from tests.browser.dashboard import Dashboard, open_dashboard, start_guarded_api, take_picture
from tests.faults.stack import Stack, open_stack

pytestmark = pytest.mark.timeout(120)

HOUR = timedelta(hours=1)
LONG_PRICES = {
    "btc_usd": "91118.97833",
    "eth_usd": "91118.9783333",
    "sol_usd": "123456789012345678.123456789012345678",
    "xrp_usd": "0.000000000000000012",
}


@pytest.fixture(scope="module")
async def stack(built: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path_factory.mktemp("unusual"), interval=1) as stack:
        yield stack


async def write(stack: Stack, ticker: str, interval: int, prices: dict[datetime, str]) -> None:
    schedule = "insert into schedules (ticker, since, interval_seconds, first_fill_done) values ($1, $2, $3, true)"
    price = """
        insert into prices (ticker, timestamp, price, observed_at, source, testnet)
        values ($1, $2, $3, $2, 'SCHEDULED', true)
    """
    await stack.rows(schedule, ticker, min(prices), interval)
    for at, value in prices.items():
        await stack.rows(price, ticker, at, Decimal(value))


def this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


BROKEN = """() => {
    const broken = [];
    for (const number of document.querySelectorAll('.whole-number')) {
        if (!number.checkVisibility()) continue;
        const walker = document.createTreeWalker(number, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const range = document.createRange();
            range.selectNode(walker.currentNode);
            if (range.getClientRects().length > 1) broken.push(walker.currentNode.data);
        }
    }
    for (const card of document.querySelectorAll('.card')) {
        if (card.scrollWidth > card.clientWidth) broken.push('card overflows: ' + card.textContent);
    }
    return broken;
}"""
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"
"The layout after a change of the width: the chart and the prices follow it in the next frames."
LINES = """price => {
    const tops = [];
    const walker = document.createTreeWalker(price, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const range = document.createRange();
        range.selectNode(walker.currentNode);
        tops.push(...[...range.getClientRects()].map(rect => Math.round(rect.top)));
    }
    return new Set(tops).size;
}"""


async def test_a_long_price_never_breaks_inside_a_group_of_digits(
    browser: Browser, stack: Stack, tmp_path: Path
) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    for ticker, price in LONG_PRICES.items():
        earlier = {now - 24 * HOUR: price, now - HOUR: str(Decimal(price) / 2)}
        await write(stack, ticker, 60, {**earlier, now: price})
    url = await start_guarded_api(stack, TICKERS=",".join(LONG_PRICES), FETCH_INTERVAL_SECONDS="60")
    dashboard = await open_dashboard(browser, url, "/?range=6h")
    page = dashboard.page
    await dashboard.state("Live")
    for ticker, price in LONG_PRICES.items():
        await dashboard.card(ticker).get_by_role("button").click()
        await expect(page.locator("#chart-heading")).to_have_text(ticker.upper().replace("_", "/"))
        await expect(dashboard.card(ticker).locator(".price")).to_have_text(f"{Decimal(price):,f}")
        await expect(dashboard.card(ticker).locator(".change")).to_have_count(2)
        await page.locator("#chart").focus()
        await page.keyboard.press("End")
        await expect(page.locator(".tip")).to_contain_text(f"{Decimal(price):,f}")
        for width in (320, 360, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 800})
            await page.evaluate(SETTLED)
            assert await page.evaluate(BROKEN) == [], (ticker, width)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (ticker, width)
            lines = await dashboard.card(ticker).locator(".price").evaluate(LINES)
            assert lines == 1 or (len(price) > 20 and lines <= 3), (ticker, width, lines)
    await take_picture(dashboard, tmp_path, "long")
    await dashboard.close()


async def test_a_table_heading_stands_over_its_numbers(browser: Browser, stack: Stack) -> None:
    await write(stack, "ada_usd", 60, {this_hour(): "0.4"})
    url = await start_guarded_api(stack, TICKERS="ada_usd", FETCH_INTERVAL_SECONDS="60")
    dashboard = await open_dashboard(browser, url, "/?range=6h")
    await dashboard.page.locator("#table summary").click()
    for form, second in (("Line", "Price"), ("Candles", "Open")):
        await dashboard.page.get_by_role("radio", name=form).check()
        await expect(dashboard.page.locator("#rows th").nth(1)).to_have_text(second)
        await expect(dashboard.page.locator("#rows td").first).to_be_visible()
        edges = await dashboard.page.locator("#rows").evaluate(
            """table => [...table.tHead.rows[0].cells].map((head, index) => {
                const styles = [head, table.tBodies[0].querySelector('[data-timestamp]').cells[index]];
                return [head.textContent, ...styles.map(cell => getComputedStyle(cell).textAlign)];
            })"""
        )
        numbers = {"Price", "Open", "High", "Low", "Close", "Prices"}
        sides = ["right" if name in numbers else "left" for name, _, _ in edges]
        assert edges == [[name, side, side] for (name, _, _), side in zip(edges, sides, strict=True)]
        assert "right" in sides
    await dashboard.close()


RECORD_LABELS = """
    globalThis.labels = [];
    const { clearRect, fillText } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.clearRect = function (...box) {
        globalThis.labels = [];
        clearRect.apply(this, box);
    };
    CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
        globalThis.labels.push(text);
        fillText.call(this, text, ...place);
    };
"""
"What the chart writes on its canvas, its axes' labels."


async def record_labels(visitor: Visitor) -> None:
    await visitor.context.add_init_script(RECORD_LABELS)


async def price_labels(dashboard: Dashboard) -> list[Decimal]:
    labels: list[str] = await dashboard.page.evaluate("globalThis.labels")
    return [Decimal(label.replace(",", "")) for label in labels if re.fullmatch(r"[\d,]+(\.\d+)?", label)]


COUNT_OBSERVED = """() => {
    const canvas = document.querySelector('#plot canvas');
    const colour = getComputedStyle(canvas).getPropertyValue('--chart-observed');
    const wanted = colour.match(/[0-9a-f]{2}/g).map(part => parseInt(part, 16));
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, Math.round(canvas.height * 0.75));
    let count = 0;
    for (let i = 0; i < data.length; i += 4) count += wanted.every((part, n) => Math.abs(part - data[i + n]) < 8);
    return count;
}"""
"Pixels of the observed line's colour, above the strip along the bottom."


@pytest.mark.parametrize("interval", [60, 300, 3600])
async def test_the_first_range_follows_the_interval(
    browser: Browser, stack: Stack, interval: int, tmp_path: Path
) -> None:
    ticker = f"every{interval}_usd"
    step = timedelta(seconds=interval)
    last = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()) // interval * interval, UTC)
    await write(stack, ticker, interval, {last - n * step: f"87{500 + n}" for n in range(30)})
    url = await start_guarded_api(stack, TICKERS=ticker, FETCH_INTERVAL_SECONDS=str(interval))
    dashboard = await open_dashboard(browser, url, prepare=record_labels)
    wanted = {60: "1 h", 300: "6 h", 3600: "24 h"}[interval]
    await expect(dashboard.page.get_by_role("radio", name=wanted, exact=True)).to_be_checked()
    await expect(dashboard.page.locator("#completeness-panel")).to_contain_text("expected")
    assert len(await dashboard.rows()) >= 24
    assert await dashboard.page.evaluate(COUNT_OBSERVED) > 100
    assert all(87_400 <= label <= 87_600 for label in await price_labels(dashboard))
    await take_picture(dashboard, tmp_path, f"every_{interval}")

    # A chosen range stays chosen. One that is too short for the schedule says so.
    if interval == 3600:
        await dashboard.page.get_by_role("radio", name="15 min").check()
        await dashboard.page.reload()
        await expect(dashboard.page.get_by_role("radio", name="15 min")).to_be_checked()
        if datetime.now(UTC) - this_hour() > timedelta(minutes=16):
            await expect(dashboard.page.locator("#chart-message")).to_have_text(
                "Nothing is stored in this period. One price is stored every 1 h, so choose a longer range."
            )
    await dashboard.close()


async def test_a_single_price_is_drawn_on_an_axis_that_fits_it(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    await write(stack, "dot_usd", 3600, {this_hour(): "87500.25"})
    url = await start_guarded_api(stack, TICKERS="dot_usd", FETCH_INTERVAL_SECONDS="3600")
    dashboard = await open_dashboard(browser, url, prepare=record_labels)
    await expect(dashboard.page.locator("#completeness-panel")).to_contain_text("expected")
    await expect(dashboard.page.locator("#chart-message")).to_be_hidden()
    labels = await price_labels(dashboard)
    assert len(labels) >= 2
    assert all(abs(label - Decimal("87500.25")) < 200 for label in labels)
    assert await dashboard.page.evaluate(COUNT_OBSERVED) > 20
    await expect(dashboard.page.locator("#chart")).to_have_attribute("aria-valuetext", re.compile("^1 point; "))
    await take_picture(dashboard, tmp_path, "single")
    await dashboard.close()


@pytest.fixture(scope="module")
async def misspelt(stack: Stack) -> str:
    """An API with a ticker that does not exist, one that has no price yet, and one that has a price."""
    await write(stack, "ltc_usd", 60, {this_hour(): "91.5"})
    return await start_guarded_api(stack, TICKERS="btc_usdd,btc_usdx,ltc_usd", FETCH_INTERVAL_SECONDS="60")


NEAR = [{"name": "btc_usdd", "near": ["btc_usd", "btc_usdc"]}]
REASON = "index btc_usdd does not exist at the exchange; near ones: btc_usd, btc_usdc"


@pytest.mark.parametrize(
    "dependencies",
    [
        {"worker": {"status": "warning", "reason": "see the list", "unknownIndices": NEAR}},
        {"worker": {"status": "warning", "reason": REASON}},
        {"prices": {"status": "warning", "reason": f"btc_usdd: nothing collected yet; {REASON}"}},
        {"worker": {"status": "warning", "reason": f"usdd_btc does not exist; near ones: btc_usdx; {REASON}."}},
    ],
)
async def test_a_ticker_that_the_exchange_does_not_know_is_a_fault_of_the_configuration(
    browser: Browser, misspelt: str, dependencies: dict[str, Any], tmp_path: Path
) -> None:
    async def warn(visitor: Visitor) -> None:
        body = {"status": "ok", "dependencies": {"postgres": {"status": "ok", "reason": None}, **dependencies}}
        await visitor.context.route("**/readyz", lambda route: route.fulfill(json=body))

    dashboard = await open_dashboard(browser, misspelt, prepare=warn)
    card = dashboard.card("btc_usdd")
    await expect(card.locator(".price")).to_have_text("Unknown index")
    await expect(card.locator(".mark-unknown")).to_have_text("unknown")
    await expect(card.locator(".when")).to_have_text(
        "btc_usdd does not exist at the exchange. Correct it in TICKERS. Similar names: btc_usd, btc_usdc."
    )
    await expect(dashboard.card("btc_usdx").locator(".price")).to_have_text("No price yet")
    await expect(dashboard.card("ltc_usd").locator(".price")).to_have_text("91.5")
    # The chart opens with a ticker that has prices.
    await expect(dashboard.page.locator("#chart-heading")).to_have_text("LTC/USD")
    await card.get_by_role("button").click()
    await expect(dashboard.page.locator("#chart-message")).to_have_text(
        "btc_usdd does not exist at the exchange, so it has no prices."
    )
    await dashboard.page.set_viewport_size({"width": 360, "height": 800})
    await take_picture(dashboard, tmp_path, "unknown")
    await dashboard.close()
