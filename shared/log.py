"""Log records of every process and library in one shape: lines for people, or one JSON object a line for machines."""

import json
import logging
import sys
from datetime import UTC, datetime

from shared.settings import Settings

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, then whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logging(settings: Settings) -> None:
    """Send everything to standard error. uvicorn and arq bring no handlers of their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if settings.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # One line per request to the exchange, or per job, says nothing that a failure's own line does not.
    for name in ("httpx", "httpcore", "arq.worker"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
