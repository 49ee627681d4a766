"""Rules about addresses: each bound once, and no upstream that is the proxy itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from proxy.config.problems import Key, dotted
from proxy.config.rules.findings import Findings
from proxy.config.schema import Config
from proxy.config.units import Bind


def check_binds(config: Config, found: Findings) -> None:
    """Every address is bound once, and the admin is protected."""
    taken: list[tuple[Key, Bind]] = []
    for key, bind in _all_binds(config):
        for other_key, other in taken:
            if bind.overlaps(other):
                found.problem(key, "an address of its own", f"{bind} beside {dotted(other_key)}")
                break
        taken.append((key, bind))
    if not config.admin.bind.loopback and not found.given("admin", "token"):
        found.problem(
            ("admin", "bind"), "a loopback address, or a token beside it", str(config.admin.bind)
        )


def check_loops(config: Config, found: Findings) -> None:
    """A target that is one of our own listeners would send requests in a circle."""
    for name, upstream in config.upstreams.items():
        for index, target in enumerate(upstream.targets):
            for listener, settings in config.listeners.items():
                if target.host and _reaches(target.host, target.port, settings.bind):
                    found.problem(
                        ("upstreams", name, "targets", index),
                        "an address of the service itself",
                        f"{target}, where our own listener {listener} is bound",
                    )


def _reaches(host: str, port: int, bind: Bind) -> bool:
    """Whether a connection to `host` from this machine would arrive at `bind`."""
    if port != bind.port or port == 0:
        return False
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False  # a name: it may be another machine
    if not bind.host:
        return address.is_loopback or address.is_unspecified
    bound = ipaddress.ip_address(bind.host)
    same_kind = bound.version == address.version
    return bound == address or (bound.is_unspecified and same_kind and address.is_loopback)


def _all_binds(config: Config) -> Iterator[tuple[Key, Bind]]:
    for name, listener in config.listeners.items():
        yield ("listeners", name, "bind"), listener.bind
    yield ("admin", "bind"), config.admin.bind
    if config.metrics:
        yield ("metrics", "bind"), config.metrics.bind
