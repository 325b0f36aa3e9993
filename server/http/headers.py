"""What every response has in common, except those of compiled queries, which write their own headers."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.compression import MIN_GZIP_BYTES, gzip
from server.http.negotiation import EVENT_STREAM, accepts_gzip, header_of
from server.request_ids import HEADER, request_id_of

NO_SNIFFING = (b"x-content-type-options", b"nosniff")
"Forbids browsers to guess another media type than the one in Content-Type."

NO_STORE = (b"cache-control", b"no-store")
"Unless the response says otherwise, because caches may keep a 200 or a 404 for as long as they like."

_COMPRESSIBLE = ("text/", "application/json", "application/graphql-response+json")
PARTIAL_CONTENT = 206


class ResponseHeaders:
    """ASGI middleware: adds X-Request-ID and X-Content-Type-Options, forbids to store a response that says nothing else
    about caching, and compresses complete answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: Message | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal held
            if message["type"] == "websocket.accept":
                message["headers"] = [*message.get("headers", []), (HEADER, request_id_of(scope).encode())]
            elif message["type"] == "http.response.start":
                raw = [*message.get("headers", []), (HEADER, request_id_of(scope).encode())]
                names = {name for name, _ in raw}
                raw += [header for header in (NO_SNIFFING, NO_STORE) if header[0] not in names]
                message["headers"] = raw
                if _may_compress(message):
                    _vary_by_encoding(MutableHeaders(raw=raw))
                    if accepts_gzip(header_of(scope, b"accept-encoding")):
                        held = message  # until it is known how long the answer is
                        return
            elif held is not None:
                start, held = held, None
                body = message.get("body", b"")
                if len(body) >= MIN_GZIP_BYTES and not message.get("more_body"):
                    message = {**message, "body": await gzip(body)}
                    headers = MutableHeaders(raw=start["headers"])
                    headers["Content-Encoding"], headers["Content-Length"] = "gzip", str(len(message["body"]))
                await send(start)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _vary_by_encoding(headers: MutableHeaders) -> None:
    if "accept-encoding" not in headers.get("vary", "").lower():
        headers.add_vary_header("Accept-Encoding")


def _may_compress(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    media_type = headers.get("content-type", "")
    return (
        media_type.startswith(_COMPRESSIBLE)
        and not media_type.startswith(EVENT_STREAM.decode())
        and "content-encoding" not in headers
        and start["status"] != PARTIAL_CONTENT
    )
