"""Ports for servers that are still to come."""

from __future__ import annotations

from proxy.redis_server import free_port


def test_no_port_is_given_twice() -> None:
    """Who asked before may not listen yet: five hundred askers get as many ports."""
    given = [free_port() for _ in range(500)]
    assert len(set(given)) == len(given)
    assert all(20_000 <= port < 32_768 for port in given)
