"""Where log lines go: standard output or a file, as file descriptors for the writer thread."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Protocol


class Output(Protocol):
    """A place to write to. Used by the writer thread alone, after it was made."""

    @property
    def fd(self) -> int:
        """Where to write now."""
        ...

    def refresh(self, *, force: bool) -> bool:
        """Follow the name to another file if it has one; `force`: open it anew in any case.
        Whether it is another one now. Never raises: what cannot be opened leaves the old file in
        use."""
        ...

    def outlasts(self, error: OSError) -> bool:
        """Whether writing may work again after `error`, so that lines are worth keeping."""
        ...

    def close(self) -> None:
        """Give the descriptor back."""
        ...


class StandardOutput:
    """The process's standard output, through a descriptor of our own.

    The copy matters: should someone close descriptor 1, the next socket would get that number, and
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
        """Nothing to follow."""
        return False

    def outlasts(self, error: OSError) -> bool:
        """A full disk may get room again; a pipe without a reader never gets one."""
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOBUFS, errno.ENOMEM)

    def close(self) -> None:
        os.close(self._fd)


class FileOutput:
    """A file, appended to. When it is moved away or removed, a new one is opened under its name.

    Raises `OSError` at the start when it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = os.fspath(path)
        self._fd = self._open()
        self._identity = _identity(os.fstat(self._fd))

    @property
    def fd(self) -> int:
        return self._fd

    def _open(self) -> int:
        # Not blocking: a named pipe without a reader is then an error at once instead of a hang.
        # Readable for the group, as logs are by custom; they carry addresses and paths of callers.
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
        """Every fault of a file is thought to pass: disks are emptied, mounts come back."""
        return True

    def close(self) -> None:
        os.close(self._fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def open_output(name: str) -> Output:
    """`stdout`, or a file of that name. Raises `OSError` when the file cannot be opened."""
    return StandardOutput() if name == "stdout" else FileOutput(name)


def fill_standard_descriptors() -> None:
    """Put the null device where descriptors 0 to 2 are closed; call before anything is opened.

    Otherwise the first sockets get those numbers, and whatever a library prints to standard error
    is sent to a client.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # POSIX: the lowest free number, which is `fd`
