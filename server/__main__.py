"""`python -m server`: run the API with uvicorn."""

import sys

import uvicorn

from server.app import create_app
from shared.log import configure_logging
from shared.settings import SettingsError, load_settings

DRAIN_SECONDS = 10


def main() -> int:
    try:
        settings = load_settings()
        settings.require_guarded_mutations()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging(settings)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
