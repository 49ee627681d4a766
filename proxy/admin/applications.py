"""The aiohttp applications of the two ports: the admin API, and the read-only metrics port."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Protocol

from aiohttp import web

from proxy.admin.auth import Guard
from proxy.admin.backend import AdminBackend
from proxy.admin.endpoints.control import Control
from proxy.admin.endpoints.probes import Probes
from proxy.admin.json_exchange import BODY_LIMIT
from proxy.config.schema import Admin
from proxy.config.units import Bind


class EndpointGroup(Protocol):
    """A group of endpoints, such as `BreakerControl` and `JobControl`."""

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        ...


def admin_app(
    config: Admin, backend: AdminBackend, groups: Sequence[EndpointGroup] = ()
) -> web.Application:
    """The admin API: everything, protected by the token if one is set."""
    token = None if config.token is None else config.token.get_secret_value()
    mounted: list[EndpointGroup] = [Probes(backend), Control(backend), *groups]
    return _app(token, config.bind, config.hosts, mounted, backend)


def metrics_app(bind: Bind, backend: AdminBackend) -> web.Application:
    """The metrics port, read-only, for Prometheus and probes; needs no token."""
    return _app(None, bind, (), [Probes(backend)], backend)


def _app(
    token: str | None,
    bind: Bind,
    hosts: Collection[str],
    groups: Sequence[EndpointGroup],
    backend: AdminBackend,
) -> web.Application:
    guard = Guard(token, hosts if _is_loopback(bind) else None, lambda: backend.starting)
    app = web.Application(middlewares=[guard.middleware()], client_max_size=BODY_LIMIT)
    app.on_response_prepare.append(guard.mark)
    for group in groups:
        group.mount(app.router)
    return app


def _is_loopback(bind: Bind) -> bool:
    try:
        return ip_address(bind.host.partition("%")[0]).is_loopback
    except ValueError:
        return bind.host == "localhost"
