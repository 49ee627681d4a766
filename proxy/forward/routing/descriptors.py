"""How many file descriptors a config can need."""

from __future__ import annotations

from proxy.config.schema import Config
from proxy.core.process.descriptors import Need


def descriptors_needed(config: Config) -> Need:
    """The most descriptors that `config` can need: one for each client, each pooled connection and
    each health check, and a spool file for each client of an upstream with buffering."""
    clients = {name: listener.limits.connections for name, listener in config.listeners.items()}
    upstreams = sum(
        # A hosted application has the other end of each connection in this process too.
        (1 + (target.app is not None))
        * (upstream.pool.max_connections + (upstream.health is not None))
        for upstream in config.upstreams.values()
        for target in upstream.targets
    )
    buffered = {
        name
        for name, upstream in config.upstreams.items()
        if upstream.buffering.request or upstream.buffering.response
    }
    spooled = sum(
        clients[name]
        for name, listener in config.listeners.items()
        if any(route.upstream in buffered for route in listener.routes)
    )
    return Need(clients, upstreams + spooled)
