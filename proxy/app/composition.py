"""The running proxy: its parts, its life, and what others see of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from proxy.admin.backend import Readiness, ReloadResult
from proxy.app.lifecycle import CannotStart, Lifecycle
from proxy.app.parts import Parts
from proxy.app.readiness import readiness
from proxy.app.reload import Reload
from proxy.app.upgrade import Upgrade
from proxy.config.load import load_config
from proxy.config.redact import redacted
from proxy.config.schema import Config
from proxy.config.units import Bind
from proxy.core.process.handover import Predecessor
from proxy.core.vitals import Vitals
from proxy.server.listening import Given
from proxy.telemetry.logs.setup import LogControl
from proxy.telemetry.metrics.registry import Metrics

__all__ = ["CannotStart", "Proxy"]


class Proxy:
    """A proxy built from `config`, which was read from `file`; a reload reads that file again with
    `load`. `given` are listening sockets that the process was given."""

    def __init__(
        self,
        file: Path,
        config: Config,
        logs: LogControl,
        load: Callable[[Path], Config] = load_config,
        *,
        given: Given | None = None,
    ) -> None:
        self._parts = Parts(config, logs, given or Given(), self)
        self._lifecycle = Lifecycle(self._parts)
        self._reload = Reload(self._parts, self._lifecycle, file, load)
        self._upgrade = Upgrade(self._parts, self._lifecycle)
        #: Called with the pid of a successor that serves: this process should drain. None: the
        #: proxy does not own its process, which therefore cannot be replaced.
        self.on_handed_over: Callable[[int], None] | None = None

    # --- life ---------------------------------------------------------------------------------

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Open everything, as `Lifecycle.start` describes. Raises `CannotStart`."""
        await self._lifecycle.start(predecessor)

    async def drain(self) -> None:
        """Accept nothing new and let exchanges in progress end, for `drain_timeout` at most."""
        await self._lifecycle.drain()

    async def stop(self) -> None:
        """Close everything at once."""
        await self._lifecycle.stop()

    async def reload(self) -> ReloadResult:
        """Read the file again and swap every plan at once, or change nothing and report why."""
        return await self._reload.run()

    async def upgrade(self) -> int:
        """Hand everything over to a new process of the program on disk, and return its pid. Raises
        `HandoverFailed` if that fails: then nothing has changed."""
        return await self._upgrade.run(self.on_handed_over)

    def taken_over(self) -> list[str]:
        """The labels of the sockets of a predecessor that serve here."""
        return self._parts.given.taken

    # --- what an embedding program sees --------------------------------------------------------

    @property
    def admin_addresses(self) -> list[Bind]:
        """Where the admin listens, followed by the metrics port if there is one."""
        return self._parts.admin.addresses

    def listener_urls(self) -> dict[str, str]:
        """Where each listener can be reached: `http://HOST:PORT`, or `https`."""
        listeners = self._parts.config.listeners
        return {
            name: f"{'https' if listeners[name].tls else 'http'}://{addresses[0]}"
            for name, addresses in self._parts.sockets.addresses().items()
        }

    # --- what the admin sees (`admin.backend`) -------------------------------------------------

    @property
    def metrics(self) -> Metrics:
        """The metrics of this proxy."""
        return self._parts.metrics

    @property
    def vitals(self) -> Vitals:
        """Its background tasks, shortages and clock skews."""
        return self._parts.vitals

    def live(self) -> bool:
        """Always: while this can be called, the event loop runs."""
        return True

    @property
    def starting(self) -> bool:
        """Whether some part cannot be asked yet."""
        return bool(self._lifecycle.starting)

    def readiness(self) -> Readiness:
        """Ready while started and not draining."""
        return readiness(self._parts, self._lifecycle)

    def config(self) -> dict[str, object]:
        """The config in force, secrets redacted."""
        return redacted(self._parts.config)

    def routes(self) -> list[dict[str, object]]:
        """Every route in matching order, with the addresses of its listener."""
        config = self._parts.config
        addresses = self._parts.sockets.addresses()
        return [
            {
                "listener": name,
                "addresses": addresses.get(name, []),
                "direction": listener.direction,
                "route": route.name,
                "methods": list(route.methods) if route.methods else None,
                "path": route.path,
                "upstream": route.upstream,
                "targets": [str(t) for t in config.upstreams[route.upstream].targets],
            }
            for name, listener in config.listeners.items()
            for route in listener.routes
        ]

    def upstream_names(self) -> list[str]:
        """Every upstream, in the config's order."""
        return list(self._parts.config.upstreams)

    def log_level(self) -> str:
        """The level in force."""
        return self._parts.logs.level

    def set_log_level(self, level: str) -> None:
        """Change the level until the next reload."""
        self._parts.logs.set_level(level)
