"""Headers that every response carries."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.request_ids import HEADER, request_id_of

NO_SNIFFING = (b"x-content-type-options", b"nosniff")
"Forbids browsers to guess another media type than the one in Content-Type."


NO_STORE = (b"cache-control", b"no-store")
"If an answer says nothing else: caches may keep a 200 or a 404 for as long as they like."


class ResponseHeaders:
    """ASGI middleware: adds X-Request-ID, X-Content-Type-Options and, without another one, Cache-Control."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept"}:
                headers = [*message.get("headers", []), (HEADER, request_id_of(scope).encode())]
                if message["type"] == "http.response.start":
                    names = {name for name, _ in headers}
                    headers += [header for header in (NO_SNIFFING, NO_STORE) if header[0] not in names]
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_headers)
