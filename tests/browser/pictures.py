"""`make pictures`: the README's pictures of the dashboard, light and dark, taken from the demo. It takes five minutes.

Needs Debian's `chromium` or another Chromium on the PATH, and what `make pages` needs.
"""

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Literal

import httpx
from playwright.async_api import Browser, async_playwright, expect

from shared.local.pages import SERVER, build
from shared.local.servers import free_port
from tests.browser.conftest import CHROMIUM
from tests.integration.local.test_stack import Demo

PICTURES = SERVER / "web" / "pictures"
WIDTH, HEIGHT = 1200, 1000
DEMO = {"FETCH_INTERVAL_SECONDS": "10", "HEAL_LOOKBACK_HOURS": "48"}
"Ten seconds, so that the chart fills while we wait; two days, so that there is a price of a day ago."
SHOWN = "/?ticker=btc_usd&range=15m"
READY_SECONDS = 60
OBSERVED_SECONDS = 270
"Until a third of the chart is observed prices; the rest is backfilled."
SETTLE_SECONDS = 3.0
"The first live price arrives and the chart has been drawn to its full width."


async def main() -> int:
    if CHROMIUM is None:
        print("There is no Chromium on the PATH (Debian: apt-get install chromium).", file=sys.stderr)
        return 1
    if (reason := await asyncio.to_thread(build, SERVER)) is not None:
        print(f"The pages cannot be built: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder), free_port(), **DEMO)
        try:
            async with asyncio.timeout(READY_SECONDS):
                await until_ready(demo)
            await asyncio.sleep(OBSERVED_SECONDS)
            await take_pictures(demo.url)
        finally:
            demo.process.terminate()
            await asyncio.to_thread(demo.process.wait, 30)
    return 0


async def until_ready(demo: Demo) -> None:
    async with httpx.AsyncClient(base_url=demo.url, trust_env=False) as http:
        while True:
            if demo.process.poll() is not None:
                raise SystemExit(f"The demo ended:\n{demo.text()}")
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get("/readyz")).is_success:
                    return
            await asyncio.sleep(0.2)


async def take_pictures(url: str) -> None:
    async with async_playwright() as playwright:
        # Its sandbox does not start as root, and the only page here is ours.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            await take_picture(browser, url, scheme)
        await browser.close()


async def take_picture(browser: Browser, url: str, scheme: Literal["light", "dark"]) -> None:
    context = await browser.new_context(
        color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT}, locale="en-GB", timezone_id="UTC"
    )
    page = await context.new_page()
    await page.goto(url + SHOWN)
    await expect(page.locator("#connection[data-state=live]")).to_be_visible(timeout=30_000)
    await expect(page.locator("canvas").first).to_be_visible(timeout=30_000)
    await asyncio.sleep(SETTLE_SECONDS)
    path = PICTURES / f"dashboard-{scheme}.png"
    legend = await page.locator("#chart-section .legend").bounding_box()
    bottom = min(legend["y"] + legend["height"] + 8, HEIGHT) if legend else HEIGHT
    await page.screenshot(path=path, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom})
    print(f"{path}: {path.stat().st_size // 1000} kB")
    await context.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
