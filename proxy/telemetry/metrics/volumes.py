"""How full the disks are that the proxy itself writes to: jobs, traces, spool, log.

Measured in a thread of its own, because a network disk that hangs holds up whoever asks it; the
figures then stay as they were. What the app writes is measured by `resources/`, where configured.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from proxy.config.schema import Config

EVERY = 15.0  # seconds

#: Name of a directory, bytes free for ordinary users, bytes in all.
Disk = tuple[str, int, int]


def own_directories(config: Config) -> dict[str, Path]:
    """Where the proxy writes, by what it writes there."""
    found = {f"jobs:{name}": mirror.sqlite.parent for name, mirror in config.mirrors.items()}
    if config.trace is not None:
        found["trace"] = config.trace.sqlite.parent
    found["spool"] = config.spool.dir
    if config.logging.output != "stdout":
        found["log"] = Path(config.logging.output).parent
    return found


class Volumes:
    """`start` and `stop` once each; a collector for the registry. `directories` is asked anew at
    each measurement, as a reload may move the spool."""

    def __init__(self, directories: Callable[[], Mapping[str, Path]]) -> None:
        self._directories = directories
        self._found: dict[str, tuple[int, int]] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        """Measure from now on."""
        # A daemon: one that hangs in the kernel must not keep the process from its end.
        threading.Thread(target=self._keep_measuring, name="volumes", daemon=True).start()

    def stop(self) -> None:
        """Measure no more."""
        self._stopping.set()

    def _keep_measuring(self) -> None:
        while True:
            self.measure()
            if self._stopping.wait(EVERY):
                return

    def measure(self) -> None:
        """Ask every file system; one that cannot say has no figures."""
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
        """As they were measured last."""
        return [(name, free, size) for name, (free, size) in self._found.items()]

    def collect(self) -> Iterator[Metric]:
        """For a scrape."""
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
