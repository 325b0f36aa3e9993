"""ASGI middleware: refuses requests whose `Host` another site may have chosen, against DNS rebinding.

A page of another site can give its own name this server's address; then `Host` and `Origin` are that site's, and the
browser sees no foreign origin. Where mutations need a token, such a page can do nothing.
"""

import json

from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.headers import NO_SNIFFING, NO_STORE
from server.protection.pages import allowed_hosts, is_allowed_host
from server.request_ids import HEADER, request_id_of
from server.schema.errors import as_graphql
from shared.config.settings import Settings
from shared.errors import BadUserInput

_GUARDED = ("/graphql", "/", "/export/prices.csv", "/export/candles.csv")
"Without the health checks and metrics, whose readers use any name, and the static files."

_ONE_HOST = "A request needs exactly one Host header."
_WRONG_HOST = "This server does not answer to that Host. The operator may name it in ALLOWED_HOSTS."


class Hosts:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._named = allowed_hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 and (hosts or scope["http_version"] != "1.0"):
            await _refuse(scope, send, 400, _ONE_HOST)
        elif (
            not hosts or self._named is None or scope["path"] not in _GUARDED or is_allowed_host(hosts[0], self._named)
        ):
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, send, 421, _WRONG_HOST)


async def _refuse(scope: Scope, send: Send, status: int, message: str) -> None:
    if scope["path"] == "/graphql" or scope["path"].startswith("/export/"):
        media_type, body = "application/json", json.dumps({"errors": [as_graphql(BadUserInput(message)).formatted]})
    else:
        media_type, body = "text/plain", message
    headers = [
        NO_SNIFFING,
        NO_STORE,
        (HEADER, request_id_of(scope).encode()),
        (b"content-type", f"{media_type}; charset=utf-8".encode()),
        (b"content-length", b"%d" % len(body)),
    ]
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body.encode()})
