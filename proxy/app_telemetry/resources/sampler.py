"""Measures resources on a schedule, in two threads: one for directories, one for processes.

There are two, because walking a directory may take minutes, and a hanging network filesystem blocks
its thread for good; neither must delay the counting of processes. The threads are daemons for the
same reason: `stop` waits for them, but not forever. A scrape only reads their last results.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from proxy.app_telemetry.resources.pace import Pace, Stopped
from proxy.app_telemetry.resources.processes import Usage, by_component, running
from proxy.app_telemetry.resources.walk import Found, reason, walk
from proxy.config.telemetry import Resources
from proxy.core.clock import Clock

_log = logging.getLogger(__name__)

SHARE = 0.1  # of a core that a thread may take; a large directory only takes longer
MOST_FILES = 500_000  # of one directory: some minutes at that pace
_STOP_LIMIT = 2.0  # seconds

Part = Literal["processes", "directories"]


class ResourceSampler:
    """Measures what `config` names from `start` to `stop`. A collector for the registry."""

    def __init__(self, config: Resources, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._usage: dict[str, Usage] = {}
        self._disk: dict[str, Found] = {}
        self._space: dict[str, tuple[int, int]] = {}  # free, size
        self._temp: int | None = None
        self._errors: Counter[tuple[str, str]] = Counter()
        self._passes: dict[str, tuple[float, float]] = {}  # when it ended, how long it took

    def start(self) -> None:
        """Start measuring."""
        self._stopping.clear()
        wanted: list[Part] = ["processes"]
        if self._config.directories or self._config.temp is not None:
            wanted.append("directories")
        for part in wanted:
            thread = threading.Thread(
                target=self._keep_sampling, args=(part,), name=f"resources-{part}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    async def stop(self) -> None:
        """End the threads; one that hangs in the kernel is abandoned after two seconds."""
        self._stopping.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _STOP_LIMIT)
            if thread.is_alive():
                _log.warning("resource thread left behind", extra={"part": thread.name})
        self._threads.clear()

    def _keep_sampling(self, part: Part) -> None:
        pace = Pace(SHARE, self._stopping)
        try:
            while True:
                self.sample(part, pace)
                pace.wait(self._config.every)
        except Stopped:
            return

    # --- in the threads -------------------------------------------------------------------------

    def sample(self, part: Part, pace: Pace) -> None:
        """Measure once. Raises `Stopped`, nothing else."""
        began = time.monotonic()
        try:
            if part == "processes":
                self._sample_processes(pace)
            else:
                self._sample_directories(pace)
        except Stopped:
            raise
        except Exception:
            # A bug of ours, or a /proc that psutil cannot read: logged and counted each time. The
            # next pass may succeed.
            _log.exception("resource fault", extra={"part": part})
            self._errors[part, "fault"] += 1
        else:
            self._passes[part] = (self._clock.time(), time.monotonic() - began)

    def _sample_processes(self, pace: Pace) -> None:
        usage, silent = by_component(running(pace), self._config.processes, os.getpid())
        self._usage = usage
        if silent:
            self._errors["processes", "denied"] += silent

    def _sample_directories(self, pace: Pace) -> None:
        walked: dict[str, Found] = {}
        for name, path in self._config.directories.items():
            try:
                facts = os.statvfs(path)
            except OSError as error:
                self._space.pop(name, None)
                self._disk.pop(name, None)
                self._errors[name, reason(error)] += 1
                continue
            self._space[name] = (
                facts.f_bavail * facts.f_frsize,
                facts.f_blocks * facts.f_frsize,
            )
            found = walked[os.path.realpath(path)] = walk(path, MOST_FILES, pace)
            self._note(name, found)
            if found.there:
                self._disk[name] = found
            else:
                self._disk.pop(name, None)
        if self._config.temp is not None:
            files = 0
            for path in self._config.temp.directories:
                found = walked.get(os.path.realpath(path)) or walk(path, MOST_FILES, pace)
                files += found.files
                self._note("temp", found)
            self._temp = files

    def _note(self, source: str, found: Found) -> None:
        for why, number in found.errors.items():
            self._errors[source, why] += number

    # --- in the scrape --------------------------------------------------------------------------

    def disks(self) -> list[tuple[str, int, int]]:
        """Name, free bytes and total bytes of each directory, as measured last."""
        return [(name, free, size) for name, (free, size) in list(self._space.items())]

    def collect(self) -> Iterator[Metric]:
        """The families with the last results."""
        yield from self._directories()
        yield from self._processes()
        errors = CounterMetricFamily(
            "proxy_resources_errors", "Failed measurements", labels=["source", "reason"]
        )
        for labels, number in list(self._errors.items()):
            errors.add_metric(labels, number)
        yield errors
        ended = GaugeMetricFamily(
            "proxy_resources_last_pass_timestamp_seconds",
            "When a measurement was last completed, Unix time",
            labels=["part"],
        )
        took = GaugeMetricFamily(
            "proxy_resources_pass_seconds", "How long the last measurement took", labels=["part"]
        )
        for part, (when, seconds) in list(self._passes.items()):
            ended.add_metric([part], when)
            took.add_metric([part], seconds)
        yield ended
        yield took

    def _directories(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "resource_disk_usage_bytes", "Disk usage of a directory's files", labels=["directory"]
        )
        cut = GaugeMetricFamily(
            "proxy_resources_truncated",
            "1 while a directory has more than 500,000 files, so that its usage is incomplete",
            labels=["directory"],
        )
        for name, found in list(self._disk.items()):
            used.add_metric([name], found.size)
            cut.add_metric([name], found.truncated)
        free = GaugeMetricFamily(
            "resource_disk_free_bytes",
            "Free bytes of a directory's filesystem",
            labels=["directory"],
        )
        size = GaugeMetricFamily(
            "resource_disk_size_bytes", "Size of a directory's filesystem", labels=["directory"]
        )
        for name, (left, whole) in list(self._space.items()):
            free.add_metric([name], left)
            size.add_metric([name], whole)
        yield from (used, cut, free, size)
        temp = GaugeMetricFamily("resource_temp_files_count", "Temporary files of the app")
        if self._temp is not None:
            temp.add_metric([], self._temp)
        yield temp

    def _processes(self) -> Iterator[Metric]:
        usage = self._usage
        memory = GaugeMetricFamily(
            "resource_memory_usage_bytes", "Resident memory of processes", labels=["component"]
        )
        number = GaugeMetricFamily("resource_processes", "Processes", labels=["component"])
        for component, taken in usage.items():
            memory.add_metric([component], taken.memory)
            number.add_metric([component], taken.processes)
        yield memory
        yield number
        ffmpeg = GaugeMetricFamily("resource_ffmpeg_processes", "Running ffmpeg processes")
        if "ffmpeg" in usage:
            ffmpeg.add_metric([], usage["ffmpeg"].processes)
        yield ffmpeg
