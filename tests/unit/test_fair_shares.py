"""Token buckets, who counts as one client, and a table that a flood of addresses does not move."""

from __future__ import annotations

import logging
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.listeners import PerClient
from proxy.config.units import parse_rate
from proxy.core.errors import TooManyRequests
from proxy.forward.routing.client_shares import ClientShares, client_key, forwarded_client
from proxy.forward.routing.gateway_hint import GatewayHint
from proxy.resilience.rate_limit import TokenBucket

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ff::/48"))


def client(address: str) -> Any:
    """A connection, as far as the shares look at it."""
    return SimpleNamespace(host_ip=address, share=None)


def head(*forwarded: str) -> Any:
    """A request head with these `X-Forwarded-For` lines."""
    lines = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    return SimpleNamespace(forwarded=lines or None)


def shares(most: int = 1000, **rules: Any) -> ClientShares:
    """The clients of a listener."""
    return ClientShares("front", PerClient.model_validate(rules), PROXIES, most=most)


def asks(table: ClientShares, address: str, now: float, *forwarded: str) -> bool:
    """Whether one request of a new connection is admitted; the connection ends."""
    connection = client(address)
    try:
        table.admit(connection, head(*forwarded), now)
    except TooManyRequests:
        return False
    finally:
        table.disconnect(connection)
    return True


# --- buckets ------------------------------------------------------------------------------------


@given(
    st.integers(1, 100),
    st.integers(1, 100),
    st.lists(st.floats(0, 10, allow_nan=False), max_size=300),
)
def test_a_bucket_gives_no_more_than_its_rate(rate: int, burst: int, moments: list[float]) -> None:
    """In any stretch of time: the burst, and what came in meanwhile; whatever the clock does."""
    bucket = TokenBucket(rate, burst)
    given_at = [now for now in moments if bucket.take(now)]
    assert len(given_at) <= burst + 10 * rate + 1
    assert 0 <= bucket.tokens(10) <= burst


def test_a_bucket_says_when_to_come_back() -> None:
    """Exactly as long as it takes for one token; asking in vain costs nothing."""
    bucket = TokenBucket(2.0, 1.0)
    assert bucket.take(5.0)
    for _ in range(3):
        assert not bucket.take(5.0)
        assert bucket.wait(5.0) == 0.5
    assert not bucket.full(5.4)
    assert bucket.take(5.5)
    assert bucket.full(6.0)
    assert bucket.wait(6.0) == 0


@pytest.mark.parametrize(("burst", "left"), [(5, 0), (8, 2), (20, 14), (1, 0)])
def test_new_rules_forgive_nothing(burst: int, left: int) -> None:
    """Six of ten are spent; under another burst six are still spent."""
    bucket = TokenBucket(1, 10)
    for _ in range(6):
        assert bucket.take(0)
    bucket.configure(1, burst)
    assert bucket.tokens(0) == left


# --- who is one client --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("2001:db8::", "32.1.13.184", False),
    ],
)
def test_one_client(one: str, other: str, same: bool) -> None:
    """An IPv4 address, mapped or not; of IPv6 the /64."""
    assert (client_key(one) == client_key(other)) is same
    assert client_key(one) is not None


@pytest.mark.parametrize("address", ["", "unix", "unknown", "1.2.3", "1.2.3.4:5"])
def test_no_address(address: str) -> None:
    """A unix socket has none."""
    assert client_key(address) is None


@pytest.mark.parametrize(
    ("peer", "chain", "found"),
    [
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1, 10.9.9.9"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ['"[2001:db8::1]"'], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["192.0.2.1, 2001:db8:ff::9, ::ffff:10.1.1.1"], "192.0.2.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["192.0.2.1,"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1" + ", 10.0.0.2" * 1000], "10.0.0.2"),
        ("10.0.0.1", ["\xff\x00"], "10.0.0.1"),
        ("192.0.2.7", ["6.6.6.6"], "6.6.6.6"),  # asked only about trusted peers
    ],
)
def test_the_client_behind_proxies(peer: str, chain: list[str], found: str) -> None:
    """The right-most address that is no trusted proxy; nothing that a client can write changes
    it."""
    assert forwarded_client(peer, [one.encode("latin-1") for one in chain], PROXIES) == found


def test_an_address_from_a_stranger_is_not_believed() -> None:
    """A client that is no proxy cannot escape its share, nor spend another's, by naming others."""
    table = shares(requests="2/s")
    assert asks(table, "192.0.2.1", 0, "1.1.1.1")
    assert asks(table, "192.0.2.1", 0, "2.2.2.2")
    assert not asks(table, "192.0.2.1", 0, "3.3.3.3")
    assert asks(table, "1.1.1.1", 0)
    for number in range(4):
        assert asks(table, "10.0.0.1", 0, f"192.0.2.{50 + number}")
        assert asks(table, "10.0.0.1", 0, f"9.9.9.9, 192.0.2.{50 + number}")
        assert not asks(table, "10.0.0.1", 0, f"8.8.8.8, 192.0.2.{50 + number}")


def test_a_unix_socket_is_not_limited() -> None:
    """There is no address to count by, and none is taken from a field."""
    table = shares(requests="1/s", connections=1, uploads=1)
    for _ in range(5):
        connection = client("")
        assert table.connect(connection, 0) is None
        assert table.take(connection, 0)
        assert table.admit(connection, head("192.0.2.1"), 0) is None
        table.disconnect(connection)
    assert len(table) == 0


# --- what is refused ----------------------------------------------------------------------------


def test_requests_come_back_with_time() -> None:
    """Both ways of asking count in one bucket, and the refusal says all there is to say."""
    table = shares(requests="10/s", burst=4)
    one = client("192.0.2.1")
    assert [table.take(one, 0) for _ in range(3)] == [True] * 3
    table.admit(one, head(), 0)
    assert not table.take(one, 0)
    with pytest.raises(TooManyRequests) as refused:
        table.admit(one, head(), 0)
    assert refused.value.rate_limit == ('"requests";q=10;w=1', '"requests";r=0;t=1')
    assert (refused.value.reason, refused.value.facts["limit"]) == ("client_requests", "10/s")
    assert refused.value.retry_after == pytest.approx(0.1)
    assert table.take(one, 0.1)
    assert table.refused == {"client_requests": 1}


def test_connections_of_one_client() -> None:
    """The third is refused until one of the others has gone; a trusted proxy may have more."""
    table = shares(connections=2)
    first, second, third = client("192.0.2.1"), client("192.0.2.1"), client("::ffff:192.0.2.1")
    assert table.connect(first, 0) is None
    assert table.connect(second, 0) is None
    refusal = table.connect(third, 0)
    assert refusal is not None
    assert refusal.close
    assert table.connect(client("192.0.2.2"), 0) is None
    for _ in range(5):
        assert table.connect(client("10.1.2.3"), 0) is None
    table.disconnect(third)
    table.disconnect(third)
    table.disconnect(first)
    assert table.connect(client("192.0.2.1"), 0) is None


def test_uploads_of_one_client() -> None:
    """Two at a time, of whatever connections."""
    table = shares(uploads=2)
    share = table.admit(client("192.0.2.1"), head(), 0)
    assert share is not None
    table.begin_upload(share)
    table.begin_upload(share)
    with pytest.raises(TooManyRequests, match="limited to 2 at a time"):
        table.begin_upload(share)
    table.end_upload(share)
    table.begin_upload(share)


def test_a_reload_keeps_the_buckets() -> None:
    """New rules hold for clients that are known; what they have spent stays spent."""
    table = shares(requests="10/s", connections=1)
    one = client("192.0.2.1")
    table.connect(one, 0)
    for _ in range(10):
        assert table.take(one, 0)
    table.configure(PerClient.model_validate({"requests": "12/s", "connections": 2}), ())
    assert [table.take(one, 0) for _ in range(3)] == [True, True, False]
    assert table.connect(client("192.0.2.1"), 0) is None
    assert table.connect(client("192.0.2.1"), 0) is not None


def test_a_connection_may_change_its_listener() -> None:
    """After a reload that renamed the listener a connection counts there, and there alone."""
    old, new = shares(connections=5), shares(requests="1/s")
    one = client("192.0.2.1")
    old.connect(one, 0)
    before = one.share
    assert new.take(one, 0)
    assert not new.take(one, 0)
    assert (before.connections, one.share.connections) == (0, 1)
    ClientShares.disconnect(one)
    assert one.share is None


# --- the table ----------------------------------------------------------------------------------


def test_a_flood_of_addresses_moves_nobody() -> None:
    """Of a full table nobody's debt is thrown out; memory does not grow; others are counted by
    network; and when the flood is over, all is forgotten."""
    table = shares(most=100, requests="10/m", connections=3)
    assert [asks(table, "192.0.2.1", 0) for _ in range(11)] == [True] * 10 + [False]
    kept = client("198.51.100.1")
    table.connect(kept, 0)
    admitted = 0
    for number in range(50_000):
        one, two = divmod(number, 256)
        admitted += asks(table, f"100.{64 + one // 256}.{one % 256}.{two}", 1)
    assert len(table) == 100
    assert table.crowded > 0
    assert len(cast(Any, table)._networks) <= 1024
    assert admitted <= 100 + 1024 * 10
    assert not asks(table, "192.0.2.1", 1)  # its debt is known still
    assert kept.share.connections == 1
    for number in range(200):  # a minute later nobody owes anything
        asks(table, f"203.0.113.{number}", 120 + number * 60)
    assert len(table) <= 4


def test_who_has_nothing_and_owes_nothing_is_forgotten() -> None:
    """Without a flood, the table holds about those who came in the last bucketful."""
    table = shares(requests="50/s", connections=10)
    for number in range(10_000):
        assert asks(table, f"10.{number % 200}.{number // 200}.1", number / 100)
    assert len(table) < 50


# --- gateways -----------------------------------------------------------------------------------


def receive(hint: GatewayHint, now: float, *, forwarded: int, plain: int, rest: int = 0) -> None:
    """Requests at `now`: of a gateway, without the field, of many others with it."""
    hint.requests += plain
    for number in range(forwarded):
        hint.requests += 1
        hint.forwarded("192.0.2.1", now)
        if number < rest:
            hint.requests += 1
            hint.forwarded(f"198.51.100.{number % 250}", now)


@pytest.mark.parametrize(
    ("traffic", "found"),
    [
        ({"forwarded": 300, "plain": 10}, True),
        ({"forwarded": 100, "plain": 10}, False),  # too few to say anything
        ({"forwarded": 300, "plain": 100}, False),
        ({"forwarded": 300, "plain": 0, "rest": 20}, True),
        ({"forwarded": 300, "plain": 0, "rest": 200}, False),
    ],
)
def test_a_gateway_that_nobody_has_named(
    traffic: dict[str, int], found: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nine of ten requests of a minute, with the field, from one address: one warning."""
    caplog.set_level(logging.WARNING, "proxy.clients")
    hint = GatewayHint("front")
    for minute in range(4):
        receive(hint, minute * 61.0, **traffic)
    assert (hint.gateway == "192.0.2.1") is found
    assert len(caplog.records) == found


def test_a_gateway_that_is_gone() -> None:
    """When others call, nothing is said of it any more."""
    hint = GatewayHint("front")
    receive(hint, 0, forwarded=300, plain=0)
    receive(hint, 61, forwarded=1, plain=0)
    assert hint.gateway == "192.0.2.1"
    hint.requests += 500
    receive(hint, 122, forwarded=1, plain=0)
    assert hint.gateway is None


# --- the config ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["50/s", "600/m", "1000/h"])
def test_rates_as_people_write_them(text: str) -> None:
    """What is read is shown alike."""
    assert str(parse_rate(text)) == text
    assert str(parse_rate(text.replace("/", " / "))) == text


@pytest.mark.parametrize(
    "bad", ["50", "0/s", "1.5/s", "50/d", "-1/s", "", 50, None, "9999999999/s"]
)
def test_what_is_no_rate(bad: object) -> None:
    """Refused with an example."""
    with pytest.raises(ValueError, match="expected a rate such as 50/s"):
        parse_rate(bad)
