"""Settings of every process, read once from the environment and `.env`.

Nothing else reads the environment. A bad setting raises `SettingsError`, whose message names every bad variable, its
value (secrets masked) and what is accepted.
"""

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.config.database_url import READ_TARGETS, WRITE_TARGETS, clean_database_url
from shared.config.database_url import is_host as _is_host
from shared.config.messages import explain
from shared.config.sentinel_url import is_sentinel_url, parse_sentinel_url
from shared.config.tokens import read_token_file, split_tokens

TICKER_PATTERN = re.compile(r"[a-z0-9-]+_[a-z0-9]+")
MAX_TICKER_LENGTH = 64

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class SettingsError(Exception):
    """One message for the operator: every bad variable, its value and what is accepted."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, frozen=True, extra="ignore")

    database_url: str = Field(repr=False)
    database_read_url: str | None = Field(default=None, repr=False)
    database_pooler: bool = False
    redis_url: str = Field(repr=False)
    deribit_base_url: str = "https://www.deribit.com/api/v2"
    tickers: CommaSeparated = ("btc_usd", "eth_usd")
    fetch_interval_seconds: int = 60
    heal_lookback_hours: int = Field(default=24, ge=1, le=8760)
    retention_days: int | None = Field(default=None, ge=1, le=36_500)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    drain_seconds: int = Field(default=5, ge=0, le=600)
    api_token: str | None = Field(default=None, repr=False)
    api_token_file: str | None = None
    allow_anonymous_mutations: bool = False
    require_token_for_reads: bool = False
    introspection: bool = True
    fetch_limit_per_client: int = Field(default=300, ge=0, le=1_000_000)
    fetch_limit_overall: int = Field(default=600, ge=0, le=1_000_000)
    forwarded_allow_ips: CommaSeparated = ("127.0.0.1", "::1")
    cors_origins: CommaSeparated = ()
    data_dir: str = ".data"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    otel_exporter_otlp_endpoint: str | None = Field(default=None, repr=False)

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str) -> str:
        return clean_database_url(value, WRITE_TARGETS)

    @field_validator("database_read_url")
    @classmethod
    def _database_read_url(cls, value: str | None) -> str | None:
        return value and clean_database_url(value, READ_TARGETS)

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: str) -> str:
        if is_sentinel_url(value.strip()):
            parse_sentinel_url(value.strip())
            return value.strip()
        parts = urlsplit(value.strip())
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme not in {"redis", "rediss"} or not host or not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError("not a Redis URL")
        if not _is_host(host):
            raise ValueError("not a Redis host")
        return value.strip()

    @field_validator("deribit_base_url")
    @classmethod
    def _deribit_base_url(cls, value: str) -> str:
        parts = urlsplit(value.strip())
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("not an HTTP URL")
        if not _is_host(parts.netloc.rpartition("@")[2]):
            raise ValueError("not an HTTP host")
        path = parts.path.rstrip("/").removesuffix("/public")
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _otel_exporter_otlp_endpoint(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value.strip())
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("not an HTTP URL")
        return value and value.strip()

    @field_validator("tickers", mode="before")
    @classmethod
    def _tickers(cls, value: Any) -> Any:
        tickers = _split(value, lower=True)
        bad = [t for t in tickers if not TICKER_PATTERN.fullmatch(t) or len(t) > MAX_TICKER_LENGTH]
        if not tickers or bad:
            raise ValueError("no index name" if not tickers else f"not an index name: {', '.join(bad)}")
        return tickers

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _cors_origins(cls, value: Any) -> Any:
        origins = _split(value)
        if any(not re.fullmatch(r"\*|https?://[^/\s]+", origin) for origin in origins):
            raise ValueError("not an origin")
        return origins

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("fetch_interval_seconds")
    @classmethod
    def _interval(cls, value: int) -> int:
        if value < 1 or not (60 % value == 0 or (value % 60 == 0 and 3600 % value == 0)):
            raise ValueError("not on the grid")
        return value

    @field_validator("retention_days")
    @classmethod
    def _retention_days(cls, value: int | None, info: ValidationInfo) -> int | None:
        # Healing would look for what was dropped, and a new ticker begin with a past that is not kept.
        if value is not None and value * 24 < info.data.get("heal_lookback_hours", 0):
            raise ValueError("shorter than the look-back")
        return value

    @field_validator("api_token")
    @classmethod
    def _api_token(cls, value: str | None) -> str | None:
        if value is not None:
            split_tokens(value)
        return value

    @field_validator("forwarded_allow_ips", mode="before")
    @classmethod
    def _forwarded_allow_ips(cls, value: Any) -> Any:
        networks = _split(value)
        for network in set(networks) - {"*"}:
            ipaddress.ip_network(network)
        return networks

    @property
    def has_token(self) -> bool:
        return self.api_token is not None or self.api_token_file is not None

    def read_tokens(self) -> tuple[str, ...]:
        """Those that are set now, from the variable or the file. Raises `SettingsError`, which tells none of them."""
        if self.api_token_file is None:
            return () if self.api_token is None else split_tokens(self.api_token)
        try:
            return read_token_file(self.api_token_file)
        except ValueError as error:
            raise SettingsError(f"API_TOKEN_FILE={self.api_token_file} is refused; {error}") from None

    def require_guarded_mutations(self) -> None:
        """For the process that listens. Raises `SettingsError` where everyone on the network could run mutations, and
        where it is not clear who may do what.
        """
        problems = []
        if self.api_token is not None and self.api_token_file is not None:
            problems.append("API_TOKEN and API_TOKEN_FILE are both set: keep one of them")
        else:
            try:
                self.read_tokens()
            except SettingsError as error:
                problems.append(str(error))
        if self.require_token_for_reads and not self.has_token:
            problems.append("REQUIRE_TOKEN_FOR_READS=1 needs a token that lets somebody in: set API_TOKEN")
        if not _is_loopback(self.host) and not self.has_token and not self.allow_anonymous_mutations:
            problems.append(
                f"HOST={self.host} listens beyond this machine while everyone may run mutations: set API_TOKEN, "
                "or ALLOW_ANONYMOUS_MUTATIONS=1 to insist"
            )
        if problems:
            raise SettingsError("\n".join(problems))


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and `.env`; `overrides` win. Raises `SettingsError`."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(explain(error)) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _split(value: Any, *, lower: bool = False) -> Any:
    """Comma-separated text as a tuple without blanks and repeats, in the order given."""
    if not isinstance(value, str):
        return value
    items = (item.strip() for item in (value.lower() if lower else value).split(","))
    return tuple(dict.fromkeys(item for item in items if item))
