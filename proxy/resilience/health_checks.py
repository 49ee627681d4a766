"""Active health checks: probes each target of an upstream and records the results.

Each check is a small GET on its own connection. That shows that the target accepts new connections,
and never competes for pooled ones.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol

from proxy.config.units import TargetAddress
from proxy.config.upstreams import Health as HealthRules
from proxy.core.clock import Clock, SystemClock
from proxy.core.tasks import Supervised
from proxy.core.vitals import Vitals
from proxy.resilience.outlier_ejection import TargetHealth

_log = logging.getLogger("proxy.health")


class Target(Protocol):
    """The address to check, its TLS context, which a reload may replace, and the name that its
    certificate must have."""

    @property
    def address(self) -> TargetAddress: ...
    @property
    def tls(self) -> ssl.SSLContext | None: ...
    @property
    def server_name(self) -> str | None: ...


class NotAsked(Exception):
    """A shortage of our own prevented the check: the target's health is unknown."""


class HealthProber:
    """Checks the `targets` (by label) of the upstream `name`.

    `on_answer(label, status, asked_at)` is called for every check: `status` is None without a
    response, `asked_at` the monotonic second at which the check began.
    """

    def __init__(
        self,
        name: str,
        rules: HealthRules,
        targets: Mapping[str, Target],
        health: TargetHealth,
        *,
        clock: Clock | None = None,
        vitals: Vitals | None = None,
        on_answer: Callable[[str, int | None, float], None] | None = None,
    ) -> None:
        self._name = name
        self._rules = rules
        self._targets = targets
        self._health = health
        self._clock = clock or SystemClock()
        self._on_answer = on_answer
        self.unwell: dict[str, str] = {}  #: why the last check failed, by target
        vitals = vitals or Vitals()
        self._shortages = vitals.shortages
        self._tasks = [
            Supervised(f"health-{name}-{label}", partial(self._watch, label, target), vitals.tasks)
            for label, target in targets.items()
        ]

    def start(self) -> None:
        """Start checking, each target with a random offset."""
        for task in self._tasks:
            task.start()

    async def stop(self) -> None:
        """Stop checking; returns when all checks have ended."""
        await asyncio.gather(*(task.stop() for task in self._tasks))

    async def _watch(self, label: str, target: Target) -> None:
        await asyncio.sleep(random.uniform(0.0, self._rules.every))  # noqa: S311
        while True:
            with suppress(NotAsked):
                asked_at = self._clock.monotonic()
                status, why = await self._question(target)
                if self._on_answer is not None:
                    self._on_answer(label, status, asked_at)
                self._record(label, why)
            await asyncio.sleep(self._rules.every * random.uniform(0.9, 1.1))  # noqa: S311

    def _record(self, label: str, why: str | None) -> None:
        """Record a check's result: `why` it failed, or None."""
        if why is None:
            self.unwell.pop(label, None)
        else:
            self.unwell[label] = why
        if not self._health.answered(label, why is None):
            return
        facts = {
            "event": "target_health",
            "upstream": self._name,
            "target": label,
            "healthy": why is None,
            "reason": why,
        }
        if why is None:
            _log.warning("%s of %s is healthy again", label, self._name, extra=facts)
        else:
            _log.warning("%s of %s is unhealthy: %s", label, self._name, why, extra=facts)

    async def ask(self, target: Target) -> str | None:
        """Check once: None for a good response, else the reason. Raises `NotAsked`."""
        return (await self._question(target))[1]

    async def _question(self, target: Target) -> tuple[int | None, str | None]:
        """The response's status, and why the check failed. Raises `NotAsked`."""
        try:
            async with asyncio.timeout(self._rules.timeout):
                status = await self._status(target)
        except TimeoutError:
            return None, f"no answer within {self._rules.timeout:g}s"
        except (OSError, ValueError) as error:
            if self._shortages.check(error, f"a health check of {target.address}") is not None:
                raise NotAsked from error
            return None, f"{type(error).__name__}: {error}".rstrip(": ")[:200]
        return status, None if 200 <= status < 400 else f"status {status}"

    async def _status(self, target: Target) -> int:
        address = target.address
        if address.path is not None:
            reader, writer = await asyncio.open_unix_connection(address.path, limit=4096)
        elif address.scheme == "https":
            reader, writer = await asyncio.open_connection(
                address.host,
                address.port,
                limit=4096,
                ssl=target.tls or True,
                server_hostname=target.server_name or address.host,
            )
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port, limit=4096)
        try:
            writer.write(
                f"GET {self._rules.path} HTTP/1.1\r\nHost: {address.authority}\r\n"
                "User-Agent: reliability-proxy-health\r\nAccept: */*\r\n"
                "Connection: close\r\n\r\n".encode("ascii")
            )
            line = await reader.readline()
        finally:
            writer.transport.abort()  # the rest of the response does not matter
        parts = line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or len(parts[1]) != 3:
            raise ValueError("not an HTTP answer")
        return int(parts[1])
