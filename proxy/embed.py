"""The proxy inside another program or a test: `async with ReliabilityProxy(config) as proxy`.

It is the complete proxy, on the running event loop. It installs no signal handlers and leaves the
program's logging alone, so that several can run side by side in one process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from proxy.app.composition import CannotStart, Proxy
from proxy.app.hosted import HostedApp, SocketDirectory, host
from proxy.config.listeners import Listener
from proxy.config.load import load_source
from proxy.config.mirrors import Mirror
from proxy.config.problems import ConfigError
from proxy.config.schema import Admin, Config, Metrics, Trace
from proxy.config.units import Bind, parse_target
from proxy.telemetry.logs.embedded import EmbeddedLogs

if TYPE_CHECKING:
    from aiohttp.test_utils import BaseTestServer

__all__ = ["CannotReload", "CannotStart", "ConfigError", "ReliabilityProxy"]

Source = Config | Mapping[str, object] | str | os.PathLike[str]

#: Wildcard addresses, and the loopback address to use instead.
_LOOPBACK = {"//0.0.0.0:": "//127.0.0.1:", "//[::]:": "//[::1]:", "//:": "//127.0.0.1:"}


Bound = TypeVar("Bound", Listener, Admin, Metrics)
Stored = TypeVar("Stored", Mirror, Trace)


class CannotReload(Exception):
    """The new config was refused; the proxy keeps the old one."""


class ReliabilityProxy:
    """A proxy, started by `async with` or `start`, ended by `stop`.

    `config` is a `Config`, a mapping with the keys of the config file, or the path of one.
    `overrides` are merged into a mapping or file (mappings key by key, other values as a whole), so
    that a test can start from the production config. `apps` replace the targets of the upstreams
    they are given for, and are served on private unix sockets: an `aiohttp.web.Application`, an
    ASGI application (needs uvicorn), a function without parameters that makes one, the URL of a
    service that runs elsewhere, or None for a service that refuses connections.
    `free_ports`: listeners, admin and metrics get free ports, whatever the config says. Port 0 is
    always a free port, and so is the admin's if the config does not mention it. Relative names of
    SQLite files start at `directory`, by default the current directory. `environ` fills in
    `${NAME}`, by default `os.environ`.
    """

    def __init__(
        self,
        config: Source,
        overrides: Mapping[str, object] | None = None,
        *,
        apps: Mapping[str, object] | None = None,
        free_ports: bool = False,
        directory: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._source = config
        self._overrides = overrides
        self._apps = dict(apps or {})
        self._free_ports = free_ports
        self._environ = environ
        self._proxy: Proxy | None = None
        self._starting = False
        self._hosted: list[HostedApp] = []
        self._directory = directory
        self._sockets: SocketDirectory | None = None
        self._targets: dict[str, str] = {}

    async def __aenter__(self) -> ReliabilityProxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop(drain=error is None)

    async def start(self) -> None:
        """Start the `apps`, then the proxy. Raises `ConfigError` with every problem of the config,
        `CannotStart` when the machine refuses, and what the start-up of an app raises. Nothing is
        left open then."""
        if self._proxy is not None or self._starting:
            raise RuntimeError("the proxy has been started already")
        self._starting = True
        try:
            await self._start_apps()
            config = self._load()
            logs = EmbeddedLogs(config.logging.level)
            proxy = Proxy(_name(self._source), config, logs, load=lambda _: self._load())
            await proxy.start()
        except BaseException:
            await self._stop_apps()
            raise
        finally:
            self._starting = False
        self._proxy = proxy

    async def stop(self, *, drain: bool = True) -> None:
        """Stop it and its apps. With `drain`, requests in progress have `drain_timeout` to end."""
        proxy, self._proxy = self._proxy, None
        if proxy is None:
            return
        try:
            if drain:
                await proxy.drain()
        finally:
            try:
                await proxy.stop()
            finally:
                await self._stop_apps()

    async def reload(
        self, config: Source | None = None, overrides: Mapping[str, object] | None = None
    ) -> None:
        """Swap the config as SIGHUP does, completely or not at all. Without arguments, the source
        is read again. Raises `CannotReload` with the reason."""
        proxy, before = self._running, (self._source, self._overrides)
        if config is not None:
            self._source, self._overrides = config, overrides
        elif overrides is not None:
            self._overrides = overrides
        result = await proxy.reload()
        if not result.ok:
            self._source, self._overrides = before
            raise CannotReload("\n".join(result.problems))

    def url(self, listener: str, path: str = "") -> str:
        """Where a client on this machine reaches a listener: `http://127.0.0.1:PORT` and `path`.
        Raises `KeyError` with the names of all listeners."""
        urls = self._running.listener_urls()
        if listener not in urls:
            raise KeyError(f"no listener {listener!r}; there are {', '.join(urls)}")
        return _reachable(urls[listener]) + path

    @property
    def admin_url(self) -> str:
        """The base URL of the admin API: `/readyz`, `/metrics`, `/api/breakers`."""
        return _reachable(f"http://{self._running.admin_addresses[0]}")

    def test_server(self, listener: str) -> BaseTestServer:
        """A listener as a server for aiohttp's test client:
        `TestClient(proxy.test_server("ingress"))`, or `await
        aiohttp_client(proxy.test_server("ingress"))` with pytest-aiohttp."""
        from proxy.app.test_client import ListenerServer

        return ListenerServer(self.url(listener))

    @property
    def _running(self) -> Proxy:
        if self._proxy is None:
            raise RuntimeError("the proxy is not running: use `async with`, or `await start()`")
        return self._proxy

    # --- config -------------------------------------------------------------------------------

    def _load(self) -> Config:
        """Raises `ConfigError`."""
        if isinstance(self._source, Config):
            if self._overrides:
                raise TypeError("overrides need a mapping or a file, not a Config")
            return self._placed(_with_targets(self._source, self._targets))
        environ = os.environ if self._environ is None else self._environ
        source = self._source if isinstance(self._source, Mapping) else Path(self._source)
        return self._placed(load_source(source, self._overrides, environ, self._targets))

    def _placed(self, config: Config) -> Config:
        """The config with free ports and the directory applied, if requested."""
        changes: dict[str, object] = {}
        if self._free_ports or "admin" not in config.model_fields_set:
            changes["admin"] = _freed(config.admin)
        if self._free_ports:
            changes["listeners"] = {name: _freed(one) for name, one in config.listeners.items()}
            if config.metrics is not None:
                changes["metrics"] = _freed(config.metrics)
        if self._directory is not None:
            changes["mirrors"] = {
                name: _moved(mirror, self._directory) for name, mirror in config.mirrors.items()
            }
            if config.trace is not None:
                changes["trace"] = _moved(config.trace, self._directory)
        return config.model_copy(update=changes)

    # --- apps ---------------------------------------------------------------------------------

    async def _start_apps(self) -> None:
        self._targets = {}
        for upstream, app in self._apps.items():
            if isinstance(app, str):
                self._targets[upstream] = app
                continue
            if self._sockets is None:
                self._sockets = SocketDirectory()
            path = self._sockets.new()
            self._hosted.append(await host(app, path))
            self._targets[upstream] = f"unix:{path}"

    async def _stop_apps(self) -> None:
        while self._hosted:
            await self._hosted.pop().stop()
        if self._sockets is not None:
            self._sockets.remove()
            self._sockets = None


def _name(source: Source) -> Path:
    """The name of the config in messages."""
    return Path("<config>") if isinstance(source, Config | Mapping) else Path(source)


def _reachable(url: str) -> str:
    """The URL as a client on this machine can reach it."""
    for anywhere, here in _LOOPBACK.items():
        url = url.replace(anywhere, here)
    return url


def _freed(section: Bound) -> Bound:
    """The section on the same host, at a port that the kernel chooses."""
    return section.model_copy(update={"bind": Bind(section.bind.host, 0)})


def _moved(section: Stored, directory: Path) -> Stored:
    """The section with its SQLite file in `directory`, unless its name is absolute."""
    return section.model_copy(update={"sqlite": directory / section.sqlite})


def _with_targets(config: Config, targets: Mapping[str, str]) -> Config:
    upstreams = dict(config.upstreams)
    for name, target in targets.items():
        if name not in upstreams:
            raise KeyError(f"no upstream {name!r}; there are {', '.join(upstreams)}")
        upstreams[name] = upstreams[name].model_copy(update={"targets": (parse_target(target),)})
    return config.model_copy(update={"upstreams": upstreams})
