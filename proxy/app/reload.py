"""Reads the config again and swaps every plan at once, or changes nothing and reports why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from proxy.admin.backend import ReloadResult
from proxy.app.lifecycle import Lifecycle
from proxy.app.parts import Parts, buffer_limit
from proxy.config.problems import ConfigError
from proxy.config.schema import Config
from proxy.telemetry.logs.outputs import Output, open_output

logger = logging.getLogger(__name__)

#: Sections that a reload cannot change: stores and ports that outlive the plans.
_FIXED = ("redis", "mirrors", "admin", "metrics", "telemetry")

#: Sections about the app's metrics; their collectors are restarted together.
_APP_TELEMETRY = ("statsd", "app_metrics", "resources")


class Stopping(Exception):
    """The proxy is about to stop and accepts no orders."""


class Reload:
    """Reloads `file` with `load`."""

    def __init__(
        self, parts: Parts, lifecycle: Lifecycle, file: Path, load: Callable[[Path], Config]
    ) -> None:
        self._parts = parts
        self._lifecycle = lifecycle
        self._file = file
        self._load = load

    async def run(self) -> ReloadResult:
        """Exchanges in progress keep the plans they began with; connections stay open."""
        async with self._lifecycle.changing:
            try:
                self._refuse_while_stopping()
                config = await asyncio.to_thread(self._load, self._file)
                self._refuse_while_stopping()
                await self._swap(config)
            except Stopping as error:
                return ReloadResult(ok=False, problems=[str(error)], stopping=True)
            except ConfigError as error:
                problems = [str(problem) for problem in error.problems]
            except (OSError, RuntimeError) as error:
                problems = [f"{self._file}: {error}"]
            else:
                problems = []
            self._parts.metrics.reloaded(problems[0] if problems else None)
            self._parts.trace.proxy(
                "reload_refused" if problems else "reloaded",
                config=str(self._file),
                problems=problems or None,
            )
            if problems:
                logger.error("reload refused", extra={"problems": problems})
            else:
                logger.info("reloaded", extra={"config": str(self._file)})
            return ReloadResult(ok=not problems, problems=problems)

    def _refuse_while_stopping(self) -> None:
        """A reload now would open listeners whose requests are cut in a moment."""
        if self._lifecycle.draining:
            raise Stopping("the proxy is stopping and does not reload any more")

    async def _swap(self, config: Config) -> None:
        """Raises `OSError` before anything has changed when a socket or certificate is refused."""
        parts = self._parts
        self._refuse_fixed(config)
        config = parts.apps.place(config)
        in_force = {n: u for n, u in parts.config.upstreams.items() if u.breaker is not None}
        parts.breakers.reload({**config.upstreams, **in_force})  # so far it only adds
        try:
            connections = parts.fit_descriptors(config)
            plans = parts.compiler.compile(config, (parts.config, parts.plans), connections)
            await parts.start_probes(config)
            await parts.apps.start(config)
            change = await parts.sockets.prepare(config.listeners, plans.listeners)
        except (OSError, RuntimeError):
            parts.breakers.reload(parts.config.upstreams)
            parts.apps.keep(parts.config)
            raise
        try:
            output = self._new_output(config)
            await self._renew_app_telemetry(config)
        except OSError:
            parts.sockets.discard(change)
            parts.apps.keep(parts.config)
            parts.breakers.reload(parts.config.upstreams)
            raise
        # From here on nothing can fail, and the swap does not await: it is atomic for every
        # exchange.
        parts.sockets.make(change, config.listeners, plans.listeners)
        for upstream, plan in parts.plans.upstreams.items():
            if plans.upstreams.get(upstream) is not plan:
                plan.upstream.close()
        before_trace = parts.config.trace
        parts.config, parts.plans = config, plans
        parts.apps.keep(config)
        parts.breakers.reload(config.upstreams)
        parts.compiler.settle(config, plans)
        parts.memory.resize(buffer_limit(config))
        parts.spool.configure(config.spool.dir, config.spool.max_size)
        parts.check_spool(config)
        parts.logs.set_level(config.logging.level)
        if output is not None:
            parts.logs.redirect(output)
        await parts.watch.follow(config.upstreams, plans.upstreams)
        if config.trace != before_trace:
            await parts.trace.replace(config.trace)

    def _refuse_fixed(self, config: Config) -> None:
        for section in _FIXED:
            if getattr(config, section) != getattr(self._parts.config, section):
                raise OSError(
                    f"{section} cannot be changed by a reload: the parts that use it hold data"
                    " that must be written first. Restart the proxy"
                )

    def _new_output(self, config: Config) -> Output | None:
        """The log's new output; None if it has not changed. Raises `OSError`."""
        if config.logging.output == self._parts.config.logging.output:
            return None
        return open_output(config.logging.output)

    async def _renew_app_telemetry(self, config: Config) -> None:
        """Restart the collectors of the app's metrics if their settings have changed. Raises
        `OSError`; then they run with the old settings."""
        parts = self._parts
        if all(getattr(config, one) == getattr(parts.config, one) for one in _APP_TELEMETRY):
            return
        await parts.app_telemetry.stop()
        parts.app_telemetry.forget()
        parts.app_telemetry = parts.new_app_telemetry(config)
        try:
            parts.app_telemetry.start()
        except OSError:
            await parts.app_telemetry.stop()
            parts.app_telemetry.forget()
            parts.app_telemetry = parts.new_app_telemetry(parts.config)
            parts.app_telemetry.start()
            raise
