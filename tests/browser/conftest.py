"""Chromium and the stack of `make demo`. A test fails if a page sends a request to another host."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Route, async_playwright

from shared.local.pages import SERVER, build
from shared.local.servers import free_port
from tests.integration.local.test_stack import Demo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def built() -> None:
    """Build the pages if their sources have changed, once for all workers of the run."""
    reason = build(SERVER)
    if reason is not None:
        pytest.skip(f"the pages cannot be built: {reason}")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    async with async_playwright() as playwright:
        # The sandbox does not start as root, and the tests open only our own pages.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
async def demo(built: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    """`make demo` with a price a second. It ends with its module, because it would take CPU time from other tests."""
    demo = Demo(tmp_path_factory.mktemp("demo"), free_port(), FETCH_INTERVAL_SECONDS="1")
    await demo.said("Ready after")
    yield demo
    demo.process.terminate()
    await asyncio.to_thread(demo.process.wait, 30)


class Visitor:
    """A browser with its own storage and cookies. `problems` lists the errors and warnings of its console."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.problems: list[str] = []
        self.sockets: list[str] = []

    async def open(self, path: str) -> Page:
        page = await self.context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("websocket", lambda socket: self.sockets.append(socket.url))
        await page.goto(self.url + path)
        return page

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):  # includes violations of the Content-Security-Policy
            self.problems.append(f"{message.type}: {message.text}")

    async def limit_to_the_server(self, route: Route) -> None:
        if urlsplit(route.request.url).netloc == urlsplit(self.url).netloc:
            await route.continue_()
        else:
            self.problems.append(f"request to another host: {route.request.url}")
            await route.abort()


async def visit(browser: Browser, url: str, color_scheme: str = "light") -> Visitor:
    context = await browser.new_context(
        color_scheme="dark" if color_scheme == "dark" else "light", viewport={"width": 1280, "height": 800}
    )
    visitor = Visitor(context, url)
    await context.route("**/*", visitor.limit_to_the_server)
    return visitor


@pytest.fixture
async def visitor(browser: Browser, demo: Demo) -> AsyncIterator[Visitor]:
    """A first-time visitor. A test that causes problems on purpose clears them."""
    visitor = await visit(browser, demo.url)
    yield visitor
    await visitor.context.close()
    assert visitor.problems == []
    assert {urlsplit(url).netloc for url in visitor.sockets} <= {urlsplit(visitor.url).netloc}


async def until(page: Page, expression: str) -> None:
    """Like `page.wait_for_function`, which the page's Content-Security-Policy forbids."""
    async with asyncio.timeout(20):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.05)
