"""The two doors as aiohttp applications: the operator's, and the read-only one."""

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
    """Further endpoints, such as `BreakerControl` and `JobControl`."""

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add them."""
        ...


def admin_app(
    config: Admin, operated: AdminBackend, parts: Sequence[EndpointGroup] = ()
) -> web.Application:
    """The operator's door: everything, behind the token if there is one."""
    token = None if config.token is None else config.token.get_secret_value()
    mounted: list[EndpointGroup] = [Probes(operated), Control(operated), *parts]
    return _app(token, config.bind, config.hosts, mounted, operated)


def metrics_app(bind: Bind, operated: AdminBackend) -> web.Application:
    """The read-only door, for Prometheus and probes; needs no token."""
    return _app(None, bind, (), [Probes(operated)], operated)


def _app(
    token: str | None,
    bind: Bind,
    hosts: Collection[str],
    parts: Sequence[EndpointGroup],
    operated: AdminBackend,
) -> web.Application:
    guard = Guard(token, hosts if _is_loopback(bind) else None, lambda: operated.starting)
    app = web.Application(middlewares=[guard.middleware()], client_max_size=BODY_LIMIT)
    app.on_response_prepare.append(guard.mark)
    for part in parts:
        part.mount(app.router)
    return app


def _is_loopback(bind: Bind) -> bool:
    try:
        return ip_address(bind.host.partition("%")[0]).is_loopback
    except ValueError:
        return bind.host == "localhost"
