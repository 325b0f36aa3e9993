"""Bad settings: refused at the start, in one message that names each and gives no secret away."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from shared.config.settings import SettingsError, load_settings
from tests.unit.conftest import Loader


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_URL", "mysql://h/db"),
        ("DATABASE_URL", "postgresql+psycopg2://h/db"),
        ("DATABASE_URL", "postgresql://"),
        ("DATABASE_URL", "postgresql://ho st/db"),
        ("DATABASE_URL", "postgresql://h:port/db"),
        ("DATABASE_URL", "postgresql://h:99999/db"),
        ("DATABASE_URL", "h:5432/db"),
        ("DATABASE_URL", "postgresql://h/db?target_session_attrs=standby"),
        ("DATABASE_URL", "postgresql://h/db?target_session_attrs=primery"),
        ("DATABASE_READ_URL", "mysql://h/db"),
        ("DATABASE_READ_URL", "postgresql://h:99999/db"),
        ("DATABASE_READ_URL", "postgresql://h/db?target_session_attrs=nearest"),
        ("DATABASE_POOLER", "transaction"),
        ("REDIS_URL", "http://h"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://h/zero"),
        ("REDIS_URL", "redis://h:port/0"),
        ("REDIS_URL", "redis://h:99999/0"),
        ("REDIS_URL", "redis://ho st/0"),
        ("REDIS_URL", "h:6379"),
        ("DERIBIT_BASE_URL", "www.deribit.com/api/v2"),
        ("DERIBIT_BASE_URL", "wss://www.deribit.com/ws/api/v2"),
        ("DERIBIT_BASE_URL", "https://"),
        ("DERIBIT_BASE_URL", "https://www.deribit.com/api/v2?x=1"),
        ("DERIBIT_BASE_URL", "https://www.deribit.com/api/v2#x"),
        ("DERIBIT_BASE_URL", "https://[::1/api/v2"),
        ("DERIBIT_BASE_URL", "https://www.deribit.com:port/api/v2"),
        ("DERIBIT_BASE_URL", "https://www.deribit.com:99999/api/v2"),
        ("DERIBIT_BASE_URL", "https://www.deri bit.com/api/v2"),
        ("STREAM", "on"),
        ("STREAM", "2"),
        ("DERIBIT_STREAM_URL", "https://www.deribit.com/ws/api/v2"),
        ("DERIBIT_STREAM_URL", "wss://"),
        ("DERIBIT_STREAM_URL", "wss://www.deribit.com:99999/ws/api/v2"),
        ("DERIBIT_STREAM_URL", "wss://www.deri bit.com/ws/api/v2"),
        ("DERIBIT_STREAM_URL", "wss://www.deribit.com/ws/api/v2?x=1"),
        ("TICKERS", ","),
        ("TICKERS", "btc"),
        ("TICKERS", "btc_usd;eth_usd"),
        ("TICKERS", "btc_usd,btc usd"),
        ("TICKERS", "btc_usd\x01"),
        ("TICKERS", "b" * 61 + "_usd"),
        ("TICKERS", "\u0431\u0442\u0446_usd"),
        ("FETCH_INTERVAL_SECONDS", "0"),
        ("FETCH_INTERVAL_SECONDS", "-60"),
        ("FETCH_INTERVAL_SECONDS", "7"),
        ("FETCH_INTERVAL_SECONDS", "90"),
        ("FETCH_INTERVAL_SECONDS", "7200"),
        ("FETCH_INTERVAL_SECONDS", "0.5"),
        ("FETCH_INTERVAL_SECONDS", "1m"),
        ("HEAL_LOOKBACK_HOURS", "0"),
        ("HEAL_LOOKBACK_HOURS", "8761"),
        ("RETENTION_DAYS", "0"),
        ("RETENTION_DAYS", "36501"),
        ("RETENTION_DAYS", "1.5"),
        ("RETENTION_DAYS", "never"),
        ("HISTORY_FROM", "yesterday"),
        ("HISTORY_FROM", "20260231"),
        ("HISTORY_FROM", "2026-01-31T12:00:00"),
        ("HISTORY_FROM", "2999-01-01"),
        ("DERIBIT_HISTORY_URL", "history.deribit.com"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("METRICS_PORT", "-1"),
        ("METRICS_PORT", "65536"),
        ("METRICS_PORT", "none"),
        ("DRAIN_SECONDS", "-1"),
        ("DRAIN_SECONDS", "601"),
        ("DRAIN_SECONDS", "soon"),
        ("ALLOW_ANONYMOUS_MUTATIONS", "maybe"),
        ("REQUIRE_TOKEN_FOR_READS", "maybe"),
        ("INTROSPECTION", "some"),
        ("FETCH_LIMIT_PER_CLIENT", "-1"),
        ("FETCH_LIMIT_OVERALL", "1000001"),
        ("FETCH_LIMIT_OVERALL", "many"),
        ("FORWARDED_ALLOW_IPS", "proxy.example"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8"),
        ("FORWARDED_ALLOW_IPS", "127.0.0.1;::1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318?x=1"),
    ],
)
def test_values_that_are_refused(load: Loader, name: str, text: str) -> None:
    first, line, *rest = load.message(**{name: text}).splitlines()
    assert (first, rest) == ("The settings cannot be used:", [])
    assert line.startswith(f"  {name}=")
    assert re.search(r" is refused(: .+)?; accepted: ", line)
    assert not line.endswith("accepted: ")


def test_a_history_from_before_what_retention_keeps_is_refused(load: Loader) -> None:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=30)
    assert load.message(RETENTION_DAYS="30", HISTORY_FROM=(midnight - timedelta(seconds=1)).isoformat()).endswith(
        "is refused; accepted: a past date such as 2026-01-31, or an instant with an offset; no older than "
        "RETENTION_DAYS keeps"
    )
    assert load(RETENTION_DAYS="30", HISTORY_FROM=midnight.date().isoformat()).history_from == midnight
    assert load(HISTORY_FROM="").history_from is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, "https://history.deribit.com/api/v2"),
        ({"DERIBIT_BASE_URL": "https://deribit.com/api/v2/public"}, "https://history.deribit.com/api/v2"),
        ({"DERIBIT_BASE_URL": "https://test.deribit.com/api/v2"}, "https://test.deribit.com/api/v2"),
        ({"DERIBIT_HISTORY_URL": "http://elsewhere:1/api/v2/public/"}, "http://elsewhere:1/api/v2"),
    ],
)
def test_only_production_has_a_host_of_its_own_for_old_trades(
    load: Loader, names: dict[str, str], expected: str
) -> None:
    assert load(**names).history_url == expected


def test_a_retention_shorter_than_the_look_back_is_refused(load: Loader) -> None:
    assert load.message(RETENTION_DAYS="2", HEAL_LOOKBACK_HOURS="49") == (
        "The settings cannot be used:\n"
        "  RETENTION_DAYS=2 is refused; accepted: a whole number from 1 to 36500, no shorter than HEAL_LOOKBACK_HOURS; "
        "unset to keep everything"
    )
    assert load(RETENTION_DAYS="2", HEAL_LOOKBACK_HOURS="48").retention_days == 2
    assert load(RETENTION_DAYS="").retention_days is None


@pytest.mark.parametrize(
    "token", ["short", "with a space", "tab\tinside", "pässword", "12345678\n", "12345678,", "a-good-token,short"]
)
def test_a_refused_token_is_not_shown(load: Loader, token: str) -> None:
    assert load.message(API_TOKEN=token) == (
        "The settings cannot be used:\n"
        "  API_TOKEN=*** is refused; accepted: at least 8 printable ASCII characters without spaces"
    )


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@h/db",
        "mysql://user:hunter2@one,two/db",
        "mysql://:hunter2@h/db",
        "mysql://user:p@hunter2/x@h/db",
        "mysql://user:a:hunter2@h/db",
        "mysql://h/db?user=u&password=hunter2",
        "user:hunter2@h:5432/db",
        "postgresql:user:hunter2@h:5432/db",
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_READ_URL", "REDIS_URL"])
def test_a_refused_urls_password_is_not_shown(load: Loader, name: str, url: str) -> None:
    message = load.message(**{name: url})
    assert name in message
    assert "hunter2" not in message


def test_one_message_names_every_bad_variable(load: Loader) -> None:
    message = load.message(
        DATABASE_URL="mysql://user:hunter2@h/db",
        REDIS_URL="http://:hunter2@h",
        DERIBIT_BASE_URL="ftp://www.deribit.com",
        TICKERS="btc",
        FETCH_INTERVAL_SECONDS="7",
        HEAL_LOOKBACK_HOURS="0",
        PORT="-1",
        API_TOKEN="hunter2",
        ALLOW_ANONYMOUS_MUTATIONS="maybe",
        LOG_LEVEL="loud",
        LOG_FORMAT="xml",
    )
    assert message == (
        "The settings cannot be used:\n"
        "  DATABASE_URL=mysql://user:***@h/db is refused; "
        "accepted: postgresql://user:password@host:5432/database (postgresql+asyncpg:// works too)\n"
        "  REDIS_URL=http://:***@h is refused; accepted: redis://[:password@]host:6379/0 or rediss://…; "
        "redis+sentinel://[:password@]host:26379,host:26379/name/0 or rediss+sentinel://…\n"
        "  DERIBIT_BASE_URL=ftp://www.deribit.com is refused; "
        "accepted: an http(s) URL such as https://www.deribit.com/api/v2\n"
        "  TICKERS=btc is refused; accepted: comma-separated index names such as btc_usd,eth_usd\n"
        "  FETCH_INTERVAL_SECONDS=7 is refused; accepted: a divisor of 60, or a multiple of 60 that divides 3600\n"
        "  HEAL_LOOKBACK_HOURS=0 is refused; accepted: a whole number from 1 to 8760\n"
        "  PORT=-1 is refused; accepted: a port number from 1 to 65535\n"
        "  API_TOKEN=*** is refused; accepted: at least 8 printable ASCII characters without spaces\n"
        "  ALLOW_ANONYMOUS_MUTATIONS=maybe is refused; accepted: 1 or 0\n"
        "  LOG_LEVEL=loud is refused; accepted: debug, info, warning or error\n"
        "  LOG_FORMAT=xml is refused; accepted: console or json"
    )


@pytest.mark.parametrize("empty", [True, False])
def test_what_has_no_default_has_to_be_set(monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        if empty:
            monkeypatch.setenv(name, "")
    with pytest.raises(SettingsError, match="DATABASE_URL is not set; accepted: postgresql://") as caught:
        load_settings()
    assert "REDIS_URL is not set; accepted: redis://" in str(caught.value)


def test_settings_do_not_show_secrets_when_printed(load: Loader) -> None:
    settings = load(
        DATABASE_URL="postgresql://u:hunter2@h/db",
        DATABASE_READ_URL="postgresql://u:hunter2@h/db",
        REDIS_URL="redis://:hunter2@h",
        API_TOKEN="hunter2hunter2",
    )
    assert "hunter2" not in repr(settings)
