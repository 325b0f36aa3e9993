"""`python -m server`: run the API with uvicorn."""

import asyncio
import contextlib
import sys

from server.app import create_app
from server.process import create_server
from server.request_ids import add_request_id
from server.transport.http import raise_file_limit
from shared.config.settings import Settings, SettingsError, load_settings
from shared.config.unknown_names import warn_about_unknown_names
from shared.errors import QueueUnavailable, StorageUnavailable
from shared.queue.client import open_redis, within_deadline
from shared.queue.deployment import ForeignRedis, check_claim, select_deployment
from shared.storage.database import create_pool
from shared.telemetry.logs import configure_logging

NOT_STARTED = 3
"uvicorn's exit code if the port is taken or the app does not start."

CUT_SHORT = 1
"A second signal ended the process before all requests were answered."


async def require_own_redis(settings: Settings) -> None:
    """Raises `ForeignRedis`. Without PostgreSQL or Redis the API starts unchecked."""
    async with create_pool(settings, name="server", size=1) as pool, open_redis(settings, retries=0) as redis:
        with contextlib.suppress(StorageUnavailable, QueueUnavailable):
            await within_deadline(check_claim(redis, await select_deployment(pool)))


def main() -> int:
    try:
        settings = load_settings()
        settings.require_guarded_mutations()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging(settings, add_request_id)
    warn_about_unknown_names()
    try:
        asyncio.run(require_own_redis(settings))
    except ForeignRedis as error:
        print(error, file=sys.stderr)
        return 2
    app = create_app(settings)
    server = create_server(app, settings.host, settings.port, raise_file_limit(), settings.drain_seconds)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        return NOT_STARTED
    return CUT_SHORT if server.force_exit else 0


if __name__ == "__main__":
    sys.exit(main())
