"""Which pages may open a WebSocket: cross-site WebSocket hijacking is refused."""

import pytest
from starlette.datastructures import Headers

from server.protection.pages import is_allowed_origin
from tests.unit.replies import settings_for


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        (None, "app.example", "wss"),
        ("https://app.example", "app.example", "wss"),
        ("https://app.example", "app.example:443", "wss"),
        ("https://app.example:443", "app.example", "wss"),
        ("http://app.example", "app.example:80", "ws"),
        ("HTTPS://App.Example", "app.example", "wss"),
        ("https://app.example:8443", "app.example:8443", "wss"),
        ("https://[::1]", "[::1]:443", "wss"),
        ("https://app.example", "app.example:443", "ws"),  # behind a proxy whose headers are not trusted
        ("https://charts.example", "app.example", "wss"),  # one of CORS_ORIGINS
    ],
)
def test_a_page_of_this_server_or_of_cors_origins_is_allowed(origin: str | None, host: str, scheme: str) -> None:
    headers = Headers({"host": host} | ({"origin": origin} if origin else {}))
    assert is_allowed_origin(headers, settings_for(cors_origins="https://charts.example"), scheme)


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("https://elsewhere.example", "app.example", "wss"),
        ("https://app.example", "app.example:80", "wss"),
        ("https://app.example:8443", "app.example", "wss"),
        ("https://app.example.elsewhere.example", "app.example", "wss"),
        ("http://app.example", "app.example", "wss"),  # a page that anyone on the way could have changed
        ("http://app.example", "app.example:443", "ws"),
        ("file://app.example", "app.example", "ws"),
        ("app.example", "app.example", "ws"),
        ("null", "app.example", "wss"),
        ("https://[", "app.example", "wss"),
        ("https://app.example", "", "wss"),
    ],
)
def test_any_other_page_is_refused(origin: str, host: str, scheme: str) -> None:
    headers = Headers({"host": host, "origin": origin})
    assert not is_allowed_origin(headers, settings_for(cors_origins="https://charts.example"), scheme)
