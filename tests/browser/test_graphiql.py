"""GraphiQL at `/graphql` in a browser."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Page, expect

from shared.local.servers import free_port
from tests.browser.conftest import Visitor, until, visit
from tests.integration.local.test_stack import Demo

pytestmark = pytest.mark.timeout(300)

TABS = [
    "LatestPrices",
    "PriceHistory",
    "PeriodWithCoverage",
    "PricesAt",
    "Statistics",
    "FetchPrices",
    "LivePrices",
]
TICKERS = ["btc_usd", "eth_usd"]
QUERY = "query Mine($ticker: String!) { latestPrice(ticker: $ticker) { ticker } }"
ADDRESS = "/graphql?" + urlencode({"query": QUERY, "variables": '{"ticker":"eth_usd"}'})
READING_MS = 500  # GraphiQL parses a document after a delay, and shows no sign when it has


class GraphiQL:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.tabs = page.locator(".graphiql-tab-button")
        self.run_button = page.locator(".graphiql-execute-button")

    async def text(self, editor: str) -> str:
        """The whole text of an editor, which shows only what fits."""
        text: str = await self.page.evaluate(
            "name => globalThis.__MONACO.editor.getModels().find(m => m.uri.path.endsWith(name)).getValue()", editor
        )
        return text

    async def write(self, editor: str, text: str) -> None:
        await self.page.evaluate(
            "([name, text]) => "
            "globalThis.__MONACO.editor.getModels().find(m => m.uri.path.endsWith(name)).setValue(text)",
            [editor, text],
        )

    async def go_to(self, tab: str) -> None:
        await self.tabs.get_by_text(tab, exact=True).click()
        await self.page.wait_for_timeout(READING_MS)

    async def run(self, operation: str | None = None) -> None:
        await self.run_button.click()
        if operation is not None:
            await self.page.get_by_role("menuitem", name=operation).click()

    async def result(self, wanted: Callable[[Any], bool] = bool) -> Any:
        """The first answer that satisfies `wanted`."""
        async with asyncio.timeout(20):
            while True:
                text = await self.text("response.json")
                if text and wanted(answer := json.loads(text)):
                    return answer
                await asyncio.sleep(0.05)


async def open_graphiql(visitor: Visitor, path: str = "/graphql") -> GraphiQL:
    page = await visitor.open(path)
    await expect(page.locator(".graphiql-query-editor .view-line").first).to_be_visible(timeout=20_000)
    await until(page, "globalThis.__MONACO.editor.getModels().length >= 4")
    return GraphiQL(page)


async def test_on_a_phone_the_response_has_the_whole_width(visitor: Visitor, tmp_path: Path) -> None:
    graphiql = await open_graphiql(visitor)
    for width in (320, 360):
        await graphiql.page.set_viewport_size({"width": width, "height": 740})
        await graphiql.run()
        await expect(graphiql.page.locator(".result-window")).to_contain_text("latestPrices")
        boxes = [await graphiql.page.locator(part).bounding_box() for part in (".graphiql-editors", ".result-window")]
        assert all(box and box["width"] > 0.85 * width and box["height"] > 150 for box in boxes), boxes
        assert await graphiql.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await graphiql.page.screenshot(path=tmp_path / f"{width}.png")

    await graphiql.page.get_by_role("button", name="Show Documentation Explorer").click()
    explorer = graphiql.page.locator(".graphiql-plugin")
    box = await explorer.bounding_box()
    assert box
    assert (box["x"], box["width"]) == (0, 360)
    await graphiql.page.screenshot(path=tmp_path / "explorer.png")
    await graphiql.page.get_by_role("button", name="Hide Documentation Explorer").click()
    await expect(graphiql.page.locator(".result-window")).to_be_visible()


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
async def test_opens_with_examples_in_the_readers_colours(
    browser: Browser, demo: Demo, color_scheme: str, tmp_path: Path
) -> None:
    visitor = await visit(browser, demo.url, color_scheme)
    try:
        graphiql = await open_graphiql(visitor)
        assert await graphiql.tabs.all_inner_texts() == TABS
        background = await graphiql.page.locator(".graphiql-container").evaluate(
            "element => getComputedStyle(element).backgroundColor"
        )
        brightness = sum(int(part) for part in background[4:-1].split(",")[:3])
        assert (brightness > 600) == (color_scheme == "light")
        await graphiql.run()
        await graphiql.result()
        await expect(graphiql.page.locator(".result-window")).to_contain_text("latestPrices")
        await graphiql.page.screenshot(path=tmp_path / f"{color_scheme}.png")
    finally:
        await visitor.context.close()
    assert visitor.problems == []


async def test_each_example_runs(visitor: Visitor) -> None:
    graphiql = await open_graphiql(visitor)
    assert "`" not in str(await graphiql.page.evaluate("localStorage.getItem('graphiql:tabState')"))
    await graphiql.run()
    answer = await graphiql.result()
    assert [price["ticker"] for price in answer["data"]["latestPrices"]] == TICKERS

    await graphiql.go_to("PriceHistory")
    await graphiql.run()
    answer = await graphiql.result()
    assert len(answer["data"]["priceHistory"]) == 10

    await graphiql.go_to("PeriodWithCoverage")
    await graphiql.run()
    answer = await graphiql.result()
    variables = json.loads(await graphiql.text("variables.json"))
    assert answer["data"]["coverage"]["expected"] > 0
    times = [price["timestamp"][:19] for price in answer["data"]["pricesInPeriod"]]
    assert times
    assert variables["fromDt"][:19] <= times[0] < times[-1] <= variables["toDt"][:19]

    await graphiql.go_to("PricesAt")
    await graphiql.run()
    answer = await graphiql.result()
    asked = json.loads(await graphiql.text("variables.json"))["at"]
    assert [row["at"][:19] for row in answer["data"]["pricesAt"]] == [at[:19] for at in asked]
    assert answer["data"]["pricesAt"][-1]["price"]["timestamp"][:19] <= asked[-1][:19]

    await graphiql.go_to("Statistics")
    await graphiql.run()
    statistics = (await graphiql.result())["data"]["statistics"]
    assert statistics["samples"] >= statistics["coverage"]["present"] > 0

    await graphiql.go_to("FetchPrices")
    await graphiql.run("FetchPrices")
    job = (await graphiql.result())["data"]["fetchPrices"]
    assert json.loads(await graphiql.text("variables.json")) == {"tickers": TICKERS, "id": job["id"]}
    await graphiql.run("FetchProgress")
    answer = await graphiql.result(lambda answer: answer["data"]["fetchProgress"]["finishedAt"])
    progress = answer["data"]["fetchProgress"]
    assert (progress["status"], [price["ticker"] for price in progress["prices"]]) == ("SUCCEEDED", TICKERS)

    await graphiql.go_to("LivePrices")
    await graphiql.run()
    first = (await graphiql.result())["data"]["priceUpdates"]["timestamp"]
    await graphiql.result(lambda answer: answer["data"]["priceUpdates"]["timestamp"] > first)
    await graphiql.run_button.click()  # now the stop button
    assert visitor.sockets
    assert set(visitor.sockets) == {visitor.url.replace("http", "ws") + "/graphql"}


async def test_tabs_of_a_returning_reader_are_their_own(visitor: Visitor) -> None:
    graphiql = await open_graphiql(visitor)
    await graphiql.write("operation.graphql", "query Mine { tickers { name } }")
    await expect(graphiql.tabs.first).to_have_text("Mine")
    await graphiql.go_to("PriceHistory")
    await graphiql.page.locator(".graphiql-tab", has_text="PriceHistory").get_by_label("Close Tab").click()
    await expect(graphiql.tabs).to_have_count(6)
    stored = "JSON.parse(localStorage.getItem('graphiql:tabState')).tabs.map(tab => tab.title).join()"
    mine = ["Mine", *TABS[2:]]
    await until(graphiql.page, f"{stored} === '{','.join(mine)}'")
    await graphiql.page.close()

    again = await open_graphiql(visitor)
    assert await again.tabs.all_inner_texts() == mine
    assert "tickers { name }" in await again.text("operation.graphql")
    await again.page.close()

    beside = await open_graphiql(visitor, ADDRESS)
    assert await beside.tabs.all_inner_texts() == [*mine, "Mine"]
    assert await beside.text("operation.graphql") == QUERY


async def test_the_query_of_an_address_is_opened_but_not_run(visitor: Visitor) -> None:
    graphiql = await open_graphiql(visitor, ADDRESS)
    assert await graphiql.tabs.all_inner_texts() == ["Mine", *TABS]
    assert await graphiql.text("operation.graphql") == QUERY
    assert json.loads(await graphiql.text("variables.json")) == {"ticker": "eth_usd"}
    assert await graphiql.text("response.json") == ""
    assert graphiql.page.url == visitor.url + "/graphql"
    await graphiql.run()
    assert await graphiql.result() == {"data": {"latestPrice": {"ticker": "eth_usd"}}}


@pytest.fixture(scope="module")
async def guarded(built: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    demo = Demo(
        tmp_path_factory.mktemp("guarded"), free_port(), FETCH_INTERVAL_SECONDS="1", API_TOKEN="a-token-of-some-length"
    )
    await demo.said("Ready after")
    yield demo
    demo.process.terminate()
    await asyncio.to_thread(demo.process.wait, 30)


async def test_the_token_of_the_headers_goes_with_requests_and_subscriptions(browser: Browser, guarded: Demo) -> None:
    visitor = await visit(browser, guarded.url)
    try:
        graphiql = await open_graphiql(visitor)
        await graphiql.go_to("FetchPrices")
        await graphiql.run("FetchPrices")
        assert (await graphiql.result())["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"

        frames: list[str] = []
        graphiql.page.on("websocket", lambda ws: ws.on("framesent", lambda frame: frames.append(str(frame))))
        await graphiql.page.get_by_role("button", name="Headers").click()
        await graphiql.write("request-headers.json", '{"Authorization": "Bearer a-token-of-some-length"}')
        await graphiql.run("FetchPrices")
        await graphiql.result(lambda answer: answer["data"])
        await graphiql.run("FetchProgress")
        await graphiql.result(lambda answer: answer["data"].get("fetchProgress", {}).get("status") == "SUCCEEDED")
        init = json.loads(frames[0])
        assert init == {"type": "connection_init", "payload": {"Authorization": "Bearer a-token-of-some-length"}}
        assert "a-token" not in json.dumps(await graphiql.page.evaluate("({...localStorage})"))
    finally:
        await visitor.context.close()
    assert visitor.problems == []


async def test_a_refused_subscription_says_why_and_the_next_one_runs(browser: Browser, guarded: Demo) -> None:
    visitor = await visit(browser, guarded.url)
    try:
        graphiql = await open_graphiql(visitor)
        await graphiql.go_to("LivePrices")
        await graphiql.page.get_by_role("button", name="Headers").click()
        await graphiql.write("request-headers.json", '{"Authorization": "Bearer not-the-token"}')
        await graphiql.run()
        assert await graphiql.result() == {"errors": [{"message": "The server closed the socket: 4403 Forbidden"}]}
        await expect(graphiql.page.locator(".graphiql-spinner")).to_have_count(0)
        await graphiql.write("request-headers.json", '{"Authorization": "Bearer a-token-of-some-length"}')
        await graphiql.run()
        answer = await graphiql.result()
        assert answer["data"]["priceUpdates"]["ticker"] in TICKERS
        assert len(visitor.sockets) == 2
    finally:
        await visitor.context.close()
    assert visitor.problems == []
