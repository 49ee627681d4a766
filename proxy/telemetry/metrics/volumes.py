"""The free space of the disks that the proxy itself writes to: jobs, traces, spool, log.

A thread of its own measures it, because a hanging network disk blocks its caller; the figures then
stay as they were. The app's directories are measured by `app_telemetry/resources/`, if configured.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from proxy.config.schema import Config

EVERY = 15.0  # seconds

#: Name of a directory, bytes free for ordinary users, total bytes.
Disk = tuple[str, int, int]


def own_directories(config: Config) -> dict[str, Path]:
    """The directories that the proxy writes to, by what it writes there."""
    found = {f"jobs:{name}": mirror.sqlite.parent for name, mirror in config.mirrors.items()}
    if config.trace is not None:
        found["trace"] = config.trace.sqlite.parent
    found["spool"] = config.spool.dir
    if config.logging.output != "stdout":
        found["log"] = Path(config.logging.output).parent
    return found


class Volumes:
    """`start` and `stop` once each; a collector for the registry. `directories` is called for
    each measurement, because a reload may move the spool."""

    def __init__(self, directories: Callable[[], Mapping[str, Path]]) -> None:
        self._directories = directories
        self._found: dict[str, tuple[int, int]] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start measuring."""
        # A daemon: a thread that hangs in the kernel must not keep the process alive.
        threading.Thread(target=self._keep_measuring, name="volumes", daemon=True).start()

    def stop(self) -> None:
        """Stop measuring."""
        self._stopping.set()

    def _keep_measuring(self) -> None:
        while True:
            self.measure()
            if self._stopping.wait(EVERY):
                return

    def measure(self) -> None:
        """Measure every directory; one that cannot be measured has no figures."""
        found = {}
        for name, path in self._directories().items():
            try:
                facts = os.statvfs(path)
            except OSError:
                continue
            size = facts.f_blocks * facts.f_frsize
            if size:  # some virtual file systems have none
                found[name] = (facts.f_bavail * facts.f_frsize, size)
        self._found = found

    def disks(self) -> list[Disk]:
        """The last figures."""
        return [(name, free, size) for name, (free, size) in self._found.items()]

    def collect(self) -> Iterator[Metric]:
        """The families, for a scrape."""
        disks = self.disks()
        yield _gauge("proxy_disk_free_bytes", "Free on a disk that the proxy writes to",
                     ((name, free) for name, free, _ in disks))  # fmt: skip
        yield _gauge("proxy_disk_size_bytes", "Size of a disk that the proxy writes to",
                     ((name, size) for name, _, size in disks))  # fmt: skip


def _gauge(name: str, about: str, values: Iterable[tuple[str, int]]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=("directory",))
    for directory, value in values:
        family.add_metric((directory,), value)
    return family
