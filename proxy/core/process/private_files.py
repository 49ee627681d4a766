"""Files that hold what callers sent: jobs, traces. For their owner, whatever the umask says.

A database that is made anew is 0600. One that exists keeps what its operator gave to the group, and
loses what others have: 0640 at most. SQLite gives its -wal and -shm files the database's mode.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_NEW, _MOST, _DIRECTORY = 0o600, 0o640, 0o750


def make_directory(directory: Path) -> None:
    """Make `directory` and those above it that are missing, closed to others. Raises `OSError`."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for one in reversed(missing):
        with suppress(FileExistsError):
            one.mkdir(mode=_DIRECTORY)


def make(path: Path) -> None:
    """Make an empty file at `path` unless there is something. Raises `OSError`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _NEW)
    except FileExistsError:
        return
    try:
        os.fchmod(fd, _NEW)  # a umask may have taken our own right to write
    finally:
        os.close(fd)


def close_to_others(path: Path) -> None:
    """Take away from a database of ours what its mode has beyond 0640. What is not our own file, or
    on a filesystem without modes, stays as it is."""
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(OSError):
            mode = stat.S_IMODE(name.stat().st_mode)
            if mode & ~_MOST:
                name.chmod(mode & _MOST)
