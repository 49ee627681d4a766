"""Private files for data of callers (jobs, traces): closed to others, whatever the umask.

A new database has mode 0600. An existing one keeps the group's rights and loses those of others:
0640 at most. SQLite gives its -wal and -shm files the database's mode.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_NEW, _MOST, _DIRECTORY = 0o600, 0o640, 0o750


def make_directory(directory: Path) -> None:
    """Create `directory` and its missing parents, closed to others. Raises `OSError`."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for one in reversed(missing):
        with suppress(FileExistsError):
            one.mkdir(mode=_DIRECTORY)


def make(path: Path) -> None:
    """Create an empty file at `path` unless it exists. Raises `OSError`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _NEW)
    except FileExistsError:
        return
    try:
        os.fchmod(fd, _NEW)  # a umask may have removed our own write permission
    finally:
        os.close(fd)


def close_to_others(path: Path) -> None:
    """Reduce the mode of a database to 0640 at most. A file that is not ours, or on a filesystem
    without modes, stays as it is."""
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(OSError):
            mode = stat.S_IMODE(name.stat().st_mode)
            if mode & ~_MOST:
                name.chmod(mode & _MOST)
