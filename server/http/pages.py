"""The pages: the dashboard at `/`, GraphiQL at `/graphql` in a browser, and the files that both load."""

import logging
import re
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.caching import cacheable
from server.http.negotiation import accepts_gzip, header_of, wants_page

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parents[1] / "static"
"Built from `server/web` by shared/local/pages.py or the Dockerfile."

_ASSET = re.compile(r"[\w.-]{1,100}-[\w-]{8}(\.[a-z0-9]+)", re.ASCII)  # Vite adds a hash of the content
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".ttf": "font/ttf", ".svg": "image/svg+xml"}
_YEAR = 31_536_000

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {}; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"Everything, WebSockets included, comes from this server only; style sheets contain small images as `data:`."

_MISSING = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Deribit prices: pages not built</title>
<h1>The pages are not built</h1>
<p>The API works: send GraphQL to <code>/graphql</code>; its schema is at
<a href="/schema.graphql">/schema.graphql</a>.</p>
<p><code>make pages</code> builds the dashboard and GraphiQL. It needs Node 20.19, 22.12 or newer with npm, or access to
the Python package index. The server shows the pages as soon as they are built; it needs no restart.</p>
</html>
"""


class Pages:
    """Reads the files at each request, so that a new build needs no restart."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._folder = folder

    def warn_when_missing(self) -> None:
        if not (self._folder / "index.html").is_file():
            logger.warning("the dashboard and GraphiQL are not built: run `make pages`; the API works without them")

    def dashboard(self, request: Request) -> Response:
        return self._page("index.html", request, _POLICY.format("'self'"))

    def graphiql(self, request: Request) -> Response:
        # Its editor, Monaco, creates style elements while one types, so no hash or nonce can list them.
        return self._page("graphiql.html", request, _POLICY.format("'self' 'unsafe-inline'"))

    def asset(self, request: Request) -> Response:
        match = _ASSET.fullmatch(name := request.path_params["name"])
        path = self._folder / "assets" / name
        if match is None or not path.is_file():
            return PlainTextResponse("Not Found", 404)
        headers = {**_HEADERS, "Cache-Control": f"public, max-age={_YEAR}, immutable"}
        packed = path.with_name(f"{name}.gz")
        if packed.is_file() and accepts_gzip(header_of(request.scope, b"accept-encoding")):
            path, headers["Content-Encoding"] = packed, "gzip"
        return FileResponse(path, headers=headers, media_type=_MEDIA_TYPES.get(match[1], "application/octet-stream"))

    def _page(self, name: str, request: Request, policy: str) -> Response:
        headers = {**_HEADERS, "Content-Security-Policy": policy, "Vary": "Accept"}
        try:
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return HTMLResponse(_MISSING, 503, headers)
        # Browsers ask each time, because the page names the hashed files of its build.
        return cacheable(request, content, "text/html", headers)


class GraphiQLInBrowsers:
    """ASGI middleware: shows GraphiQL to a browser that opens the GraphQL endpoint."""

    def __init__(self, graphql: ASGIApp, pages: Pages) -> None:
        self._graphql = graphql
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and wants_page(header_of(scope, b"accept")):
            page = await run_in_threadpool(self._pages.graphiql, Request(scope))
            await page(scope, receive, send)
        else:
            await self._graphql(scope, receive, send)
