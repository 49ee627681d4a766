"""Log outputs, standard output or a file, as file descriptors for the writer thread."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Protocol


class Output(Protocol):
    """A log output. Once it exists, only the writer thread uses it."""

    @property
    def fd(self) -> int:
        """The descriptor to write to now."""
        ...

    def refresh(self, *, force: bool) -> bool:
        """Reopen the file if its name belongs to another one now, or if `force` is set; returns
        whether it is another file. Never raises: if it cannot be opened, the old file stays in
        use."""
        ...

    def outlasts(self, error: OSError) -> bool:
        """Whether writing may work again after `error`, so that lines should be kept."""
        ...

    def close(self) -> None:
        """Close the descriptor."""
        ...


class StandardOutput:
    """The process' standard output, through a descriptor of our own.

    The copy matters: if somebody closed descriptor 1, the next socket would get that number, and
    log lines would go to a client.
    """

    def __init__(self) -> None:
        try:
            if sys.__stdout__ is None:  # it was closed when Python started
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._fd = os.dup(sys.__stdout__.fileno())
        except (OSError, ValueError):
            self._fd = os.open(os.devnull, os.O_WRONLY)

    @property
    def fd(self) -> int:
        return self._fd

    def refresh(self, *, force: bool) -> bool:
        """Never: standard output has no name."""
        return False

    def outlasts(self, error: OSError) -> bool:
        """True for a full disk, which may get room again; a broken pipe stays broken."""
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOBUFS, errno.ENOMEM)

    def close(self) -> None:
        os.close(self._fd)


class FileOutput:
    """A file that is appended to. If it is moved or removed, a new one is opened under its name.

    The constructor raises `OSError` if it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = os.fspath(path)
        self._fd = self._open()
        self._identity = _identity(os.fstat(self._fd))

    @property
    def fd(self) -> int:
        return self._fd

    def _open(self) -> int:
        # Not blocking: a named pipe without a reader then fails at once instead of blocking.
        # Readable for the group, as usual for logs, but not for others: it has callers' data.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._path, flags, 0o640)

    def refresh(self, *, force: bool) -> bool:
        try:
            if not force and _identity(os.stat(self._path)) == self._identity:
                return False
        except FileNotFoundError:
            pass
        except OSError:
            return False
        try:
            fd = self._open()
        except OSError:
            return False
        os.close(self._fd)
        self._fd = fd
        before, self._identity = self._identity, _identity(os.fstat(fd))
        return self._identity != before

    def outlasts(self, error: OSError) -> bool:
        """Always: disks are emptied, mounts come back."""
        return True

    def close(self) -> None:
        os.close(self._fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def open_output(name: str) -> Output:
    """`stdout`, or a file of that name. Raises `OSError` when the file cannot be opened."""
    return StandardOutput() if name == "stdout" else FileOutput(name)


def fill_standard_descriptors() -> None:
    """Open the null device in place of closed descriptors 0 to 2; call before opening anything.

    Otherwise the first sockets get those numbers, and whatever a library prints to standard error
    is sent to a client.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # POSIX: the lowest free number, which is `fd`
