"""Redis URLs: every scheme, and refusals that never repeat a password."""

from __future__ import annotations

import pytest

from proxy.core.redis.url import RedisAddress, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://127.0.0.1", RedisAddress("single", False, (("127.0.0.1", 6379),))),
        (
            "rediss://me:a%40b@cache.example:6380/2",
            RedisAddress("single", True, (("cache.example", 6380),), None, None, 2, "me", "a@b"),
        ),
        ("redis://[::1]:7000/0", RedisAddress("single", False, (("::1", 7000),))),
        (
            "unix://:word@/run/redis.sock?db=3",
            RedisAddress("single", False, (), "/run/redis.sock", db=3, password="word"),
        ),
        (
            "redis+sentinel://:pw@s1,s2:26380/main/1?sentinel_password=x",
            RedisAddress(
                "sentinel",
                False,
                (("s1", 26379), ("s2", 26380)),
                None,
                "main",
                1,
                password="pw",
                sentinel_password="x",
            ),
        ),
        (
            "rediss+cluster://n1:7000,n2",
            RedisAddress("cluster", True, (("n1", 7000), ("n2", 6379))),
        ),
    ],
)
def test_every_scheme_is_read(url: str, address: RedisAddress) -> None:
    """Single, TLS, IPv6, unix socket, Sentinel and Cluster URLs come apart into their parts."""
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://:hunter2@h",
        "redis://:hunter2@h/zero",
        "redis://:hunter2@a,b/0",
        "redis://:hunter2@h:99999",
        "redis+sentinel://:hunter2@h",
        "redis+cluster://:hunter2@h/3",
        "unix://:hunter2@relative",
        "redis://:hunter2@h?dbb=1",
        "hunter2",
    ],
)
def test_refusals_say_what_was_expected_without_the_password(url: str) -> None:
    """A wrong URL is refused in the loader's form, and its password stays out of the message."""
    with pytest.raises(ValueError, match=r"expected .*, ") as caught:
        parse_redis_url(url)
    assert "hunter2" not in str(caught.value)


def test_an_address_shows_neither_user_nor_password() -> None:
    """`str` and `repr` of an address are fit for logs."""
    address = parse_redis_url("redis://u:hunter2@h:1/4")
    assert str(address) == "h:1/4"
    assert "hunter2" not in repr(address)
