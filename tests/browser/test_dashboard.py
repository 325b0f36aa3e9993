"""The dashboard at `/` in normal operation: it shows what the database holds."""

import csv
import gzip
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Browser, Page, Request, expect

from server.http.pages import STATIC
from tests.browser.conftest import Visitor
from tests.browser.dashboard import (
    TOKEN,
    UNCOLLECTED,
    Dashboard,
    open_dashboard,
    plain,
    start_guarded_api,
    stored,
    take_picture,
    until,
)
from tests.faults.stack import TICKERS, Stack, open_stack

pytestmark = pytest.mark.timeout(120)

MOST_JAVASCRIPT = 150_000  # bytes, gzipped
SECOND = timedelta(seconds=1)
NEW = "sol_usd"
"No worker fetches this one either."


@pytest.fixture(scope="module")
async def stack(built: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A price a second for each ticker, and the hour before recovered from the exchange's trades."""
    async with open_stack(tmp_path_factory.mktemp("dashboard"), interval=1, has_trades=True) as stack:
        stack.start_worker()
        await stack.start_api()
        await stack.wait_for_prices(2)
        yield stack


@pytest.fixture(scope="module")
def url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.api_port}"


@pytest.fixture
async def dashboard(browser: Browser, url: str) -> AsyncIterator[Dashboard]:
    dashboard = await open_dashboard(browser, url, "/?range=15m")
    await dashboard.state("Live")
    yield dashboard
    await dashboard.close()


@pytest.fixture(scope="module")
async def guarded(stack: Stack) -> str:
    return await start_guarded_api(stack)


async def test_a_stored_price_appears_with_every_digit_and_without_a_reload(stack: Stack, dashboard: Dashboard) -> None:
    for ticker in TICKERS:
        await stack.wait_for_prices(1)
        [row] = await stack.rows("select max(timestamp) from prices where ticker = $1", ticker)

        async def is_shown(ticker: str = ticker, at: datetime = row[0]) -> bool:
            return (await dashboard.newest(ticker))[0] >= at

        await until(is_shown, f"the price of {row[0]}", seconds=2)
        timestamp, value, text = await dashboard.newest(ticker)
        [(_, price, _)] = await stored(stack, ticker, timestamp, timestamp)
        assert (value, text) == (price, f"{Decimal(price):,f}")
        await expect(dashboard.card(ticker)).to_contain_text("testnet")
    await expect(dashboard.page.locator("#testnet")).to_contain_text("Simulated prices")
    # The chart has them too, and the prices healed earlier.
    await stack.wait_for_prices(1)
    [row] = await stack.rows("select max(timestamp) from prices where ticker = 'btc_usd'")

    async def is_drawn() -> bool:
        rows = await dashboard.rows()
        return rows != [] and rows[-1][0] >= row[0] and rows == await stored(stack, "btc_usd", rows[0][0], rows[-1][0])

    await until(is_drawn, "the chart's prices, while earlier ones are recovered", seconds=20)


async def test_the_change_is_that_of_the_stored_prices(stack: Stack, dashboard: Dashboard) -> None:
    # The chart is coarser than a grid of a second, so it has filled nothing from an hour ago.
    await stack.rows("""
        insert into prices (ticker, price, timestamp, observed_at, source, testnet)
        select ticker, price, timestamp - interval '1 hour', observed_at - interval '1 hour', 'BACKFILLED', true
        from prices
        where ticker = 'btc_usd'
        on conflict do nothing
        returning timestamp
    """)
    await dashboard.page.reload()  # the page reads the earlier prices at most twice a minute
    card = dashboard.card("btc_usd")
    await expect(card.locator(".change").first).to_be_visible()
    latest, percent, difference, earlier = await card.evaluate(
        "card => [card.querySelector('data').value, ...['strong', '.difference', '.earlier']"
        ".map(name => card.querySelector('.change ' + name).textContent)]"
    )
    match = re.fullmatch(r"from ([\d,.]+) at .+", earlier)
    assert match
    before = Decimal(match[1].replace(",", ""))
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    nearby = await stored(stack, "btc_usd", hour_ago - timedelta(seconds=30), hour_ago + timedelta(minutes=5))
    assert plain(before) in {price for _, price, _ in nearby}
    change = Decimal(latest) - before
    sign = "+" if change > 0 else "\u2212" if change < 0 else "±"
    assert difference == f"{sign}{abs(change):,f}"
    hundredths = (abs(change) / before * 100).quantize(Decimal("0.01"), ROUND_HALF_UP)
    assert percent == f"{sign}{hundredths} %"


async def test_fetch_now_ends_with_the_price_of_each_ticker(stack: Stack, dashboard: Dashboard, tmp_path: Path) -> None:
    page = dashboard.page
    await page.get_by_role("button", name="Fetch now").click()
    await expect(page.locator("#fetching-headline")).to_have_text("Fetched: every price is stored.", timeout=20_000)
    requested = await stack.rows("select ticker, price from prices where source = 'REQUESTED' order by ticker")
    assert [row["ticker"] for row in requested] == [*TICKERS]
    for ticker, price in requested:
        await expect(page.locator(f'#fetching-tickers [data-ticker="{ticker}"]')).to_contain_text(f"{price:,f} at ")
    await take_picture(dashboard, tmp_path, "fetched")


async def test_the_chart_is_read_by_keyboard(stack: Stack, dashboard: Dashboard, tmp_path: Path) -> None:
    page = dashboard.page
    chart = page.get_by_role("slider", name="Point in the chart")
    value, most, words = await chart.evaluate(
        "chart => ['now', 'max', 'text'].map(name => chart.getAttribute('aria-value' + name))"
    )
    assert value == most
    assert words.startswith(f"{int(most) + 1} points; the last is ")
    await chart.focus()
    await page.keyboard.press("Home")
    await page.keyboard.press("ArrowRight")
    told = await chart.get_attribute("aria-valuetext") or ""
    match = re.search(r"Price: ([\d,.]+); Local: .+; UTC: (\S+) (\S+) UTC; Source: (\w+)", told)
    assert match, told
    at = datetime.fromisoformat(f"{match[2]}T{match[3]}+00:00")
    assert await stored(stack, "btc_usd", at, at) == [(at, match[1].replace(",", ""), match[4])]
    await expect(page.locator(".tip")).to_be_visible()
    await take_picture(dashboard, tmp_path, "crosshair")
    await page.keyboard.press("Escape")
    await expect(page.locator(".tip")).to_be_hidden()

    await page.get_by_role("radio", name="Line").press("ArrowRight")
    await expect(page.get_by_role("radio", name="Candles")).to_be_checked()
    await expect(page.locator("#chart-interval")).to_have_text("one candle per 1 min")
    await page.get_by_role("button", name="ETH/USD").press("Enter")
    await expect(page.get_by_role("heading", name="ETH/USD one candle per 1 min")).to_be_visible()
    await page.get_by_role("radio", name="6 h", exact=True).check()
    assert urlsplit(page.url).query == "range=6h&ticker=eth_usd&interval=AUTO&form=candles"
    await expect(page.locator("#rows")).not_to_be_visible()
    await take_picture(dashboard, tmp_path, "candles")


async def test_the_shown_period_is_downloaded(stack: Stack, dashboard: Dashboard) -> None:
    page = dashboard.page
    link = page.get_by_role("link", name="Download CSV")
    for form, columns in (("Line", ["timestamp", "price", "source"]), ("Candles", ["start", "close", "samples"])):
        await page.get_by_role("radio", name=form).check()
        await expect(link).to_have_attribute("href", re.compile(f"/{'prices' if form == 'Line' else 'candles'}"))
        async with page.expect_download() as downloading:
            await link.click()
        download = await downloading.value
        assert re.fullmatch(
            r"btc_usd_(prices|candles_ONE_MINUTE)_\d{8}T\d{6}Z_\d{8}T\d{6}Z\.csv", download.suggested_filename
        )
        with Path(await download.path()).open(newline="", encoding="utf-8") as file:
            found = [[row[name] for name in columns] for row in csv.DictReader(file)]
        assert found
        if form == "Line":
            given = parse_qs(urlsplit(download.url).query)
            first, last = (datetime.fromisoformat(given[name][0]) for name in ("from", "to"))
            shown = await stored(stack, "btc_usd", first, last)
            assert [(datetime.fromisoformat(at), price, source.lower()) for at, price, source in found] == shown


async def test_the_graphql_of_each_panel_runs(stack: Stack, dashboard: Dashboard) -> None:
    page = dashboard.page
    await expect(page.locator("#completeness-panel")).to_contain_text("expected prices stored")
    links = await page.locator("a[href*='query=']").evaluate_all("links => links.map(link => [link.id, link.href])")
    ran = set()
    for name, href in links:
        asked = parse_qs(urlsplit(href).query)
        query, variables = asked["query"][0], asked["variables"][0]
        if query.startswith("query"):
            reply = await stack.http.get(href.replace("?", "?operationName=&"), headers={"Accept": "application/json"})
            assert reply.is_success, (query, variables, reply.text)
            assert "errors" not in reply.json(), reply.text
            ran.add(name)
    assert ran == {"prices-query", "chart-query", "completeness-query"}
    assert {name for name, _ in links} - ran == {"live-query", "fetching-query"}


@pytest.fixture(scope="module")
async def written(stack: Stack) -> datetime:
    """The uncollected ticker, each second until now: 12,000 observed, 120 missing, 120 backfilled, 180 observed."""
    now = datetime.now(UTC).replace(microsecond=0)
    sql = """
        with slot as (
            select ordinal, $2::timestamptz + make_interval(secs => ordinal) as at
            from generate_series(-12420, -1) as ordinal
        ), schedule as (
            insert into schedules (ticker, since, interval_seconds, first_fill_done)
            select $1, min(at), 1, true
            from slot
        ), missed as (
            insert into missed_slots (ticker, slot, reason, detail, unanswered)
            select $1, at, 'EXCHANGE_ERROR', 'RPC_10028: too_many_requests', true
            from slot
            where ordinal >= -420
              and ordinal < -300
        )
        insert into prices (ticker, timestamp, price, observed_at, source, testnet)
        select
            $1,
            at,
            round(0.4 + (ordinal % 97) / 10000.0, 4),
            at,
            (
                case
                    when ordinal between -300 and -181 then 'BACKFILLED'
                    when ordinal between -180 and -121 then 'RECOVERED'
                    else 'SCHEDULED'
                end
            )::price_source,
            true
        from slot
        where ordinal < -420
           or ordinal >= -300
    """
    await stack.rows(sql, UNCOLLECTED, now)
    return now


COUNT_COLOURS = """([name, first, last, span]) => {
    const canvas = document.querySelector('#plot canvas');
    const over = document.querySelector('#plot .u-over').getBoundingClientRect();
    const frame = canvas.getBoundingClientRect();
    const colour = getComputedStyle(canvas).getPropertyValue('--chart-' + name);
    const wanted = colour.match(/[0-9a-f]{2}/g).map(part => parseInt(part, 16));
    const scale = canvas.width / frame.width;
    const xOf = time => over.left - frame.left + (time - (Date.now() - span)) / span * over.width;
    const [left, right] = [xOf(first), xOf(last)].map(x => Math.round(x * scale));
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(left, 0, right - left, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) count += wanted.every((part, n) => Math.abs(part - data[i + n]) < 8);
    return count;
}"""


async def colours(page: Page, middle: datetime, reach: int = 20) -> set[str]:
    """The legend's colours on a chart of 15 minutes, within `reach` seconds of an instant."""
    first, last = ((middle + timedelta(seconds=s)).timestamp() * 1000 for s in (-reach, reach))
    names = ("observed", "recovered", "backfilled", "missing")
    return {name for name in names if await page.evaluate(COUNT_COLOURS, [name, first, last, 900_000])}


async def test_gaps_and_backfilled_stretches_are_told_apart_and_pages_are_read(
    browser: Browser, written: datetime, guarded: str, tmp_path: Path
) -> None:
    dashboard = await open_dashboard(browser, guarded, "/?range=15m")
    page = dashboard.page
    panel = page.locator("#completeness-panel")
    await expect(panel).to_contain_text("missing")
    gaps = await panel.locator(".gaps li").all_inner_texts()
    assert re.search(r"\s120 prices\s+the exchange failed \(RPC_10028: too_many_requests\)$", gaps[-1])
    # The slots since then are missing too, because no worker runs.
    match = re.search(r"(\d+) of (\d+) expected prices stored, (\d+) missing\.", await panel.inner_text())
    assert match
    present, expected, missing = map(int, match.groups())
    assert (present, missing) == (expected - missing, expected - present)
    assert re.search(r"\b60 recovered, 120 backfilled\.", await panel.inner_text())
    for seconds, colour in ((-480, "observed"), (-360, "missing"), (-240, "backfilled"), (-90, "observed")):
        assert await colours(page, written + seconds * SECOND) == {colour}
    # The line above the strip is that of an observed price.
    assert await colours(page, written - 150 * SECOND) == {"recovered", "observed"}

    await page.get_by_role("radio", name="6 h", exact=True).check()
    pages: list[str | None] = []
    page.on(
        "request", lambda request: pages.append(after_of(request)) if "Prices(" in (request.post_data or "") else None
    )
    await page.get_by_label("Interval").select_option("PRICES")
    await page.locator("#table summary").click()
    await expect(page.locator("#rows caption")).to_have_text("Newest first, 50 of 12,300 rows")
    assert [after is None for after in pages] == [True, False]
    await take_picture(dashboard, tmp_path, "gaps")
    await dashboard.close()


KEPT = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"


def after_of(request: Request) -> str | None:
    after: str | None = json.loads(request.post_data or "")["variables"]["after"]
    return after


async def test_before_the_first_price_the_chart_claims_nothing(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """Backfilled for a minute from 20 s after a full one, then collected for five."""
    minute = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=8)
    first, since, end = (minute + timedelta(seconds=seconds) for seconds in (20, 80, 380))
    sql = """
        with schedule as (
            insert into schedules (ticker, since, interval_seconds, first_fill_done)
            values ($1, $3, 1, true)
        )
        insert into prices (ticker, timestamp, price, observed_at, source, testnet)
        select $1, at, 0.4, at, (case when at < $3 then 'BACKFILLED' else 'SCHEDULED' end)::price_source, true
        from generate_series($2::timestamptz, $4::timestamptz - interval '1 second', interval '1 second') as at
    """
    await stack.rows(sql, NEW, first, since, end)
    url = await start_guarded_api(stack, TICKERS=NEW)
    dashboard = await open_dashboard(browser, url, "/?range=15m&interval=ONE_MINUTE")
    page = dashboard.page
    panel = page.locator("#completeness-panel")
    await expect(panel).to_contain_text(
        re.compile(rf"Collected since (\d+ \w+, )?{since.astimezone():%H:%M:%S}; nothing is expected before\.")
    )
    await expect(panel).to_contain_text("60 backfilled from before it was first collected")
    shares = await panel.get_by_role("list", name="Shares of the expected prices").locator("li").all_inner_texts()
    assert [re.sub(r"[\d.]+", "N", " ".join(share.split())) for share in shares] == ["observed N %", "missing N %"]
    await expect(page.locator("#chart-section")).to_have_attribute("data-sources", "known")
    assert not {"observed", "backfilled"} & await colours(page, first - 10 * SECOND, 7)
    assert "observed" not in await colours(page, first + 30 * SECOND, 20)
    assert "observed" in await colours(page, since + 60 * SECOND)
    await take_picture(dashboard, tmp_path, "new")
    await dashboard.close()


async def test_a_refused_fetch_asks_for_the_token_and_stores_it_nowhere(
    browser: Browser, guarded: str, tmp_path: Path
) -> None:
    dashboard = await open_dashboard(browser, guarded)
    page = dashboard.page
    await page.get_by_role("button", name="Fetch now").click()
    await expect(page.locator("#fetching-headline")).to_contain_text("UNAUTHENTICATED")
    await page.get_by_label("Token", exact=True).fill("not-the-token")
    await page.keyboard.press("Enter")
    await expect(page.locator("#token-hint")).to_have_text("That token was not accepted.")
    await take_picture(dashboard, tmp_path, "refused")
    await page.get_by_label("Token", exact=True).fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.locator("#fetching-headline")).to_have_text("Fetched: every price is stored.", timeout=20_000)
    assert TOKEN not in await page.evaluate(KEPT)
    await dashboard.close()


async def test_if_reads_need_a_token_the_page_asks_for_it_once(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    url = await start_guarded_api(stack, REQUIRE_TOKEN_FOR_READS="1", TICKERS=",".join(TICKERS))
    asked: list[Request] = []
    frames: list[str] = []

    async def note(visitor: Visitor) -> None:
        visitor.context.on("request", lambda request: asked.append(request) if request.post_data else None)

    dashboard = await open_dashboard(browser, url, "/?range=15m&form=candles", prepare=note)
    page = dashboard.page
    await dashboard.state("Token needed")
    await dashboard.notice(r"^This server needs a token to read prices\.$")
    fields = page.locator("input:not([type=radio])").filter(visible=True)
    await expect(fields).to_have_count(1)
    await expect(page.get_by_role("button", name="Fetch now")).to_be_hidden()
    await page.wait_for_timeout(7000)  # longer than it waits between reads, and for the socket at first
    assert (len(asked), len(dashboard.visitor.sockets)) == (1, 1)
    await take_picture(dashboard, tmp_path, "locked")

    for wrong in ("not-the-token", "ключ"):
        await fields.fill(wrong)
        await page.keyboard.press("Enter")
        await expect(page.locator("#access-hint")).to_have_text("That token was not accepted.")
        await expect(fields).to_be_focused()
    await take_picture(dashboard, tmp_path, "locked_wrong")
    assert len(dashboard.visitor.sockets) == 1

    asked.clear()
    page.on("websocket", lambda ws: ws.on("framesent", lambda frame: frames.append(str(frame))))
    await fields.fill(TOKEN)
    await page.keyboard.press("Enter")
    await dashboard.state("Live")
    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("#completeness-panel")).to_contain_text("expected prices stored")
    assert json.loads(frames[0])["payload"] == {"Authorization": f"Bearer {TOKEN}"}
    await page.get_by_role("button", name="Fetch now").click()
    await expect(page.locator("#fetching-headline")).to_have_text("Fetched: every price is stored.", timeout=20_000)
    assert {request.headers.get("authorization") for request in asked} == {f"Bearer {TOKEN}"}
    async with page.expect_download() as downloading:
        await page.get_by_role("link", name="Download CSV").click()
    download = await downloading.value
    assert download.suggested_filename.startswith("btc_usd_candles_ONE_MINUTE_")
    assert Path(await download.path()).read_text(encoding="utf-8").startswith("ticker,start,open,")
    assert TOKEN not in await page.evaluate(KEPT)
    await dashboard.close(but_outages=True)


CONTRASTS = """() => {
    const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
    const backOf = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
    };
    const poor = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('.skip, option')) continue;
        const style = getComputedStyle(element);
        const [text, back] = [light(parse(style.color)), light(backOf(element))];
        const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
        if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) poor.push([walker.currentNode.data, ratio]);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_is_legible_and_fits_from_phone_to_wide_screen(
    browser: Browser, url: str, guarded: str, written: datetime, scheme: str, tmp_path: Path
) -> None:
    for name, where in (("full", url), ("stale", guarded)):
        dashboard = await open_dashboard(browser, where, scheme=scheme)
        await dashboard.state("Live")
        await expect(dashboard.page.locator("#completeness-panel")).to_contain_text("expected prices stored")
        await dashboard.page.locator("#table summary").click()
        assert await dashboard.page.evaluate(CONTRASTS) == []
        for width in (360, 768, 1440):
            await dashboard.page.set_viewport_size({"width": width, "height": 800})
            await take_picture(dashboard, tmp_path, f"{name}_{scheme}_{width}")
        await dashboard.close()


def test_the_scripts_are_small(built: None) -> None:
    page = (STATIC / "index.html").read_text()
    scripts = set(re.findall(r'"\./(assets/[\w.-]+\.js)"', page))
    for script in list(scripts):
        scripts |= {f"assets/{name}" for name in re.findall(r'"\./([\w.-]+\.js)"', (STATIC / script).read_text())}
    assert 0 < sum(len(gzip.compress((STATIC / script).read_bytes(), 9)) for script in scripts) < MOST_JAVASCRIPT
