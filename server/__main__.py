"""`python -m server`: run the API with uvicorn."""

import asyncio
import contextlib
import functools
import sys
from socket import socket

import uvicorn
from starlette.applications import Starlette

from server.app import create_app
from server.connections import (
    KEEP_ALIVE_SECONDS,
    MAX_CONNECTIONS,
    HttpProtocol,
    cut_off_slow,
    make_room_for_connections,
)
from server.protocol import SocketProtocol
from shared.log import configure_logging
from shared.settings import SettingsError, load_settings

DRAIN_SECONDS = 10
NOT_STARTED = 3
"uvicorn's own exit code for that."
MAX_MESSAGE_BYTES = 128 * 1024
PING_SECONDS = 20
TICKS_A_SECOND = 10


class Server(uvicorn.Server):
    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_A_SECOND == 0:
            cut_off_slow(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """As uvicorn's, which closes WebSockets with 1012 but would wait for event streams to end by themselves."""
        self.config.app.state.closing.set()  # type: ignore[union-attr]  # ours
        await super().shutdown(sockets)


def create_server(app: Starlette, host: str, port: int, most_connections: int = MAX_CONNECTIONS) -> Server:
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # that is read in server/app.py, by those who need it
            http=functools.partial(HttpProtocol, most_connections=most_connections),  # type: ignore[arg-type]
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            ws=SocketProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            # Messages are short, and a compressor takes more memory than the rest of a socket.
            ws_per_message_deflate=False,
        )
    )


def main() -> int:
    try:
        settings = load_settings()
        settings.require_guarded_mutations()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging(settings)
    app = create_app(settings)
    server = create_server(app, settings.host, settings.port, make_room_for_connections())
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 0 if server.started else NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
