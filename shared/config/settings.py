"""Settings of every process, read once from the environment and `.env`. Nothing else reads the environment.

A field's description says what is accepted, with its bounds as `{ge}` and `{le}`; the message of a refusal quotes it.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.config import values
from shared.config.database_url import READ_TARGETS, WRITE_TARGETS, clean_database_url
from shared.config.messages import explain
from shared.config.sentinel_url import SENTINEL_URL_RULE
from shared.config.tokens import TOKEN_RULE, read_token_file, split_tokens

WHOLE_NUMBER = "a whole number from {ge} to {le}"
_PRODUCTION = ("deribit.com", "www.deribit.com")

LIMIT = "a whole number from {ge}, which is no limit, to {le}"


class SettingsError(Exception):
    """One message for the operator: every bad variable, its value (secrets masked) and what is accepted."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, frozen=True, extra="ignore")

    database_url: Annotated[str, AfterValidator(lambda url: clean_database_url(url, WRITE_TARGETS))] = Field(
        repr=False, description="postgresql://user:password@host:5432/database (postgresql+asyncpg:// works too)"
    )
    database_read_url: Annotated[str, AfterValidator(lambda url: clean_database_url(url, READ_TARGETS))] | None = Field(
        default=None,
        repr=False,
        description="as DATABASE_URL, of hot standbys; with target_session_attrs=standby never the primary",
    )
    database_pooler: bool = False
    redis_url: Annotated[str, AfterValidator(values.parse_redis_url)] = Field(
        repr=False, description=f"redis://[:password@]host:6379/0 or rediss://…; {SENTINEL_URL_RULE}"
    )
    deribit_base_url: Annotated[str, AfterValidator(values.parse_exchange_url)] = Field(
        default="https://www.deribit.com/api/v2",
        description="an http(s) URL such as https://www.deribit.com/api/v2",
    )
    deribit_history_url: Annotated[str, AfterValidator(values.parse_exchange_url)] | None = Field(
        default=None, description="an http(s) URL such as https://history.deribit.com/api/v2"
    )
    stream: Annotated[Literal["auto", "1", "0"], BeforeValidator(values.lower)] = Field(
        default="auto", description="1, 0 or auto, which is 1 if FETCH_INTERVAL_SECONDS is below 10"
    )
    deribit_stream_url: Annotated[str, AfterValidator(values.parse_stream_url)] | None = Field(
        default=None, description="a ws(s) URL such as wss://www.deribit.com/ws/api/v2"
    )
    tickers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.parse_tickers)] = Field(
        default=("btc_usd", "eth_usd"), description="comma-separated index names such as btc_usd,eth_usd"
    )
    fetch_interval_seconds: Annotated[int, AfterValidator(values.parse_interval)] = Field(
        default=60, description="a divisor of 60, or a multiple of 60 that divides 3600"
    )
    heal_lookback_hours: int = Field(default=24, ge=1, le=8760, description=WHOLE_NUMBER)
    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description=f"{WHOLE_NUMBER}, no shorter than HEAL_LOOKBACK_HOURS; unset to keep everything",
    )
    history_from: Annotated[datetime, BeforeValidator(values.parse_past)] | None = Field(
        default=None,
        description="a past date such as 2026-01-31, or an instant with an offset; no older than RETENTION_DAYS keeps",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535, description="a port number from {ge} to {le}")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="a port number from 1 to {le}, or {ge} for none")
    drain_seconds: int = Field(default=5, ge=0, le=600, description=WHOLE_NUMBER)
    api_token: str | None = Field(default=None, repr=False, description=TOKEN_RULE)
    api_token_file: str | None = None
    allow_anonymous_mutations: bool = False
    require_token_for_reads: bool = False
    introspection: bool = True
    fetch_limit_per_client: int = Field(default=300, ge=0, le=1_000_000, description=LIMIT)
    fetch_limit_overall: int = Field(default=600, ge=0, le=1_000_000, description=LIMIT)
    forwarded_allow_ips: Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.parse_networks)] = Field(
        default=("127.0.0.1", "::1"),
        description="comma-separated addresses and networks such as 127.0.0.1,10.0.0.0/8, or * for all",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.parse_origins)] = Field(
        default=(), description="comma-separated origins such as https://example.com, or * for all"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.parse_hosts)] = Field(
        default=(), description="comma-separated host names such as prices.example.com, without a port, or * for all"
    )
    data_dir: str = ".data"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(values.lower)] = Field(
        default="info", description="debug, info, warning or error"
    )
    log_format: Annotated[Literal["console", "json"], BeforeValidator(values.lower)] = Field(
        default="console", description="console or json"
    )
    otel_exporter_otlp_endpoint: Annotated[str, AfterValidator(values.parse_http_url)] | None = Field(
        default=None, repr=False, description="the http(s) URL of a collector such as http://localhost:4318"
    )

    @field_validator("retention_days")
    @classmethod
    def _retention_days(cls, value: int | None, info: ValidationInfo) -> int | None:
        # Otherwise healing would look for dropped prices, and a new ticker would begin with prices too old to keep.
        if value is not None and value * 24 < info.data.get("heal_lookback_hours", 0):
            raise ValueError("shorter than the look-back")
        return value

    @field_validator("history_from")
    @classmethod
    def _history_from(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        # Otherwise filling would ask for prices that retention refuses. Retention counts back to a midnight.
        days = info.data.get("retention_days")
        if value is not None and days is not None:
            kept_from = datetime.now(UTC) - timedelta(days=days)
            if value < kept_from.replace(hour=0, minute=0, second=0, microsecond=0):
                raise ValueError("older than what is kept")
        return value

    @field_validator("api_token")
    @classmethod
    def _api_token(cls, value: str | None) -> str | None:
        if value is not None:
            split_tokens(value)
        return value

    @property
    def history_url(self) -> str:
        """Where old trades are asked for. Only production has a host of its own for them."""
        if self.deribit_history_url is not None:
            return self.deribit_history_url
        is_production = urlsplit(self.deribit_base_url).hostname in _PRODUCTION
        return "https://history.deribit.com/api/v2" if is_production else self.deribit_base_url

    @property
    def streams(self) -> bool:
        """Whether slots are observed through the exchange's stream."""
        return self.stream == "1" or (self.stream == "auto" and self.fetch_interval_seconds < 10)

    @property
    def stream_url(self) -> str:
        if self.deribit_stream_url is not None:
            return self.deribit_stream_url
        base = urlsplit(self.deribit_base_url)
        host = "www.deribit.com" if base.netloc == "deribit.com" else base.netloc  # a socket follows no redirect
        return f"{'ws' if base.scheme == 'http' else 'wss'}://{host}/ws/api/v2"

    @property
    def has_token(self) -> bool:
        return self.api_token is not None or self.api_token_file is not None

    def read_tokens(self) -> tuple[str, ...]:
        """The present tokens, from the variable or the file. Raises `SettingsError`, which repeats none of them."""
        if self.api_token_file is None:
            return () if self.api_token is None else split_tokens(self.api_token)
        try:
            return read_token_file(self.api_token_file)
        except ValueError as error:
            raise SettingsError(f"API_TOKEN_FILE={self.api_token_file} is refused; {error}") from None

    def require_guarded_mutations(self) -> None:
        """For the API. Raises `SettingsError` if anyone on the network could run mutations, or if the settings of the
        tokens contradict each other.
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
            problems.append("REQUIRE_TOKEN_FOR_READS=1 needs a token: set API_TOKEN")
        if not values.is_loopback(self.host) and not self.has_token and not self.allow_anonymous_mutations:
            problems.append(
                f"HOST={self.host} listens beyond this machine and anyone may run mutations: set API_TOKEN, "
                "or ALLOW_ANONYMOUS_MUTATIONS=1 to allow that"
            )
        if problems:
            raise SettingsError("\n".join(problems))


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and `.env`; `overrides` win. Raises `SettingsError`."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(explain(error, Settings.model_fields)) from None
