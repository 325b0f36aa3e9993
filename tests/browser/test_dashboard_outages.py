"""The dashboard during outages: it names the fault, and shows every price afterwards."""

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Route, WebSocketRoute, expect

from tests.browser.conftest import Visitor
from tests.browser.dashboard import Dashboard, open_dashboard, stored, take_picture, until
from tests.faults.stack import TICKERS, Stack, open_stack

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
async def empty_stack(built: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path_factory.mktemp("outages"), interval=1) as stack:
        await stack.start_api()
        yield stack


@pytest.fixture(scope="module")
async def stack(empty_stack: Stack) -> Stack:
    """The same, with a price a second."""
    if len(empty_stack.processes) == 2:  # the exchange and the API
        empty_stack.start_worker()
    await empty_stack.wait_for_prices(2)
    return empty_stack


@pytest.fixture(scope="module")
def url(empty_stack: Stack) -> str:
    return f"http://127.0.0.1:{empty_stack.api_port}"


async def is_whole(dashboard: Dashboard, stack: Stack) -> datetime:
    """Wait until the table and the database agree from the table's first row on. Return the last row's timestamp."""
    rows: list[tuple[datetime, str, str]] = []

    async def is_same() -> bool:
        nonlocal rows
        rows = await dashboard.rows()
        return rows != [] and rows == await stored(stack, "btc_usd", rows[0][0], rows[-1][0])

    # Prices that waited for the database are stored last.
    await until(is_same, "a table without a hole")
    return rows[-1][0]


async def test_an_empty_database_says_so_and_fills_by_itself(
    browser: Browser, empty_stack: Stack, url: str, tmp_path: Path
) -> None:
    dashboard = await open_dashboard(browser, url)
    await dashboard.state("Live")
    await dashboard.notice("Nothing has been collected yet")
    await expect(dashboard.card("btc_usd")).to_contain_text("No price yet")
    await expect(dashboard.page.locator("#chart-message")).to_have_text("Nothing is stored in this period.")
    await take_picture(dashboard, tmp_path, "empty")
    empty_stack.start_worker()
    await expect(dashboard.card("btc_usd").locator("time")).to_have_count(1, timeout=20_000)
    await expect(dashboard.page.locator("#notice")).to_be_hidden(timeout=20_000)
    await expect(dashboard.page.locator("#chart-message")).to_be_hidden()
    await dashboard.close()


class Sockets:
    """All sockets of a page. Cuts them on demand, and records subscriptions and received prices."""

    def __init__(self) -> None:
        self.is_cut = False
        self.open: list[tuple[WebSocketRoute, WebSocketRoute]] = []
        self.asked: list[dict[str, Any]] = []
        self.cursors: list[str] = []
        self.received: list[str] = []

    async def route(self, visitor: Visitor) -> None:
        await visitor.context.route_web_socket("**/graphql", self.connect)

    async def connect(self, socket: WebSocketRoute) -> None:
        if self.is_cut:
            await socket.close(code=1013)
            return
        server = socket.connect_to_server()
        self.open.append((socket, server))

        def sent(message: str | bytes) -> None:
            frame = json.loads(message)
            if frame["type"] == "subscribe":
                self.asked.append(frame["payload"]["variables"])
            server.send(message)

        def received(message: str | bytes) -> None:
            if self.is_cut:
                return
            frame = json.loads(message)
            price = frame["type"] == "next" and frame["payload"]["data"]["priceUpdates"]
            if price:
                self.cursors.append(price["cursor"])
            if price and price["ticker"] == "btc_usd":
                self.received.append(price["timestamp"])
            socket.send(message)

        socket.on_message(sent)
        server.on_message(received)

    async def is_back(self) -> bool:
        return len(self.asked) == 2

    async def cut(self) -> None:
        self.is_cut = True
        for pair in self.open:
            for end in pair:
                await end.close(code=4000)
        self.open.clear()


async def test_a_cut_socket_comes_back_without_a_hole(browser: Browser, stack: Stack, url: str, tmp_path: Path) -> None:
    sockets = Sockets()
    dashboard = await open_dashboard(browser, url, "/?range=15m", prepare=sockets.route)
    await dashboard.state("Live")
    await stack.wait_for_prices(1)
    await sockets.cut()
    last_cursor = sockets.cursors[-1]
    cut_at = datetime.fromisoformat(sockets.received[-1])
    await dashboard.state("Reconnecting")
    await dashboard.notice("The live connection is lost")
    await expect(dashboard.page.locator("#notice-countdown")).to_have_text(re.compile(r"Next attempt in \d+ s\."))
    await take_picture(dashboard, tmp_path, "reconnecting")
    # From here on HTTP fails too, until the socket is back.
    await dashboard.visitor.context.route("**/graphql", lambda route: route.abort())
    await stack.wait_for_prices(2)
    seen = [(await dashboard.newest(ticker))[0] for ticker in TICKERS]
    sockets.is_cut = False
    await until(sockets.is_back, "a new subscription", seconds=20)
    await dashboard.visitor.context.unroute("**/graphql")
    await dashboard.state("Live")
    first = datetime.fromisoformat(sockets.asked[0]["since"])
    assert (sockets.asked[0]["after"], sockets.asked[1]) == (None, {"since": None, "after": last_cursor})
    last = await is_whole(dashboard, stack)
    assert last > max(cut_at, *seen) + timedelta(seconds=1)
    # The socket alone delivered each of them once.
    came = [at for at in map(datetime.fromisoformat, sockets.received) if first < at <= last]
    assert sorted(came) == [at for at, _, _ in await stored(stack, "btc_usd", first, last) if at > first]
    await dashboard.close(but_outages=True)


async def test_while_the_exchange_is_down_prices_are_stale_and_gaps_have_their_reason(
    browser: Browser, stack: Stack, url: str, tmp_path: Path
) -> None:
    dashboard = await open_dashboard(browser, url, "/?range=15m", width=360, scheme="dark")
    await dashboard.state("Live")
    await stack.switch("PUT", "faults/*", {"kind": "bad_gateway"})
    card = dashboard.card("btc_usd")
    await expect(card.locator(".mark-stale")).to_be_visible(timeout=10_000)
    # On a busy machine the slot is over before its first reply.
    failed = r"the exchange failed \((HTTP_502: reply is not a JSON-RPC envelope|TIMEOUT: no answer in time)\)"
    await dashboard.notice(rf"Every price is stale; .+: {failed}\.", seconds=20)
    await expect(card).to_contain_text(re.compile(rf"Why: {failed}\."))
    await expect(dashboard.page.locator("#completeness-panel .gaps li").first).to_contain_text(
        re.compile("HTTP_502|TIMEOUT"), timeout=15_000
    )
    await stack.switch("PUT", "faults/*", {"kind": "nan"})  # which the worker does not retry
    await dashboard.page.get_by_role("button", name="Fetch now").click()
    headline = dashboard.page.locator("#fetching-headline")
    await expect(headline).to_have_text("The fetch failed: no price could be fetched.", timeout=20_000)
    refused = dashboard.page.locator("#fetching-tickers li")
    await expect(refused).to_have_text([re.compile(f"{name}/USD BAD_PRICE: ") for name in ("BTC", "ETH")])
    await take_picture(dashboard, tmp_path, "exchange_down")
    await stack.switch("DELETE", "faults/*")
    await expect(card.locator(".mark-stale")).to_be_hidden(timeout=10_000)
    await expect(dashboard.page.locator("#notice")).to_be_hidden()
    await dashboard.close()


async def test_while_the_database_is_unavailable_the_page_says_how_old_it_is(
    browser: Browser, stack: Stack, url: str, tmp_path: Path
) -> None:
    dashboard = await open_dashboard(browser, url, "/?range=15m")
    await dashboard.state("Live")
    stack.kill_postgres()
    await dashboard.state("No database", 40)
    await dashboard.notice(r"database does not \(STORAGE_UNAVAILABLE\)\. The page shows the state of \d\d:\d\d:\d\d\.")
    await take_picture(dashboard, tmp_path, "storage_unavailable")
    await stack.restart_postgres()
    await dashboard.try_now()
    await dashboard.state("Live")
    await stack.wait_for_prices(1)
    await is_whole(dashboard, stack)
    await dashboard.close()


async def test_while_the_queue_is_unavailable_a_fetch_is_refused_with_its_code(
    browser: Browser, stack: Stack, url: str, tmp_path: Path
) -> None:
    dashboard = await open_dashboard(browser, url)
    await dashboard.state("Live")
    stack.kill_valkey()
    try:
        await dashboard.page.get_by_role("button", name="Fetch now").click()
        await expect(dashboard.page.locator("#fetching-headline")).to_contain_text("QUEUE_UNAVAILABLE")
        await take_picture(dashboard, tmp_path, "queue_unavailable")
    finally:
        await stack.restart_valkey()
    await dashboard.close()


async def test_after_too_many_fetches_the_button_counts_down(browser: Browser, stack: Stack, url: str) -> None:
    dashboard = await open_dashboard(browser, url)

    async def refuse(route: Route) -> None:
        if "fetchPrices" not in (route.request.post_data or ""):
            await route.fallback()
            return
        extensions = {"code": "RATE_LIMITED", "retryAfter": 2}
        await route.fulfill(json={"data": None, "errors": [{"message": "Too many.", "extensions": extensions}]})

    await dashboard.page.route("**/graphql", refuse)
    await dashboard.page.locator("#fetch").click()
    await expect(dashboard.page.locator("#fetching-headline")).to_have_text("Too many. RATE_LIMITED")
    await expect(dashboard.page.locator("#fetch")).to_have_text(re.compile(r"Fetch in [12] s"))
    await expect(dashboard.page.locator("#fetch")).to_have_text("Fetch now")
    await dashboard.close()


async def test_while_the_api_is_down_the_page_is_offline_and_catches_up_afterwards(
    browser: Browser, stack: Stack, url: str, tmp_path: Path
) -> None:
    dashboard = await open_dashboard(browser, url, "/?range=15m")
    await dashboard.state("Live")
    await stack.wait_for_prices(1)
    api = stack.processes[1]  # the exchange was started before it
    api.kill()
    api.wait()
    await dashboard.state("Offline")
    await dashboard.notice(r"The API cannot be reached\. The page shows the state of \d\d:\d\d:\d\d\.")
    await expect(dashboard.page.get_by_role("button", name="Try now")).to_be_visible()
    await take_picture(dashboard, tmp_path, "api_down")
    await stack.start_api()
    await dashboard.try_now()
    await dashboard.state("Live")
    await stack.wait_for_prices(1)
    await is_whole(dashboard, stack)
    await dashboard.close(but_outages=True)


async def test_a_page_that_opens_without_the_api_fills_when_it_answers(
    browser: Browser, stack: Stack, url: str, tmp_path: Path
) -> None:
    async def cut_off(visitor: Visitor) -> None:
        await visitor.context.route("**/graphql", lambda route: route.abort())
        await visitor.context.route_web_socket("**/graphql", lambda socket: socket.close(code=1013))

    dashboard = await open_dashboard(browser, url, prepare=cut_off)
    await dashboard.state("Offline")
    await dashboard.notice(r"^The API cannot be reached\.$")
    await take_picture(dashboard, tmp_path, "api_down_at_first")
    await dashboard.visitor.context.unroute_all()
    await dashboard.try_now()
    await expect(dashboard.card("btc_usd").locator("time")).to_have_count(1)

    async def is_drawn() -> bool:
        return "expected prices stored" in await dashboard.page.locator("#completeness-panel").inner_text()

    await until(is_drawn, "the chart")
    await dashboard.close(but_outages=True)
