"""Start, drain and stop.

A start goes: config, plans, admin, stores, listeners. A stop goes the other way. The admin is up
while anything else is, so that `/readyz` can answer 503 during a start and a drain.
"""

from __future__ import annotations

import asyncio
import logging

from proxy.app.parts import Parts
from proxy.core.process.handover import HandoverFailed, Predecessor

logger = logging.getLogger(__name__)

#: Seconds that the mirrors wait for Redis after a handover. Until it answers, job creations would
#: be refused; callers are better off waiting in the kernel's queue.
HANDOVER_PATIENCE = 5.0


class CannotStart(Exception):
    """The config is right but the machine refuses: a port in use, a file that cannot be opened."""


class Lifecycle:
    """Starts, drains and stops the parts.

    `starting` names what is being started and is empty once everything is; `draining` is set for
    good by a drain, a stop or a handover; `handed_over`: the stores belong to a successor.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.starting = "plans"
        self.draining = False
        self.handed_over = False
        #: Held by a reload or an upgrade: one at a time.
        self.changing = asyncio.Lock()

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Open everything. The admin ports come first and answer "starting" until the rest is open.

        With a predecessor they come last, because it still answers there, and the stores are opened
        only after it has closed them. Raises `CannotStart`; nothing is left open then, nor when
        the start is cancelled."""
        try:
            await self._start(predecessor)
        except (OSError, RuntimeError, HandoverFailed) as error:
            await self.stop()
            reason = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = f"{self.starting} did not start in time: {reason}"
            raise CannotStart(reason) from error
        except asyncio.CancelledError:
            await self.stop()
            raise
        self.starting = ""
        for name, addresses in self._parts.sockets.addresses().items():
            logger.info("listening", extra={"listener": name, "addresses": addresses})

    async def _start(self, predecessor: Predecessor | None) -> None:
        """Raises `OSError`, `RuntimeError`; `starting` names the part that failed."""
        parts = self._parts
        config = parts.config
        connections = parts.fit_descriptors(config)
        parts.plans = parts.compiler.compile(config, connections=connections)
        parts.compiler.settle(config, parts.plans)
        parts.sweeper.start()
        parts.loop_lag.start()
        parts.shedding.start()
        parts.shortages.start()
        parts.volumes.start()
        if predecessor is None:
            self.starting = "admin"
            await parts.admin.start(config)
        self.starting = "upload probes"
        await parts.start_probes(config)
        parts.check_spool(config)
        self.starting = "spans"
        if parts.otlp is not None:
            parts.otlp.start()
        self.starting = "breakers"
        await parts.breakers.start()
        self.starting = "applications"
        await parts.apps.start(config)
        await parts.watch.follow(config.upstreams, parts.plans.upstreams)
        if predecessor is not None:
            self.starting = "handover"
            await predecessor.yours()
            await self.start_writers(HANDOVER_PATIENCE)
        else:
            await self.start_writers()
        self.starting = "listeners"
        listeners, plans = config.listeners, parts.plans.listeners
        parts.sockets.make(await parts.sockets.prepare(listeners, plans), listeners, plans)
        if predecessor is not None:
            self.starting = "admin"
            await parts.admin.start(config)
        parts.given.close_rest()
        await parts.status.start()

    async def start_writers(self, patience: float = 1.0) -> None:
        """Start whatever only one process may own at a time: stores, leases, statsd's addresses.
        Redis has `patience` seconds to answer. Raises `OSError`."""
        parts = self._parts
        self.starting = "statsd, app metrics and resources"
        parts.app_telemetry.start()
        self.starting = "trace"
        await parts.trace.start()
        self.starting = "mirrors"
        await parts.mirrors.start(patience)
        await parts.idempotency.start()

    async def stop_writers(self) -> None:
        """Stop what `start_writers` has started."""
        parts = self._parts
        await parts.idempotency.stop()
        await parts.mirrors.stop()
        await parts.trace.stop()
        await parts.app_telemetry.stop()

    async def drain(self) -> None:
        """Accept nothing new and let exchanges in progress end, for `drain_timeout` at most."""
        self.draining = True
        limit = self._parts.config.drain_timeout
        logger.info("draining", extra={"limit_s": limit})
        await self._parts.sockets.drain(limit)

    async def stop(self) -> None:
        """Close everything at once."""
        parts = self._parts
        self.draining = True
        await parts.sockets.stop()
        await parts.extensions.stop()
        for plan in parts.plans.upstreams.values():
            plan.upstream.close()
            await plan.upstream.wait_closed()
        if not self.handed_over:
            await parts.idempotency.stop()
            await parts.mirrors.stop()
        await parts.breakers.stop()
        await parts.probes.stop()
        await parts.watch.stop()
        await parts.apps.stop()
        await parts.status.stop()
        await parts.admin.stop()
        if not self.handed_over:
            await parts.trace.stop()
            await parts.app_telemetry.stop()
        if parts.otlp is not None:
            await asyncio.to_thread(parts.otlp.stop)
        parts.shedding.stop()
        parts.volumes.stop()
        await parts.loop_lag.stop()
        await parts.shortages.stop()
        parts.sweeper.stop()
