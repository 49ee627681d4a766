"""All mirrors of a config, as one thing to start, ask and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from prometheus_client import CollectorRegistry

from proxy.config.mirrors import Mirror as MirrorConfig
from proxy.core.clock import Clock
from proxy.core.vitals import Vitals
from proxy.jobs.context import discard_event
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.mirror import Mirror
from proxy.jobs.redis.connection import ClientFactory, RedisAccess


class Mirrors:
    """The mirrors by name. `await start()`, use, `await stop()`. `on_event(mirror, kind, facts)`
    receives their events of interest to an operator."""

    def __init__(
        self,
        settings: Mapping[str, MirrorConfig],
        factory: ClientFactory,
        registry: CollectorRegistry,
        clock: Clock,
        *,
        key_prefix: str = "",
        on_event: Callable[[str, str, dict[str, object]], None] | None = None,
        vitals: Vitals | None = None,
    ) -> None:
        metrics = JobMetrics(registry)
        self.by_name = {
            name: Mirror(
                name,
                one,
                RedisAccess(factory, key_prefix=key_prefix),
                metrics,
                clock,
                emit=partial(on_event, name) if on_event is not None else discard_event,
                vitals=vitals,
            )
            for name, one in settings.items()
        }

    async def start(self, patience: float = 1.0) -> None:
        """Open every store and wait until Redis has answered every mirror, or failed to, for at
        most `patience` seconds: creations are refused until then, and a proxy that reports ready
        should accept them."""
        mirrors = list(self.by_name.values())
        await asyncio.gather(*(mirror.start() for mirror in mirrors))
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.gather(*(mirror.first_contact() for mirror in mirrors))

    async def stop(self) -> None:
        """End all tasks and close every store."""
        await asyncio.gather(*(mirror.stop() for mirror in self.by_name.values()))

    def chosen(self, name: str | None) -> list[Mirror]:
        """The mirror of that name, or all for None. Raises `KeyError` for an unknown name."""
        return list(self.by_name.values()) if name is None else [self.by_name[name]]
