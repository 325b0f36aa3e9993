"""The pages and their files over HTTP, with a handmade build and without a build."""

import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from server.http.headers import ResponseHeaders
from server.http.pages import GraphiQLInBrowsers, Pages
from tests.integration.conftest import Api

SCRIPT = b"console.log('" + b"x" * 2000 + b"')"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
EVERYTHING_FROM_HERE = (
    "default-src 'none'; script-src 'self'; style-src {}; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GUARDED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A build as Vite makes it."""
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>dashboard</title>")
    (folder / "graphiql.html").write_text("<title>GraphiQL</title>")
    (folder / ".sources").write_text("a hash")
    for name, content in {"main-Ab_-1234.js": SCRIPT, "code.icon-12345678.ttf": b"font", "plain.js": SCRIPT}.items():
        (folder / "assets" / name).write_bytes(content)
    (folder / "assets" / "main-Ab_-1234.js.gz").write_bytes(gzip.compress(SCRIPT))
    (tmp_path / "secret-12345678.js").write_text("not to be had")
    return folder


async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    pages = Pages(folder)
    graphql = JSONResponse({"data": {}})
    app = Starlette(
        routes=[
            Route("/", pages.dashboard),
            Route("/assets/{name}", pages.asset),
            Route("/graphql", GraphiQLInBrowsers(graphql, pages)),
        ]
    )
    transport = httpx.ASGITransport(ResponseHeaders(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://pages.test", trust_env=False) as http:
        http.headers.pop("accept-encoding")
        yield http


@pytest.fixture
async def http(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    async for http in client(folder):
        yield http


@pytest.mark.parametrize(
    ("path", "title", "styles"),
    [("/", "dashboard", "'self'"), ("/graphql", "GraphiQL", "'self' 'unsafe-inline'")],
)
async def test_a_page_is_revalidated_and_loads_from_this_server_only(
    http: httpx.AsyncClient, folder: Path, path: str, title: str, styles: str
) -> None:
    page = await http.get(path, headers={"accept": BROWSER})
    assert (page.status_code, page.text) == (200, f"<title>{title}</title>")
    assert page.headers["content-security-policy"] == EVERYTHING_FROM_HERE.format(styles)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert (page.headers["cache-control"], page.headers["vary"]) == ("no-cache", "Accept, Accept-Encoding")
    assert page.headers.items() >= GUARDED.items()

    known = {"accept": BROWSER, "if-none-match": page.headers["etag"]}
    again = await http.get(path, headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", page.headers["etag"])
    assert again.headers["content-security-policy"] == page.headers["content-security-policy"]

    for file in folder.glob("*.html"):
        file.write_text("<title>built again</title>")
    assert (await http.get(path, headers=known)).text == "<title>built again</title>"


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (BROWSER, True),
        ("TEXT/HTML", True),
        ("text/html;q=0.9, application/json;q=0.5", True),
        ("text/html, application/json", False),
        ("application/graphql-response+json, text/html;q=0.5", False),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
async def test_a_client_gets_its_answer_and_a_browser_gets_graphiql(
    http: httpx.AsyncClient, accept: str, is_page: bool
) -> None:
    query = {"query": "{ tickers { name } }"}
    answer = await http.get("/graphql", params=query, headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/html" if is_page else "application/json")
    posted = await http.request("POST", "/graphql", json=query, headers={"accept": accept})
    assert posted.headers["content-type"] == "application/json"


async def test_an_asset_may_be_cached_for_a_year(http: httpx.AsyncClient) -> None:
    script = await http.get("/assets/main-Ab_-1234.js")
    assert (script.status_code, script.content) == (200, SCRIPT)
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert script.headers["vary"] == "Accept-Encoding"
    assert script.headers.items() >= GUARDED.items()
    font = await http.get("/assets/code.icon-12345678.ttf")
    assert (font.content, font.headers["content-type"]) == (b"font", "font/ttf")


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate, br", "gzip"), ("br, GZIP;q=0.5", "gzip"), ("gzip;q=0", None), ("br", None), ("identity", None)],
)
async def test_a_gzipped_asset_is_sent_to_clients_that_accept_gzip(
    http: httpx.AsyncClient, accepted: str, encoding: str | None
) -> None:
    script = await http.get("/assets/main-Ab_-1234.js", headers={"accept-encoding": accepted})
    assert (script.headers.get("content-encoding"), script.content) == (encoding, SCRIPT)
    assert int(script.headers["content-length"]) == (len(gzip.compress(SCRIPT)) if encoding else len(SCRIPT))
    font = await http.get("/assets/code.icon-12345678.ttf", headers={"accept-encoding": accepted})
    assert ("content-encoding" in font.headers, font.content) == (False, b"font")


@pytest.mark.parametrize(
    "path",
    [
        "/assets/main-12345678.js",
        "/assets/plain.js",
        "/assets/main-Ab_-1234.js.gz",
        "/assets/",
        "/assets/.",
        "/assets/%2e%2e",
        "/assets/..%2f.sources",
        "/assets/..%2findex.html",
        "/assets/..%2f..%2fsecret-12345678.js",
        "/assets/..%5c..%5csecret-12345678.js",
        "/assets/%2fetc%2fhost-12345678.js",
        "/assets/main-12345678.js%00",
        "/assets/" + "x" * 5000 + "-12345678.js",
        "/.sources",
        "/index.html",
    ],
)
async def test_nothing_but_assets_is_served(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


async def test_without_a_build_the_pages_say_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = tmp_path / "static"
    async for http in client(missing):
        for path in ("/", "/graphql"):
            page = await http.get(path, headers={"accept": BROWSER})
            assert (page.status_code, page.headers["cache-control"]) == (503, "no-store")
            assert "<code>make pages</code>" in page.text
            assert 'href="/schema.graphql"' in page.text
        assert (await http.get("/graphql")).json() == {"data": {}}
        assert (await http.get("/assets/main-Ab_-1234.js")).status_code == 404
    Pages(missing).warn_when_missing()
    [record] = caplog.records
    assert (record.levelname, "make pages" in record.message) == ("WARNING", True)


async def test_the_api_has_the_pages(api: Api) -> None:
    """Holds with and without a build on this machine."""
    for path in ("/", "/graphql"):
        page = await api.send("GET", path, headers={"accept": BROWSER})
        assert page.status_code in (200, 503)
        assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert (await api.send("GET", "/assets/main-12345678.js")).status_code == 404
    answer = await api.send("GET", "/graphql", params={"query": "{ __typename }"})
    assert answer.json() == {"data": {"__typename": "Query"}}
