"""Settings from the environment: what is accepted, what is refused, and how the operator is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config.settings import Settings, SettingsError, load_settings
from tests.unit.conftest import NEEDED, Loader

BARE = "https://deribit.com/api/v2/public"
BRIEF = """\
DATABASE_URL=postgresql+asyncpg://postgres:postgres@postgres:5432/deribit
REDIS_URL=redis://redis:6379/0
DERIBIT_BASE_URL=https://deribit.com/api/v2/public
"""
GRID = [1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 180, 240, 300, 360, 600, 720, 900, 1200, 1800, 3600]


def test_defaults_are_those_of_the_contract(load: Loader) -> None:
    assert load().model_dump() == {
        "database_url": "postgresql://localhost/prices",
        "database_read_url": None,
        "database_pooler": False,
        "redis_url": "redis://localhost:6379/0",
        "deribit_base_url": "https://www.deribit.com/api/v2",
        "stream": "auto",
        "deribit_stream_url": None,
        "tickers": ("btc_usd", "eth_usd"),
        "fetch_interval_seconds": 60,
        "heal_lookback_hours": 24,
        "retention_days": None,
        "history_from": None,
        "deribit_history_url": None,
        "host": "127.0.0.1",
        "port": 8000,
        "metrics_port": 0,
        "drain_seconds": 5,
        "api_token": None,
        "api_token_file": None,
        "allow_anonymous_mutations": False,
        "require_token_for_reads": False,
        "introspection": True,
        "fetch_limit_per_client": 300,
        "fetch_limit_overall": 600,
        "forwarded_allow_ips": ("127.0.0.1", "::1"),
        "cors_origins": (),
        "allowed_hosts": (),
        "data_dir": ".data",
        "log_level": "info",
        "log_format": "console",
        "otel_exporter_otlp_endpoint": None,
    }


def test_an_empty_variable_is_one_that_is_not_set(load: Loader) -> None:
    names = {name.upper() for name in Settings.model_fields} - set(NEEDED)
    assert load(**dict.fromkeys(names, "")) == load_settings(**{name.lower(): value for name, value in NEEDED.items()})


def test_the_briefs_file_works_unchanged(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(BRIEF)
    settings = load_settings(_env_file=tmp_path / ".env")
    assert (settings.database_url, settings.redis_url, settings.deribit_base_url, settings.tickers) == (
        "postgresql://postgres:postgres@postgres:5432/deribit",
        "redis://redis:6379/0",
        "https://deribit.com/api/v2",
        ("btc_usd", "eth_usd"),
    )


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(BRIEF + "PORT=9000\nHOST=::1\n")
    monkeypatch.setenv("PORT", "9001")
    settings = load_settings(_env_file=tmp_path / ".env")
    assert (settings.port, settings.host) == (9001, "::1")


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("postgresql://u:p@h:5432/db", "postgresql://u:p@h:5432/db"),
        ("postgres://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql+asyncpg://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql://u:p@one:5432,two:5433/db?target_session_attrs=primary", None),
        ("postgresql://u:p%40ss%2Fword%25@h/db", None),
        ("postgresql://u:p@[::1]:5432/db", None),
        ("postgresql:///db?host=/var/run/postgresql", None),
        ("  postgresql://h/db\n", "postgresql://h/db"),
    ],
)
def test_database_urls_that_work(load: Loader, given_url: str, kept: str | None) -> None:
    assert load(DATABASE_URL=given_url).database_url == (kept or given_url)


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("postgres://u:p@one,two:5433/db", "postgresql://u:p@one,two:5433/db"),
        ("postgresql://h/db?target_session_attrs=standby", None),
        (
            "postgresql://h/db?ssl=require&target_session_attrs=any",
            "postgresql://h/db?sslmode=require&target_session_attrs=any",
        ),
    ],
)
def test_urls_of_standbys_that_work(load: Loader, given_url: str, kept: str | None) -> None:
    assert load(DATABASE_READ_URL=given_url).database_read_url == (kept or given_url)


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://h:6379/15", "rediss://:p%40ss@h:6380/0", "redis://user:secret@h/0", "redis://[::1]:6379/0"],
)
def test_redis_urls_that_work(load: Loader, url: str) -> None:
    assert load(REDIS_URL=url).redis_url == url


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("https://www.deribit.com/api/v2", "https://www.deribit.com/api/v2"),
        ("https://www.deribit.com/api/v2/", "https://www.deribit.com/api/v2"),
        ("https://www.deribit.com/api/v2/public", "https://www.deribit.com/api/v2"),
        ("https://test.deribit.com/api/v2/public/", "https://test.deribit.com/api/v2"),
        ("http://127.0.0.1:9000/api/v2", "http://127.0.0.1:9000/api/v2"),
        (" https://www.deribit.com/api/v2 ", "https://www.deribit.com/api/v2"),
    ],
)
def test_exchange_urls_that_work(load: Loader, given_url: str, kept: str) -> None:
    assert load(DERIBIT_BASE_URL=given_url).deribit_base_url == kept


@pytest.mark.parametrize(
    ("variables", "streams", "url"),
    [
        ({}, False, "wss://www.deribit.com/ws/api/v2"),
        ({"FETCH_INTERVAL_SECONDS": "10"}, False, "wss://www.deribit.com/ws/api/v2"),
        ({"FETCH_INTERVAL_SECONDS": "6", "DERIBIT_BASE_URL": BARE}, True, "wss://www.deribit.com/ws/api/v2"),
        (
            {"STREAM": "1", "DERIBIT_BASE_URL": "https://test.deribit.com/api/v2"},
            True,
            "wss://test.deribit.com/ws/api/v2",
        ),
        ({"STREAM": " AUTO ", "DERIBIT_BASE_URL": "http://[::1]:9000/api/v2"}, False, "ws://[::1]:9000/ws/api/v2"),
        ({"STREAM": "0", "FETCH_INTERVAL_SECONDS": "1", "DERIBIT_STREAM_URL": " ws://h:9/x "}, False, "ws://h:9/x"),
    ],
)
def test_whether_and_where_prices_are_streamed(
    load: Loader, variables: dict[str, str], streams: bool, url: str
) -> None:
    settings = load(**variables)
    assert (settings.streams, settings.stream_url) == (streams, url)


@pytest.mark.parametrize(
    ("text", "tickers"),
    [
        ("btc_usd", ("btc_usd",)),
        (" BTC_USD , Eth_Usd,", ("btc_usd", "eth_usd")),
        ("eth_usd,btc_usd,ETH_USD,eth_usd", ("eth_usd", "btc_usd")),
        ("drbfix-btc_usdc,1000bonk_usdc,s_usdc", ("drbfix-btc_usdc", "1000bonk_usdc", "s_usdc")),
    ],
)
def test_tickers_in_any_case_once_each(load: Loader, text: str, tickers: tuple[str, ...]) -> None:
    assert load(TICKERS=text).tickers == tickers


def test_the_interval_is_one_that_the_grid_allows() -> None:
    def is_accepted(seconds: int) -> bool:
        try:
            load_settings(database_url="postgresql://h", redis_url="redis://h", fetch_interval_seconds=seconds)
        except SettingsError:
            return False
        return True

    assert [seconds for seconds in [*range(-3, 200), *range(200, 7201, 20)] if is_accepted(seconds)] == GRID


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("HEAL_LOOKBACK_HOURS", "1", 1),
        ("HEAL_LOOKBACK_HOURS", "8760", 8760),
        ("DATABASE_POOLER", "1", True),
        ("PORT", "65535", 65535),
        ("DRAIN_SECONDS", "0", 0),
        ("DRAIN_SECONDS", "600", 600),
        ("API_TOKEN", "12345678", "12345678"),
        ("API_TOKEN", "first-token, second-token", "first-token, second-token"),
        ("API_TOKEN_FILE", "/run/secrets/api_token", "/run/secrets/api_token"),
        ("REQUIRE_TOKEN_FOR_READS", "1", True),
        ("INTROSPECTION", "0", False),
        ("FETCH_LIMIT_PER_CLIENT", "0", 0),
        ("FETCH_LIMIT_OVERALL", "1000000", 1_000_000),
        ("FORWARDED_ALLOW_IPS", "10.0.0.7, 10.1.0.0/16,::1", ("10.0.0.7", "10.1.0.0/16", "::1")),
        ("FORWARDED_ALLOW_IPS", "*", ("*",)),
        ("ALLOW_ANONYMOUS_MUTATIONS", "1", True),
        ("ALLOW_ANONYMOUS_MUTATIONS", "0", False),
        ("CORS_ORIGINS", "https://a.example, http://localhost:3000,", ("https://a.example", "http://localhost:3000")),
        ("ALLOWED_HOSTS", "Prices.example., api_1,", ("prices.example", "api_1")),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("LOG_FORMAT", " Json ", "json"),
        ("DATA_DIR", "/srv/prices", "/srv/prices"),
    ],
)
def test_values_that_work(load: Loader, name: str, text: str, value: object) -> None:
    assert getattr(load(**{name: text}), name.lower()) == value


@given(st.lists(st.sampled_from(("btc_usd", "ETH_usd", " s_usdc ", "", "1000bonk_usdc"))))
def test_tickers_never_repeat(names: list[str]) -> None:
    wanted = list(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
    if wanted:
        settings = load_settings(database_url="postgresql://h", redis_url="redis://h", tickers=",".join(names))
        assert settings.tickers == tuple(wanted)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_token(load: Loader, host: str) -> None:
    load(HOST=host).require_guarded_mutations()


@pytest.mark.parametrize("guard", [{"API_TOKEN": "12345678"}, {"ALLOW_ANONYMOUS_MUTATIONS": "1"}])
def test_beyond_loopback_a_guard_or_insisting_is_enough(load: Loader, guard: dict[str, str]) -> None:
    load(HOST="0.0.0.0", **guard).require_guarded_mutations()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "prices.example"])
def test_beyond_loopback_without_a_guard_is_refused(load: Loader, host: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(HOST=host).require_guarded_mutations()
    assert str(caught.value) == (
        f"HOST={host} listens beyond this machine and anyone may run mutations: set API_TOKEN, "
        "or ALLOW_ANONYMOUS_MUTATIONS=1 to allow that"
    )
