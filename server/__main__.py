"""`python -m server`: run the API with uvicorn."""

import contextlib
import logging
import sys

from server.app import create_app
from server.process import create_server
from server.request_ids import add_request_id
from server.transport.http import (
    make_room_for_connections,
)
from shared.config.settings import SettingsError, load_settings
from shared.config.unknown_names import warn_about_unknown_names
from shared.telemetry.logs import configure_logging

logger = logging.getLogger(__name__)


NOT_STARTED = 3
"uvicorn's own exit code for that."

CUT_SHORT = 1


def main() -> int:
    try:
        settings = load_settings()
        settings.require_guarded_mutations()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging(settings, add_request_id)
    warn_about_unknown_names()
    app = create_app(settings)
    server = create_server(app, settings.host, settings.port, make_room_for_connections(), settings.drain_seconds)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        return NOT_STARTED
    return CUT_SHORT if server.force_exit else 0


if __name__ == "__main__":
    sys.exit(main())
