"""Active health checks: asks each target of an upstream by itself, and keeps `TargetHealth` told.

One small GET per question on a connection of its own: it proves that the target takes new
connections, and never competes for those of the pool.
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
    """Where to ask, and with which TLS context: a reload may give it another."""

    @property
    def address(self) -> TargetAddress: ...
    @property
    def tls(self) -> ssl.SSLContext | None: ...


class NotAsked(Exception):
    """For want of something of ours the target was not asked: its health is not known."""


class HealthProber:
    """Asks the `targets` (by label) of the upstream `name`; `server_name` is for https.

    `on_answer(label, status, asked_at)` is told every answer: `status` is None where there was
    none, `asked_at` the monotonic second at which the question began.
    """

    def __init__(
        self,
        name: str,
        rules: HealthRules,
        targets: Mapping[str, Target],
        health: TargetHealth,
        *,
        server_name: str | None = None,
        clock: Clock | None = None,
        vitals: Vitals | None = None,
        on_answer: Callable[[str, int | None, float], None] | None = None,
    ) -> None:
        self._name = name
        self._rules = rules
        self._targets = targets
        self._health = health
        self._server_name = server_name
        self._clock = clock or SystemClock()
        self._on_answer = on_answer
        self.unwell: dict[str, str] = {}  #: what was wrong with the last answer, by target
        vitals = vitals or Vitals()
        self._shortages = vitals.shortages
        self._tasks = [
            Supervised(f"health-{name}-{label}", partial(self._watch, label, target), vitals.tasks)
            for label, target in targets.items()
        ]

    def start(self) -> None:
        """Begin to ask, every target at its own random phase."""
        for task in self._tasks:
            task.start()

    async def stop(self) -> None:
        """Stop asking; returns when all questions are given up."""
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
        """The target answered well, or `why` not."""
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
            _log.warning("%s of %s is well again", label, self._name, extra=facts)
        else:
            _log.warning("%s of %s is unwell: %s", label, self._name, why, extra=facts)

    async def ask(self, target: Target) -> str | None:
        """One question: None for a good answer, else what was wrong. Raises `NotAsked`."""
        return (await self._question(target))[1]

    async def _question(self, target: Target) -> tuple[int | None, str | None]:
        """The status of the answer, and what was wrong with it. Raises `NotAsked`."""
        try:
            async with asyncio.timeout(self._rules.timeout):
                status = await self._status(target.address, target.tls)
        except TimeoutError:
            return None, f"no answer within {self._rules.timeout:g}s"
        except (OSError, ValueError) as error:
            if self._shortages.check(error, f"a health check of {target.address}") is not None:
                raise NotAsked from error
            return None, f"{type(error).__name__}: {error}".rstrip(": ")[:200]
        return status, None if 200 <= status < 400 else f"status {status}"

    async def _status(self, address: TargetAddress, tls: ssl.SSLContext | None) -> int:
        if address.path is not None:
            reader, writer = await asyncio.open_unix_connection(address.path, limit=4096)
        elif address.scheme == "https":
            reader, writer = await asyncio.open_connection(
                address.host,
                address.port,
                limit=4096,
                ssl=tls or True,
                server_hostname=self._server_name or address.host,
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
            writer.transport.abort()  # the rest of the answer is of no interest
        parts = line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or len(parts[1]) != 3:
            raise ValueError("not an HTTP answer")
        return int(parts[1])
