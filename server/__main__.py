"""`python -m server`: run the API with uvicorn."""

import contextlib
import sys

from server.app import create_app
from server.process import create_server
from server.request_ids import add_request_id
from server.transport.http import raise_file_limit
from shared.config.settings import SettingsError, load_settings
from shared.config.unknown_names import warn_about_unknown_names
from shared.telemetry.logs import configure_logging

NOT_STARTED = 3
"uvicorn's exit code if the port is taken or the app does not start."

CUT_SHORT = 1
"A second signal ended the process before all requests were answered."


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
    server = create_server(app, settings.host, settings.port, raise_file_limit(), settings.drain_seconds)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        return NOT_STARTED
    return CUT_SHORT if server.force_exit else 0


if __name__ == "__main__":
    sys.exit(main())
