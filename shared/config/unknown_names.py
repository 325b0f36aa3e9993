"""Misspelt names in `.env`: nothing reads them, so the log names them at the start."""

import difflib
import logging
import re
from pathlib import Path

from dotenv import dotenv_values

from shared.config.settings import Settings

logger = logging.getLogger(__name__)

_READ_ELSEWHERE = re.compile(
    r"POSTGRES_.*|PG.*|OTEL_.*|COMPOSE_.*|DOCKER_.*|PYTHON.*|(HTTP|HTTPS|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)|TZ",
    re.IGNORECASE,
)
"Variables of compose, of the libraries of PostgreSQL and OpenTelemetry, of Python and of httpx."


def warn_about_unknown_names(path: Path = Path(".env")) -> None:
    names = [name.upper() for name in Settings.model_fields]
    for name in dotenv_values(path):
        if name.upper() in names or _READ_ELSEWHERE.fullmatch(name):
            continue
        nearest = difflib.get_close_matches(name.upper(), names, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "see .env.example"
        logger.warning("%s in %s is not a setting and is ignored; %s", name, path, hint)
