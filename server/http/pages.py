"""The pages: the dashboard at `/`, GraphiQL at `/graphql` in a browser, and the files that they load from here."""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parents[1] / "static"
"Made of `server/web`, see shared/local/pages.py and the Dockerfile."

_ASSET = re.compile(r"[\w.-]{1,100}-[\w-]{8}(\.[a-z0-9]+)", re.ASCII)  # Vite's names carry a hash of the content
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".ttf": "font/ttf", ".svg": "image/svg+xml"}
_YEAR = 31_536_000

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_MISSING = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Deribit prices: pages not built</title>
<h1>The pages are not built</h1>
<p>The API works: send GraphQL to <code>/graphql</code>; its schema is at
<a href="/schema.graphql">/schema.graphql</a>.</p>
<p>The dashboard and GraphiQL are made by <code>make pages</code>, which needs Node 20.19, 22.12 or newer with npm, or a
way to the Python package index. They are served as soon as they are there.</p>
</html>
"""


class Pages:
    """Looked up at each request, so that a build shows without a restart."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._folder = folder

    def warn_when_missing(self) -> None:
        if not (self._folder / "index.html").is_file():
            logger.warning("the dashboard and GraphiQL are not built, see `make pages`; the API works without them")

    def dashboard(self, request: Request) -> Response:
        return self._page("index.html", request, _policy("'self'"))

    def graphiql(self, request: Request) -> Response:
        # Its editor, Monaco, makes style elements and style attributes as one types: no hash or nonce can name them.
        return self._page("graphiql.html", request, _policy("'self' 'unsafe-inline'"))

    def asset(self, request: Request) -> Response:
        match = _ASSET.fullmatch(name := request.path_params["name"])
        path = self._folder / "assets" / name
        if match is None or not path.is_file():
            return PlainTextResponse("Not Found", 404)
        headers = {**_HEADERS, "Cache-Control": f"public, max-age={_YEAR}, immutable", "Vary": "Accept-Encoding"}
        packed = path.with_name(f"{name}.gz")
        if packed.is_file() and _quality(request.headers, "accept-encoding", "gzip") > 0:
            path, headers["Content-Encoding"] = packed, "gzip"
        return FileResponse(path, headers=headers, media_type=_MEDIA_TYPES.get(match[1], "application/octet-stream"))

    def _page(self, name: str, request: Request, policy: str) -> Response:
        headers = {**_HEADERS, "Content-Security-Policy": policy, "Vary": "Accept"}
        try:
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return HTMLResponse(_MISSING, 503, {**headers, "Cache-Control": "no-store"})
        # Asked for again each time, for it names the files of its build; those are kept.
        headers |= {"Cache-Control": "no-cache", "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return HTMLResponse(content, headers=headers)


class GraphiQLInBrowsers:
    """ASGI: a browser that opens the GraphQL endpoint sees GraphiQL, a client gets its answer."""

    def __init__(self, graphql: ASGIApp, pages: Pages) -> None:
        self._graphql = graphql
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and _wants_page(Headers(scope=scope)):
            page = await run_in_threadpool(self._pages.graphiql, Request(scope))
            await page(scope, receive, send)
        else:
            await self._graphql(scope, receive, send)


def _wants_page(headers: Mapping[str, str]) -> bool:
    answers = ("application/json", "application/graphql-response+json", "text/event-stream")
    return _quality(headers, "accept", "text/html") > max(_quality(headers, "accept", answer) for answer in answers)


def _policy(styles: str) -> str:
    """Content-Security-Policy: everything from this server, the socket of the subscriptions included, or not at all."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            f"style-src {styles}",
            "img-src 'self' data:",  # small ones inside of style sheets
            "font-src 'self'",
            "connect-src 'self'",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _quality(headers: Mapping[str, str], name: str, token: str) -> float:
    """How much the client wants `token`, 0 to 1; wildcards do not count."""
    for part in headers.get(name, "").split(","):
        found, *parameters = (text.strip().lower() for text in part.split(";"))
        if found == token:
            weights = [text[2:] for text in parameters if text.startswith("q=")]
            try:
                return float(weights[0]) if weights else 1
            except ValueError:
                return 0
    return 0
