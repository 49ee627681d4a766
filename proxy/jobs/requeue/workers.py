"""Counts the workers, asks them what they work on, and remembers their answers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from proxy.core.clock import iso_utc
from proxy.jobs.context import MirrorContext
from proxy.jobs.document import finite
from proxy.jobs.redis.connection import RedisConnection
from proxy.jobs.requeue.broker import Broker
from proxy.jobs.requeue.evidence import CLOCK_SLACK, Start, Workers
from proxy.jobs.requeue.messages import load_object
from proxy.jobs.requeue.pidbox import MAX_NODES, WorkerAnswer
from proxy.jobs.requeue.scripts import WORKERS_FRESH

log = logging.getLogger(__name__)

COUNT_EVERY = 5.0  # seconds between two counts
ASK_EVERY = 5.0  # seconds between two questions
NOBODY_AFTER = 10.0  # seconds without a worker before it is reported


class WorkerWatch:
    """`state` is the input of `evidence`. `connected`: workers at the last count, None if unknown.
    `nobody_since`: since when there is no worker although there are jobs, in Unix seconds."""

    def __init__(
        self,
        context: MirrorContext,
        broker: Broker,
        store: Callable[[str, str], None],
    ) -> None:
        self.state = Workers()
        self.connected: int | None = None
        self.nobody_since: float | None = None
        self._name = context.name
        self._broker = broker
        self._clock = context.clock
        self._metrics = context.metrics
        self._emit = context.emit
        self._remember = context.settings.stranded_after
        self._store = store
        self._seen: dict[str, float] = {}  # node: when it last answered, Unix seconds
        self._solo: frozenset[str] = frozenset()
        self._starts: dict[str, Start] = {}  # node: the newest
        self._since = -math.inf  # Unix seconds: the connection
        self._counted_at = self._asked_at = -math.inf  # monotonic
        self._mailbox_open = False
        self._reported = False

    def recall(self, stored: Mapping[str, str]) -> None:
        """Read back what the previous process passed to `store`."""
        now = self._clock.time()
        for node, seen in (load_object(stored.get("workers", "")) or {}).items():
            at = finite(seen)
            if at is not None and now - self._remember < at <= now:
                self._seen.setdefault(node, at)
        for node, start in (load_object(stored.get("solo_workers", "")) or {}).items():
            self._solo |= {node}
            match start:
                case [str(job_id), int(pid), float(at)]:
                    self._starts.setdefault(node, Start(job_id, pid, at))
        self.state = replace(self.state, known=frozenset(self._seen), starts=self._solo_starts())

    def reconnected(self) -> None:
        """After a reconnect, forget counts and answers, but not the known nodes."""
        self.state = Workers(
            had_receivers=self.state.had_receivers, known=self.state.known, starts=self.state.starts
        )
        self._since = self._clock.time()
        self._counted_at = self._asked_at = -math.inf
        self._mailbox_open = False

    async def count(self, link: RedisConnection, unfinished: int) -> None:
        """Count the workers, if it is time to. Raises `RedisLost`."""
        if self._clock.monotonic() - self._counted_at < COUNT_EVERY:
            return
        self._counted_at = self._clock.monotonic()
        now = self._clock.time()
        receivers = await self._broker.count_workers(link, now)
        consumers = None if receivers else await self._broker.consumers(link)
        had = self.state.had_receivers or bool(receivers)
        counted = Workers(receivers, had_receivers=had, consumers=consumers)
        self.connected = counted.connected
        if not receivers:
            # There are no workers, so none is missing among the answers.
            at = now - WORKERS_FRESH if self.connected == 0 else 0.0
            self.state = replace(
                self.state, receivers=receivers, asked_at=at, consumers=consumers, had_receivers=had
            )
        elif not self.state.receivers:
            self.state = replace(self.state, receivers=None, consumers=None, had_receivers=had)
            self._asked_at = -math.inf
        self._metrics.workers.set(math.nan if self.connected is None else self.connected)
        self._report(unfinished if self.connected == 0 else 0, now)

    def _report(self, unfinished: int, now: float) -> None:
        """Report that there are `unfinished` jobs and no worker; 0: no problem."""
        if not unfinished:
            if self._reported:
                self._reported = False
                log.info(
                    "workers are back", extra={"mirror": self._name, "workers": self.connected}
                )
                self._emit("workers_back", {"workers": self.connected})
            self.nobody_since = None
            return
        if self.nobody_since is None:
            self.nobody_since = now
        if not self._reported and now - self.nobody_since >= NOBODY_AFTER:
            self._reported = True
            facts: dict[str, object] = {
                "queues": ", ".join(self._broker.settings.queues),
                "since": iso_utc(self.nobody_since),
                "unfinished": unfinished,
            }
            log.error("nobody works on the queue", extra={"mirror": self._name, **facts})
            self._emit("no_workers", facts)

    # --- asking ----------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the workers may be asked again."""
        return self.connected != 0 and self._clock.monotonic() - self._asked_at >= ASK_EVERY

    async def ask(self, link: RedisConnection) -> None:
        """Ask all workers what they work on. Raises `RedisLost`."""
        self._asked_at = self._clock.monotonic()
        now = self._clock.time()
        asked = await self._broker.ask(link, now)
        if asked is None:
            return
        self._mailbox_open = True
        receivers, found = asked
        self.state = replace(
            self.state,
            receivers=receivers,
            asked_at=now,
            had_receivers=self.state.had_receivers or receivers > 0,
        )
        self._learn(found)

    async def late_answers(self, link: RedisConnection) -> None:
        """Read answers that came too late. Raises `RedisLost`."""
        if self._mailbox_open:
            self._learn(await self._broker.late_answers(link))

    async def close(self, link: RedisConnection) -> None:
        """Stop asking for now. Raises `RedisLost`."""
        if self._mailbox_open:
            self._mailbox_open = False
            await self._broker.close_mailbox(link)

    def _learn(self, found: dict[str, WorkerAnswer]) -> None:
        now = self._clock.time()
        # After a restart with old data, the mailbox has old answers.
        found = {
            node: one for node, one in found.items() if one.asked_at >= self._since - CLOCK_SLACK
        }
        solo = self._solo.difference(found) | {node for node, one in found.items() if one.solo}
        if solo != self._solo:
            self._solo = solo
            self._store_starts()
        before = {node: at for node, at in self._seen.items() if now - at < self._remember / 2}
        for node, answer in found.items():
            self._seen[node] = max(answer.asked_at, self._seen.get(node, 0.0))
        if not found.keys() <= before.keys():
            self._store("workers", json.dumps(self._seen))
        self._seen = {
            node: seen for node, seen in self._seen.items() if now - seen < self._remember
        }
        answers = {**self.state.answers, **found}
        self.state = replace(
            self.state,
            answers={node: one for node, one in answers.items() if node in self._seen},
            known=frozenset(self._seen),
        )

    def began(self, node: str, start: Start) -> None:
        """Record that a node started a job."""
        newest = self._starts.get(node)
        if newest is not None and newest.at >= start.at:
            return
        self._starts.pop(node, None)
        self._starts[node] = start
        if len(self._starts) > MAX_NODES:
            del self._starts[next(iter(self._starts))]
        if node in self._solo:
            self._store_starts()

    def _store_starts(self) -> None:
        starts = self._solo_starts()
        self.state = replace(self.state, starts=starts)
        stored = {
            node: [one.job_id, one.pid, one.at] if (one := starts.get(node)) else None
            for node in self._solo
        }
        self._store("solo_workers", json.dumps(stored))

    def _solo_starts(self) -> dict[str, Start]:
        return {node: one for node, one in self._starts.items() if node in self._solo}
