"""Durations, sizes, shares, times and addresses: what people write, read and written back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import units
from proxy.config.units import Bind, TargetAddress

READ: list[tuple[Callable[[object], object], object, object]] = [
    (units.parse_duration, "250ms", 0.25),
    (units.parse_duration, "2s", 2.0),
    (units.parse_duration, "1.5 m", 90.0),
    (units.parse_duration, "24h", 86400.0),
    (units.parse_duration, "1m30s", 90.0),
    (units.parse_duration, "1d 2h 3m 4s 5ms", 93784.005),
    (units.parse_duration, "7d", 604800.0),
    (units.parse_duration, "0", 0.0),
    (units.parse_duration, 0, 0.0),
    (units.parse_size, "50MiB", 52428800),
    (units.parse_size, "64Ki", 65536),
    (units.parse_size, "10MB", 10_000_000),
    (units.parse_size, "4096", 4096),
    (units.parse_size, 4096, 4096),
    (units.parse_ratio, "20%", 0.2),
    (units.parse_ratio, "0.2", 0.2),
    (units.parse_ratio, 1, 1.0),
    (units.parse_time_of_day, "03:00", (3, 0)),
    (units.parse_time_of_day, "23:59", (23, 59)),
    (units.parse_bind, "127.0.0.1:80", Bind("127.0.0.1", 80)),
    (units.parse_bind, "localhost:80", Bind("127.0.0.1", 80)),
    (units.parse_bind, "[::1]:0", Bind("::1", 0)),
    (units.parse_bind, ":8000", Bind("", 8000)),
    (units.parse_bind, "*:8000", Bind("", 8000)),
    (units.parse_listener_bind, ":8000", Bind("", 8000)),
    (units.parse_listener_bind, "fd:front-1.socket", Bind("", 0, "front-1.socket")),
    (units.parse_target, "http://app:8005", TargetAddress("http", "app", 8005)),
    (units.parse_target, "HTTPS://app/", TargetAddress("https", "app", 443)),
    (units.parse_target, "http://[::1]:1", TargetAddress("http", "::1", 1)),
    (units.parse_target, "aiohttp:a.b:c", TargetAddress("http", "", 0, app="a.b:c")),
    (units.parse_target, "unix:/run/a.sock", TargetAddress("http", "", 0, "/run/a.sock")),
]


@pytest.mark.parametrize(("parse", "written", "value"), READ)
def test_reads(parse: Callable[[object], object], written: object, value: object) -> None:
    """Every spelling that the documentation shows is understood."""
    assert parse(written) == value


REFUSED: list[tuple[Callable[[object], object], object]] = [
    *((units.parse_duration, bad) for bad in ("60", 60, True, "1w", "-1s", "", "s", "٣s", "9e9d")),
    *((units.parse_duration, bad) for bad in ("30s1m", "1m1m", "1.2.3s", ".s", "1m30")),
    (units.parse_duration, "99999999999d"),
    *((units.parse_size, bad) for bad in (-1, True, "1TB", "MB", "-5", 1.5, "9" * 30)),
    *((units.parse_ratio, bad) for bad in ("120%", "-1", 2, True, "half", None)),
    *((units.parse_time_of_day, bad) for bad in ("24:00", "3:00", 180, "03:60", None)),
    *(
        (units.parse_listener_bind, bad)
        for bad in ("fd:", "fd:a:b", "fd:a b", "fd:3\n", "fd", None)
    ),
    (units.parse_bind, "fd:front"),
    *((units.parse_bind, bad) for bad in ("8000", "example.org:80", "1.2.3:80", "::1:80")),
    *((units.parse_bind, bad) for bad in ("127.0.0.1:65536", "[127.0.0.1]:80", None, 80)),
    *((units.parse_target, bad) for bad in ("app:80", "http://a/path", "http://u:p@a", "unix:a")),
    *((units.parse_target, bad) for bad in ("aiohttp:a", "aiohttp:a:b:c", "aiohttp:a/b:c")),
    *((units.parse_target, bad) for bad in ("http://a:0", "http://a:65536", "unix:/a\0b", None)),
]


@pytest.mark.parametrize(("parse", "written"), REFUSED)
def test_refuses(parse: Callable[[object], object], written: object) -> None:
    """What cannot be understood without guessing is refused, with the form that is wanted."""
    with pytest.raises(ValueError, match=r"^expected .*, found "):
        parse(written)


@given(st.integers(0, 36_525 * 86_400_000))
def test_a_duration_survives_being_written(milliseconds: int) -> None:
    """Whatever duration is formatted is read back as the same number of seconds."""
    seconds = milliseconds / 1000
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds)


@given(st.integers(0, 2**50))
def test_a_size_survives_being_written(size: int) -> None:
    """Whatever size is formatted is read back to the byte."""
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.25, "250ms"), (2, "2s"), (90, "90s"), (600, "10m"), (86400, "1d")],
)
def test_durations_are_written_in_the_largest_whole_unit(seconds: float, written: str) -> None:
    """Shown durations look as a person would write them."""
    assert units.format_duration(seconds) == written


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        (":80", "[::1]:80", True),
        ("0.0.0.0:80", "[::]:80", False),
        ("[::]:80", "[::1]:80", True),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_which_addresses_clash(first: str, second: str, clash: bool) -> None:
    """Two addresses clash where the kernel would refuse the second."""
    one, other = units.parse_bind(first), units.parse_bind(second)
    assert one.overlaps(other) is other.overlaps(one) is clash


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("hunter2", "***"),
        ("redis://me:pw@host:6379/0?password=x", "redis://***@host:6379/0"),
        ("redis://host/0", "redis://host/0"),
        ("redis://me:p/w@host/0", "redis://***@host/0"),
    ],
)
def test_a_masked_secret_shows_nothing_secret(secret: str, shown: str) -> None:
    """Of a URL the address stays, of any other secret nothing."""
    assert units.mask(secret) == shown
