"""The number and disk usage of the files in a directory.

1. Like `du`: blocks, not lengths; a file with several links counts once; symlinks are not followed.
2. One filesystem only: other filesystems mounted below have free space of their own.
3. A walk rests after every `_BATCH` entries (`pace.py`) and ends after `limit` of them.
4. Files come and go meanwhile. A vanished file is not an error; an unreadable one is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from proxy.app_telemetry.resources.pace import Pace

_BATCH = 100


@dataclass(slots=True)
class Found:
    """The result of a walk. `errors` by reason: `missing` (the directory itself), `denied`,
    `other`; `truncated`: the limit was reached."""

    size: int = 0
    files: int = 0
    truncated: bool = False
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def there(self) -> bool:
        """Whether the directory could be read at all."""
        return not (self.errors and self.size == 0)


def walk(root: Path, limit: int, pace: Pace) -> Found:
    """Everything below `root`. Raises `Stopped`, nothing else."""
    found = Found()
    try:
        top = os.stat(root)
    except (OSError, ValueError) as error:
        found.errors[reason(error)] += 1
        return found
    found.size = top.st_blocks * 512
    linked: set[int] = set()
    waiting = [os.fspath(root)]
    entries = 0
    while waiting:
        for name in _entries(waiting.pop(), found, top=entries == 0):
            entries += 1
            if entries > limit:
                found.truncated = True
                return found
            if entries % _BATCH == 0:
                pace.rest()
            try:
                facts = name.stat(follow_symlinks=False)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    found.errors[reason(error)] += 1
                continue
            if facts.st_dev != top.st_dev:
                continue
            if stat.S_ISDIR(facts.st_mode):
                waiting.append(name.path)
            else:
                found.files += 1
                if facts.st_nlink > 1:
                    if facts.st_ino in linked:
                        continue
                    linked.add(facts.st_ino)
            found.size += facts.st_blocks * 512
    return found


def _entries(directory: str, found: Found, *, top: bool) -> Iterator[os.DirEntry[str]]:
    """The entries of one directory; none if it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except OSError as error:
        if top or not isinstance(error, FileNotFoundError):
            found.errors[reason(error)] += 1
            if top:
                found.size = 0


def reason(error: OSError | ValueError) -> str:
    """The value of the label `reason`."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "missing"
    return "denied" if number in (errno.EACCES, errno.EPERM) else "other"
