"""DATABASE_URL as providers hand it out: honoured, or refused at the start by name and without the secret."""

import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote

import certifi
import pytest
from asyncpg.connect_utils import _parse_connect_dsn_and_args  # type: ignore[attr-defined]  # private

from tests.unit.conftest import Loader

HARD_PASSWORD = "p@ss:w/rd#%41?q=1&r[x] $y"


@pytest.fixture(autouse=True)
def _no_variables_of_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


def connection_of(url: str) -> tuple[list[Any], Any]:
    """What asyncpg takes from the URL: the addresses, and the rest."""
    names = "host port user password passfile database ssl service servicefile direct_tls server_settings"
    unset = dict.fromkeys((*names.split(), "target_session_attrs", "krbsrvname", "gsslib"))
    addresses, parameters = _parse_connect_dsn_and_args(dsn=url, **unset)
    return addresses, parameters


@pytest.mark.parametrize("password", [HARD_PASSWORD, "p[x", "a]b", "%", "100%zz", "a+b", "é€", "::1", "[::1]"])
@pytest.mark.parametrize("escape", [str, lambda text: quote(text, safe="")], ids=["raw", "escaped"])
def test_a_password_arrives_or_the_url_is_refused(load: Loader, password: str, escape: Any) -> None:
    url = f"postgresql://user:{escape(password)}@h/db"
    if any(character in escape(password) for character in "@/#? "):
        message = load.message(DATABASE_URL=url)
        assert not any(part in message for part in ("ss:w", "rd#", "q=1", "r[x]"))
        return
    addresses, parameters = connection_of(load(DATABASE_URL=url).database_url)
    assert (addresses, parameters.user, parameters.password) == ([("h", 5432)], "user", password)


def test_a_url_without_the_password_takes_it_from_pgpassword(load: Loader) -> None:
    url = load(DATABASE_URL="postgresql://user@h/db", PGPASSWORD=HARD_PASSWORD).database_url
    assert connection_of(url)[1].password == HARD_PASSWORD
    assert HARD_PASSWORD not in url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2",
        "postgresql://user:hunter2/db",
        "postgresql://:hunter2@/db",
        "postgresql://user:hunter2@/db",
        "postgresql://user:hunter2@:5432/db",
        "postgresql://user:hunter2@h,/db",
        "postgresql://user:hunter2@h1,,h2/db",
        "postgresql://user:hunter2@h:0/db",
        "postgresql://user:hunter2@h:5432x/db",
        "postgresql://user:hunter2@[::1/db",
        "postgresql://user:hunter2@[:::]/db",
        "postgresql://user:p@hunter2@h/db",
        "postgresql://user@x:hunter2@h/db",
        "postgresql://user:p#hunter2@h/db",
        "postgresql://user:p/hunter2@h/db",
        "postgresql://user:p?hunter2@h/db",
        "postgresql://user:1?hunter2=x@h/db",
        "postgresql://user:1?hunter2@h/db",
        "postgresql://user:1/hunter2@h/db",
        "postgresql://user:p hunter2@h/db",
        "postgresql://user:hunter2%ff@h/db",
        "postgresql://user:hunter2%00@h/db",
        "postgresql://user:hunter2@h/db?sslpassword=hunter2&sslmode=never",
        "postgresql://user:hunter2@h/db#",
        "postgresql://user:hunter2@h/db?sslmode",
    ],
)
def test_a_broken_url_is_refused_without_its_password(load: Loader, url: str) -> None:
    first, line, *rest = load.message(DATABASE_URL=url).splitlines()
    assert (first, rest) == ("The settings cannot be used:", [])
    assert line.startswith("  DATABASE_URL=")
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("sslmode=require&channel_binding=prefer", "sslmode=require"),
        ("ssl=true", "sslmode=require"),
        ("ssl=verify-full&sslrootcert=CA", "sslmode=verify-full&sslrootcert=CA"),
        ("ssl=false", "sslmode=disable"),
        ("connect_timeout=10&application_name=x&fallback_application_name=y", ""),
        ("client_encoding=UTF8&gssencmode=disable&load_balance_hosts=random", ""),
        ("sslcompression=0&sslsni=1&sslcertmode=allow&sslmode=", ""),
        ("options=-csearch_path%3Dprices%20-c%20geqo%3Doff", "options=-csearch_path%3Dprices%20-c%20geqo%3Doff"),
        ("options=endpoint%3Dep-a+b", "options=endpoint%3Dep-a%2Bb"),
        ("target_session_attrs=primary&krbsrvname=pg", "target_session_attrs=primary&krbsrvname=pg"),
        ("sslrootcert=system", "sslmode=verify-full&sslrootcert=SYSTEM"),
    ],
)
def test_parameters_that_are_honoured(load: Loader, query: str, kept: str) -> None:
    system = ssl.get_default_verify_paths().cafile or certifi.where()
    url = load(DATABASE_URL=f"postgresql://h/db?{query.replace('CA', certifi.where())}").database_url
    wanted = kept.replace("CA", certifi.where()).replace("SYSTEM", system)
    assert sorted(url.partition("?")[2].split("&")) == sorted(wanted.split("&"))
    assert set(connection_of(url)[1].server_settings or {}) <= {"options"}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (
            "channel_binding=require",
            "the value of channel_binding cannot be honoured (asyncpg has no channel binding; sslmode=verify-full with "
            "sslrootcert=system checks the server)",
        ),
        ("schema=public", "schema is not supported (use options=-csearch_path%3D… instead)"),
        ("pgbouncer=true", "pgbouncer is not supported (set DATABASE_POOLER=1 instead)"),
        ("search_path=x", "search_path is not supported"),
        ("keepalives_idle=30", "keepalives_idle is not supported"),
        ("connect_timeout=soon", "the value of connect_timeout cannot be honoured"),
        ("gssencmode=require", "the value of gssencmode cannot be honoured"),
        ("sslmode=require&sslrootcert=system", "sslrootcert=system needs sslmode=verify-full"),
        (
            "sslmode=verify-full&sslrootcert=/no/such",
            "[Errno 2] No such file or directory (from sslmode, sslrootcert)",
        ),
        ("target_session_attrs=standby", "target_session_attrs is not one of any, primary, read-write"),
    ],
)
def test_parameters_that_are_refused_by_name(load: Loader, query: str, reason: str) -> None:
    assert load.message(DATABASE_URL=f"postgresql://h/db?{query}") == (
        f"The settings cannot be used:\n  DATABASE_URL=postgresql://h/db?{query} is refused: {reason}; "
        "accepted: postgresql://user:password@host:5432/database (postgresql+asyncpg:// works too)"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGSSLMODE", "never"),
        ("PGPORT", "port"),
        ("PGSSLNEGOTIATION", "never"),
        ("PGGSSLIB", "none"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGTARGETSESSIONATTRS", "nearest"),
        ("PGSSLMINPROTOCOLVERSION", "SSLv3"),
    ],
)
def test_a_bad_variable_of_libpq_is_named(load: Loader, name: str, value: str) -> None:
    first, line, *rest = load.message(DATABASE_URL="postgresql://h/db", **{name: value}).splitlines()
    assert (first, rest) == ("The settings cannot be used:", [])
    assert line.startswith("  DATABASE_URL=postgresql://h/db is refused: ")
    assert name in line


def test_the_certificate_of_a_variable_is_checked_where_it_is_used(load: Loader) -> None:
    missing = {"PGSSLROOTCERT": "/no/such"}
    load(DATABASE_URL="postgresql://h/db", **missing)
    assert "No such file or directory (from sslmode, PGSSLROOTCERT)" in load.message(
        DATABASE_URL="postgresql://h/db?sslmode=require", **missing
    )


def test_the_target_of_the_variable_counts_as_the_urls(load: Loader) -> None:
    read = load(
        DATABASE_URL="postgresql://h/db?target_session_attrs=primary",
        DATABASE_READ_URL="postgresql://r/db",
        PGTARGETSESSIONATTRS="read-write",
    ).database_read_url
    assert read == "postgresql://r/db?target_session_attrs=read-write"


def test_a_service_may_name_the_host(load: Loader, tmp_path: Path) -> None:
    (tmp_path / "services").write_text("[prices]\nhost=elsewhere\nport=5433\n")
    url = load(DATABASE_URL="postgresql:///?service=prices", PGSERVICEFILE=str(tmp_path / "services")).database_url
    assert connection_of(url)[0] == [("elsewhere", 5433)]
