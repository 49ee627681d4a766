"""Samples for the status page: one sampler for all viewers, and a recorder of the history.

1. The recorder always runs, so that the page shows the last quarter of an hour when somebody opens
   it after a complaint. A step every five seconds takes less than a millisecond (measured in
   tests/bench/status.py).
2. Snapshots are taken only while somebody watches: the sampler starts with the first viewer and
   stops with the last. All viewers get the same bytes.
3. There are at most `MOST_VIEWERS` viewers. One that takes longer than `WRITE_LIMIT` to receive a
   frame is disconnected; a slower one skips snapshots, because only the newest matters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import msgspec

from proxy.admin.status.jobs import JobWatch
from proxy.admin.status.snapshot import Snapshots, Sources
from proxy.core.clock import Clock
from proxy.core.errors import Draining, Overloaded
from proxy.core.tasks import Supervised
from proxy.core.waiting import happened
from proxy.telemetry.metrics.history import STEP

TICK = 1.0  # seconds between two snapshots
JOBS_PATIENCE = 0.5  # seconds that the first snapshot waits for the jobs
MOST_VIEWERS = 16

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Viewer:
    """One open stream, and how far it has been sent."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.step = 0  #: the last step of the history that was sent


class StatusSampler:
    """`await start()`, then `snapshot` and `frames`; `await stop()` ends every stream."""

    def __init__(
        self, sources: Sources, clock: Clock, *, tick: float = TICK, step: float = STEP
    ) -> None:
        self._snapshots = Snapshots(sources, clock)
        self._jobs = JobWatch(sources.mirrors, clock)
        self._tasks = sources.vitals.tasks
        self._tick, self._step = tick, step
        self._viewers: set[Viewer] = set()
        self._frame = b""
        self._recorder: Supervised | None = None
        self._sampler: list[Supervised] = []
        self._stopping = False

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return len(self._viewers)

    @property
    def sampling(self) -> bool:
        """Whether snapshots are taken regularly now."""
        return bool(self._sampler)

    async def start(self) -> None:
        """Start the recorder."""
        self._snapshots.record()
        self._recorder = Supervised("status-recorder", self._record, self._tasks)
        self._recorder.start()

    async def stop(self) -> None:
        """End every stream and both tasks."""
        self._stopping = True
        for viewer in self._viewers:
            viewer.changed.set()
        tasks = [*self._sampler, *([self._recorder] if self._recorder else [])]
        self._sampler, self._recorder = [], None
        await asyncio.gather(*(task.stop() for task in tasks))

    def has_traces(self, kept: bool) -> None:
        """Set whether the page may request traces."""
        self._snapshots.traces = kept

    async def snapshot(self) -> bytes:
        """A new snapshot, as JSON."""
        if not self.sampling:
            await self._jobs.refresh()
        return self._encoded()

    def points(self, since: int = 0) -> bytes:
        """The history after step `since`, as JSON."""
        return _encode(self._snapshots.points(since))

    async def frames(self) -> AsyncGenerator[bytes]:
        """Server-sent events for one viewer, until the proxy stops. Raises `Overloaded` at once
        when there are too many. Close it (`aclosing`) when the viewer is gone."""
        if self._stopping:
            raise Draining("The proxy is about to stop")
        if len(self._viewers) >= MOST_VIEWERS:
            raise Overloaded(
                f"{MOST_VIEWERS} streams of the status page are open already", retry_after=10.0
            )
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            if not self.sampling:
                self._begin()
            elif self._frame:
                viewer.changed.set()
            yield b"retry: 2000\n\n"
            while True:
                await viewer.changed.wait()
                viewer.changed.clear()
                if self._stopping:
                    return
                frame, newest = self._frame, self._snapshots.history.steps
                if viewer.step < newest:
                    frame = _event("points", self.points(viewer.step)) + frame
                    viewer.step = newest
                yield frame
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._end()

    def _begin(self) -> None:
        """Start sampling for the first viewer."""
        self._end()
        self._sampler = [
            Supervised("status-jobs", self._jobs.run, self._tasks).start(),
            Supervised("status-sampler", self._sample, self._tasks).start(),
        ]

    def _end(self) -> None:
        for task in self._sampler:
            task.cancel()
        self._sampler = []
        self._frame = b""

    async def _sample(self) -> None:
        await happened(self._jobs.fresh, JOBS_PATIENCE)  # the first snapshot should have jobs
        while True:
            self._frame = _event("snapshot", self._encoded())
            for viewer in self._viewers:
                viewer.changed.set()
            await asyncio.sleep(self._tick)

    async def _record(self) -> None:
        while True:
            await asyncio.sleep(self._step)
            self._snapshots.record()

    def _encoded(self) -> bytes:
        return _encode(self._snapshots.take(self._jobs.document()))


def _event(kind: str, data: bytes) -> bytes:
    """JSON has no line breaks, so one `data` line is enough."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)
