"""Runs every rule."""

from __future__ import annotations

from proxy.config.rules.addresses import check_binds, check_loops
from proxy.config.rules.findings import Findings
from proxy.config.rules.routes import check_listener
from proxy.config.rules.stores import check_stores
from proxy.config.rules.telemetry import check_telemetry
from proxy.config.rules.upstreams import check_unused, check_upstream
from proxy.config.schema import Config


def check(config: Config, found: Findings) -> None:
    """Reports to `found` whatever is wrong or looks unintended."""
    check_binds(config, found)
    for name, listener in config.listeners.items():
        check_listener(("listeners", name), listener, found)
    for name, upstream in config.upstreams.items():
        check_upstream(("upstreams", name), upstream, found)
    check_loops(config, found)
    check_unused(config, found)
    check_stores(config, found)
    if found.given("spool", "dir") and not config.spool.dir.is_dir():
        found.warn(("spool", "dir"), "no such directory here: bodies would not wait, but stream")
    check_telemetry(config, found)
