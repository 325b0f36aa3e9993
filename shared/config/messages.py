"""What the operator is told of settings that are refused: each one, its value without secrets, and what is accepted."""

import re
from typing import Any

from pydantic import ValidationError

from shared.config.sentinel_url import SENTINEL_URL_RULE
from shared.config.tokens import TOKEN_RULE

_ACCEPTED = {
    "DATABASE_URL": "postgresql://user:password@host:5432/database (postgresql+asyncpg:// works too)",
    "DATABASE_READ_URL": "as DATABASE_URL, of hot standbys; with target_session_attrs=standby never the primary",
    "DATABASE_POOLER": "1 or 0",
    "REDIS_URL": f"redis://[:password@]host:6379/0 or rediss://…; {SENTINEL_URL_RULE}",
    "DERIBIT_BASE_URL": "an http(s) URL such as https://www.deribit.com/api/v2",
    "TICKERS": "comma-separated index names such as btc_usd,eth_usd",
    "FETCH_INTERVAL_SECONDS": "a divisor of 60, or a multiple of 60 that divides 3600",
    "HEAL_LOOKBACK_HOURS": "a whole number from 1 to 8760",
    "RETENTION_DAYS": "a whole number from 1 to 36500, no shorter than HEAL_LOOKBACK_HOURS; unset to keep everything",
    "PORT": "a port number from 1 to 65535",
    "METRICS_PORT": "a port number from 1 to 65535, or 0 for none",
    "DRAIN_SECONDS": "a whole number from 0 to 600",
    "API_TOKEN": TOKEN_RULE,
    "REQUIRE_TOKEN_FOR_READS": "1 or 0",
    "INTROSPECTION": "1 or 0",
    "ALLOW_ANONYMOUS_MUTATIONS": "1 or 0",
    "FETCH_LIMIT_PER_CLIENT": "a whole number from 0, which is no limit, to 1000000",
    "FETCH_LIMIT_OVERALL": "a whole number from 0, which is no limit, to 1000000",
    "FORWARDED_ALLOW_IPS": "comma-separated addresses and networks such as 127.0.0.1,10.0.0.0/8, or * for all",
    "CORS_ORIGINS": "comma-separated origins such as https://example.com, or * for all",
    "LOG_LEVEL": "debug, info, warning or error",
    "LOG_FORMAT": "console or json",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "the http(s) URL of a collector such as http://localhost:4318",
}
_SECRET = {"API_TOKEN"}


def explain(error: ValidationError) -> str:
    lines = ["The settings cannot be used:"]
    for problem in error.errors():
        name = str(problem["loc"][0]).upper()
        accepted = _ACCEPTED.get(name, "")
        if problem["type"] == "missing":
            lines.append(f"  {name} is not set; accepted: {accepted}")
        else:
            lines.append(f"  {name}={_masked(name, problem['input'])} is refused; accepted: {accepted}")
    return "\n".join(lines)


def _masked(name: str, value: Any) -> str:
    """The value as given, without what must not be seen in a terminal or a log."""
    if name in _SECRET:
        return "***"
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    if name.endswith(("_URL", "_ENDPOINT")):
        # Between the user's name and the last @, and in a parameter: wherever a password may stand, well-formed or not.
        # The parameter first, for it may have an @; that is left, so that what is before it counts as a password too.
        text = re.sub(r"(password=)(?:[^&]*(@))?[^&]*", r"\1***\2", text, flags=re.IGNORECASE)
        text = re.sub(r"^((?:[\w+.-]*:)?//[^/@:]*|[^/@:]*):.*@", r"\1:***@", text)
    return text
