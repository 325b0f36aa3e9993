"""REDIS_URL as providers hand it out: honoured, or refused at the start by name and without the secret."""

from typing import Any

import certifi
import pytest
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import Connection

from tests.unit.conftest import Loader


def connection_of(url: str) -> Connection:
    """What redis-py makes of the URL when it connects."""
    connection: Connection = ConnectionPool.from_url(url).make_connection()
    return connection


@pytest.mark.parametrize(
    ("url", "attributes"),
    [
        ("redis://:p%40ss%3Aw%2Frd%23@h/3", {"password": "p@ss:w/rd#", "db": 3, "host": "h", "port": 6379}),
        ("redis://:p@ss@h:1", {"password": "p@ss", "port": 1}),
        ("rediss://u:p@[::1]:6380", {"username": "u", "host": "::1"}),
        ("redis://h?db=2&client_name=prices&protocol=3", {"db": 2, "client_name": "prices", "protocol": "3"}),
        ("redis://h/0?password=a%25b+c&username=u", {"password": "a%b+c", "username": "u"}),
        ("redis://h?family=0", {"host": "h"}),
        ("redis://h?socket_timeout=1.5&socket_keepalive=true", {"socket_timeout": 1.5, "socket_keepalive": True}),
        ("redis://h?health_check_interval=30&retry_on_timeout=1", {"health_check_interval": 30}),
        ("rediss://h?ssl_cert_reqs=none", {"cert_reqs": 0}),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=true", {"cert_reqs": 2, "check_hostname": True}),
        (f"rediss://h?ssl_ca_certs={certifi.where()}", {"ca_certs": certifi.where()}),
    ],
)
def test_urls_that_are_honoured(load: Loader, url: str, attributes: dict[str, Any]) -> None:
    connection = connection_of(load(REDIS_URL=url).redis_url)
    assert {name: getattr(connection, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("family=4", "family is not supported"),
        ("ssl_cert_reqs=none", "ssl_cert_reqs: only with rediss://"),
        ("ssl=true", "ssl is not supported (use rediss:// instead)"),
        ("decode_responses=true", "decode_responses is not supported"),
        ("timeout=5", "timeout is not supported"),
        ("db=x", "the value of db is not a number that is accepted"),
        ("socket_timeout=0", "the value of socket_timeout is not a number that is accepted"),
        ("max_connections=0", "the value of max_connections is not a number that is accepted"),
        ("client_name=", "client_name is empty"),
        ("protocol=4", "redis-py does not take protocol"),
    ],
)
def test_parameters_that_are_refused_by_name(load: Loader, query: str, reason: str) -> None:
    message = load.message(REDIS_URL=f"redis://h/0?{query}")
    assert message.startswith(
        f"The settings cannot be used:\n  REDIS_URL=redis://h/0?{query} is refused: {reason}; accepted: "
    )
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("ssl_cert_reqs=maybe", "Invalid SSL Certificate Requirements Flag: maybe (from ssl_cert_reqs)"),
        ("ssl_ca_certs=/no/such", "[Errno 2] No such file or directory (from ssl_ca_certs)"),
        (
            "ssl_cert_reqs=none&ssl_check_hostname=true",
            "Cannot set verify_mode to CERT_NONE when check_hostname is enabled. (from ssl_cert_reqs, "
            "ssl_check_hostname)",
        ),
    ],
)
def test_parameters_of_tls_are_tried(load: Loader, query: str, reason: str) -> None:
    assert f"is refused: {reason}; accepted: " in load.message(REDIS_URL=f"rediss://h/0?{query}")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2",
        "redis://:hunter2/0",
        "redis://user:hunter2/0",
        "redis://:hunter2@",
        "redis://:hunter2@:6379/0",
        "redis://:hunter2@/0",
        "redis://:hunter2@h:0",
        "redis://:p/hunter2@h",
        "redis://:p#hunter2@h",
        "redis://:p?hunter2@h",
        "redis://u:1?hunter2=x@h",
        "redis://u:1/hunter2@h",
        "redis://:p hunter2@h",
        "redis://:hunter2[@h",
        "redis://:hunter2@h/0#",
        "redis://:hunter2@h/0?x",
        "redis://:hunter2@h/0?password=hunter2&x=1",
    ],
)
def test_a_broken_url_is_refused_without_its_password(load: Loader, url: str) -> None:
    first, line, *rest = load.message(REDIS_URL=url).splitlines()
    assert (first, rest) == ("The settings cannot be used:", [])
    assert line.startswith("  REDIS_URL=")
    assert "hunter2" not in line
