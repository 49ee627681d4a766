"""The container's memory limit: cgroups, version 2 and version 1.

A process sees the limits of its own group and of those above it; the smallest one applies. Inside a
container the namespace usually hides all groups but its own, which then appears as the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: Version 1 writes "no limit" as the largest multiple of a page, far above any real limit.
_NO_LIMIT = 1 << 60


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process' cgroups allow it and its neighbours; None without a limit.

    `root` is the directory of `proc` and `sys`.
    """
    limits = [limit for file in _limit_files(root) if (limit := _read(file)) is not None]
    return min(limits, default=None)


def _limit_files(root: Path) -> Iterator[Path]:
    """Every file that may hold a limit. Version 2: the hard limit, and the one beyond which the
    kernel slows the group down until it swaps or frees."""
    mount = root / "sys/fs/cgroup"
    names: tuple[str, ...]
    for controllers, path in _groups(root / "proc/self/cgroup"):
        if controllers == "":
            bases, names = (mount, mount / "unified"), ("memory.max", "memory.high")
        elif "memory" in controllers.split(","):
            bases, names = (mount / "memory", mount / controllers), ("memory.limit_in_bytes",)
        else:
            continue
        group = PurePosixPath(path)
        for base in bases:
            for level in (group, *group.parents):
                yield from (base / str(level).lstrip("/") / name for name in names)


def _groups(file: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each hierarchy; no controllers is version 2."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and ".." not in PurePosixPath(path).parts:
            yield controllers, path


def _read(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None
