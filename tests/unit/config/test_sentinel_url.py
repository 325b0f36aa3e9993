"""REDIS_URL with sentinels: what it names, what is refused, what is not shown."""

import certifi
import pytest

from shared.config.sentinel_url import SentinelURL, is_sentinel_url, parse_sentinel_url
from tests.unit.conftest import Loader

ACCEPTED = (
    "redis://[:password@]host:6379/0 or rediss://…; redis+sentinel://[:password@]host:26379,host:26379/name/0 "
    "or rediss+sentinel://…"
)


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("redis+sentinel://s1/prices", SentinelURL((("s1", 26379),), "prices", False, {"db": 0}, {})),
        (
            "redis+sentinel://:p%40ss%2Fword@s1:26380,s2,10.0.0.3:26381/my-master.1/3?sentinel_password=w%2Bx+y%26z",
            SentinelURL(
                (("s1", 26380), ("s2", 26379), ("10.0.0.3", 26381)),
                "my-master.1",
                False,
                {"db": 3, "password": "p@ss/word"},
                {"password": "w+x+y&z"},
            ),
        ),
        (
            "redis+sentinel://us%3Aer:a:b@c@[::1]:1,[fe80::2]/m/?sentinel_username=watch&sentinel_password=p@ss",
            SentinelURL(
                (("::1", 1), ("fe80::2", 26379)),
                "m",
                False,
                {"db": 0, "username": "us:er", "password": "a:b@c"},
                {"username": "watch", "password": "p@ss"},
            ),
        ),
        (
            f"REDISS+sentinel://s1/m/0?ssl_ca_certs={certifi.where()}&ssl_check_hostname=true&ssl_cert_reqs=optional",
            SentinelURL(
                (("s1", 26379),),
                "m",
                True,
                {
                    "db": 0,
                    "ssl_ca_certs": certifi.where(),
                    "ssl_check_hostname": True,
                    "ssl_cert_reqs": "optional",
                },
                {"ssl_ca_certs": certifi.where(), "ssl_check_hostname": True, "ssl_cert_reqs": "optional"},
            ),
        ),
    ],
)
def test_urls_that_work(load: Loader, url: str, parsed: SentinelURL) -> None:
    assert parse_sentinel_url(url) == parsed
    assert load(REDIS_URL=f" {url}\n").redis_url == url


@pytest.mark.parametrize("url", ["redis://h/0", "rediss://h", "unix:///s", "sentinel://h/m"])
def test_urls_of_one_server(url: str) -> None:
    assert not is_sentinel_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel", ""),
        ("redis+sentinel://", ""),
        ("redis+sentinel:///m", ""),
        ("redis+sentinel://s1", ""),
        ("redis+sentinel://s1/", ""),
        ("redis+sentinel://s1/0x/y", ""),
        ("redis+sentinel://s1/m/0/1", ""),
        ("redis+sentinel://s1/m/-1", ""),
        ("redis+sentinel://s1/m%20m", ""),
        ("redis+sentinel://s1/m#x", ""),
        ("redis+sentinel://s1,/m", ""),
        ("redis+sentinel://s1:0/m", ""),
        ("redis+sentinel://s1:99999/m", ""),
        ("redis+sentinel://s 1/m", ""),
        ("redis+sentinel://s1/m?socket_timeout=5", ": socket_timeout is not supported"),
        ("redis+sentinel://s1/m?ssl_ca_certs=/ca.pem", ": ssl_ca_certs: only with rediss+sentinel://"),
        ("rediss+sentinel://s1/m?ssl_ca_certs=", ": ssl_ca_certs is empty"),
        (
            "rediss+sentinel://s1/m?ssl_ca_certs=/no/such",
            ": [Errno 2] No such file or directory (from ssl_ca_certs)",
        ),
        (
            "rediss+sentinel://s1/m?ssl_cert_reqs=maybe",
            ": Invalid SSL Certificate Requirements Flag: maybe (from ssl_cert_reqs)",
        ),
    ],
)
def test_urls_that_are_refused(load: Loader, url: str, reason: str) -> None:
    assert load.message(REDIS_URL=url) == (
        f"The settings cannot be used:\n  REDIS_URL={url} is refused{reason}; accepted: {ACCEPTED}"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+sentinel://s1:port/m", "redis+sentinel://s1:***/m"),
        ("redis+sentinel://[::1/m", "redis+sentinel://[:***/m"),
        ("redis+sentinel://::1/m", "redis+sentinel://:***/m"),
        ("redis+sentinel://s1/m?sentinal_password=x", "redis+sentinel://s1/m?sentinal_password=***"),
    ],
)
def test_what_may_be_a_password_is_not_shown(load: Loader, url: str, shown: str) -> None:
    assert f"  REDIS_URL={shown} is refused" in load.message(REDIS_URL=url)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:hunter2@s1,s2:port/m",
        "redis+sentinel://user:hunter2@s1/m?x=1",
        "redis+sentinel://:pw@s1/m/x?sentinel_password=hunter2",
        "redis+sentinel://:pw@s1/m/x?sentinel_password=p@hunter2",
        "redis+sentinel://:pw@s1/m/x?sentinel_password=hunter2@q&sentinel_username=u",
        "redis+sentinel://:hunter2?password=x@s1/m/x",
    ],
)
def test_refused_passwords_are_not_shown(load: Loader, url: str) -> None:
    assert "hunter2" not in load.message(REDIS_URL=url)


def test_passwords_are_not_shown_when_printed(load: Loader) -> None:
    url = "redis+sentinel://:hunter2@s1/m?sentinel_password=hunter2"
    assert "hunter2" not in repr(parse_sentinel_url(url))
    assert "hunter2" not in repr(load(REDIS_URL=url))
