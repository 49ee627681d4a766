"""One nameless file: written and closed by threads, read by the loop if that cannot block.

Its name, if any, is gone once it is open, so a killed process leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.core.memory.budget import Account, Holding, Owner

if TYPE_CHECKING:
    from proxy.spool.spool import Reason, Spool

Block = bytes | bytearray

#: Bytes that are read at a time.
READ = 256 * 1024

#: Bytes that are copied at a time.
_COPIED = 1024 * 1024

#: A file in memory may take this fraction (1 / 4) of what is left of the memory budget.
_PARTS = 4

_PIECES = 512  # per system call; Linux allows 1024
_NOWAIT = getattr(os, "RWF_NOWAIT", None)
_O_TMPFILE = getattr(os, "O_TMPFILE", None)

#: Errors of `open` if the file system or the kernel has no nameless files.
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


class SpoolError(Exception):
    """Written bytes cannot be read back."""


def open_nameless(directory: Path) -> int:
    """A new file that has no name, open for reading and writing. Raises `OSError`."""
    if _O_TMPFILE is not None:
        try:
            return os.open(directory, _O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
    descriptor, name = tempfile.mkstemp(prefix="reliability-proxy-", dir=directory)
    os.unlink(name)
    return descriptor


#: Whether file systems are in memory, by device.
_MEMORY_DEVICES: dict[int, bool] = {}


def in_memory(fd: int) -> bool:
    """Whether the file is on a file system in memory (tmpfs, ramfs), whose reads never wait."""
    device = os.fstat(fd).st_dev
    known = _MEMORY_DEVICES.get(device)
    if known is None:
        number = f"{os.major(device)}:{os.minor(device)}"
        with contextlib.suppress(OSError), open("/proc/self/mountinfo") as mounts:
            # 36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw (proc_pid_mountinfo(5))
            known = any(
                line.split()[2] == number and line.partition(" - ")[2][:6] in ("tmpfs ", "ramfs ")
                for line in mounts
            )
        _MEMORY_DEVICES[device] = known = bool(known)
    return known


class SpoolFile:
    """`fd` is None until the first write is done. There is at most one write at a time, and any
    number of reads. `reserved`: its bytes of the spool's limit."""

    __slots__ = ("_busy", "_closed", "_in_memory", "_spool", "client", "fd", "reserved")

    def __init__(self, spool: Spool, client: object = None) -> None:
        self._spool = spool
        self.client = client  # whose share of the limit it counts against
        self._busy = 0  # operations in progress
        self._closed = False
        self._in_memory = False  # known never to wait for a disk
        self.fd: int | None = None
        self.reserved = 0

    def write(
        self,
        blocks: Sequence[Block],
        offset: int,
        done: Callable[[int, Reason | None], None],
        hasher: hashlib._Hash | None = None,
    ) -> Reason | None:
        """Write `blocks` at `offset`. `done(written, reason)` follows, with a `reason` if not all
        was written; or the reason is returned at once. `blocks` must not change meanwhile."""
        spool = self._spool
        size = sum(map(len, blocks))
        refusal = spool.reserve(size, self.client)
        if refusal is not None:
            return refusal
        self.reserved += size
        self._busy += 1
        fd, directory = self.fd, spool.directory

        def work() -> tuple[int | None, int, OSError | None]:
            if hasher is not None:
                for block in blocks:
                    hasher.update(block)
            return _write(fd, directory, blocks, offset)

        def finished(result: tuple[int | None, int, OSError | None]) -> None:
            opened, written, error = result
            if self.fd is None and opened is not None:
                self.fd = opened
                spool.files += 1
            reason = None
            if written:
                spool.wrote(written)
            if error is not None:
                self.give_back(size - written)
                reason = spool.failed(error)
            self._less_busy()
            done(written, reason)

        spool.disk.submit(work, finished)
        return None

    def read(self, offset: int, size: int, done: Callable[[bytes | OSError], None]) -> bytes | None:
        """Up to `size` written bytes at `offset`; or None if that would wait for the disk: then
        `done` follows with the bytes or the error."""
        fd = self.fd
        assert fd is not None
        at_hand = self._at_hand(fd, offset, size)
        if at_hand:
            return at_hand
        self._busy += 1

        def finished(result: bytes | OSError) -> None:
            self._less_busy()
            done(result)

        self._spool.disk.submit(lambda: _read(fd, offset, size), finished)
        return None

    def _at_hand(self, fd: int, offset: int, size: int) -> bytes | None:
        """What can be read without waiting, if anything."""
        with contextlib.suppress(OSError):
            if self._in_memory:
                return os.pread(fd, size, offset)
            if _NOWAIT is not None:
                piece = self._spool.scratch[:size]
                try:
                    return bytes(piece[: os.preadv(fd, [piece], offset, _NOWAIT)])
                except OSError as error:
                    # File systems in memory lack the flag, and never wait.
                    self._in_memory = error.errno == errno.EOPNOTSUPP and in_memory(fd)
                if self._in_memory:
                    return os.pread(fd, size, offset)
        return None

    def give_back(self, size: int) -> None:
        """Release `size` bytes that are no longer needed or were not written."""
        self.reserved -= size
        self._spool.release(size, self.client)

    def hold(self) -> None:
        """Keep the descriptor open until `let_go`, even after `close`."""
        self._busy += 1

    def let_go(self) -> None:
        self._less_busy()

    def close(self) -> None:
        """Drop the content. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._close_when_idle()

    def _less_busy(self) -> None:
        self._busy -= 1
        if self._closed:
            self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._busy:
            return
        self.give_back(self.reserved)
        if self.fd is not None:
            fd, self.fd = self.fd, None
            self._spool.files -= 1
            self._spool.disk.run(lambda: os.close(fd))  # freeing its blocks takes time


class MemoryFile(SpoolFile):
    """A file in memory, for a body that must be a file but that the disk does not take. It is
    charged to the memory budget and may have a share of what is left there."""

    __slots__ = ("_account", "_held", "_why")

    def __init__(self, spool: Spool, account: Account, owner: Owner | None, why: Reason) -> None:
        super().__init__(spool)
        self._why = why  # the disk takes no more
        self._in_memory = True
        self._account = account
        self._held = Holding(account, owner)

    def write(
        self,
        blocks: Sequence[Block],
        offset: int,
        done: Callable[[int, Reason | None], None],
        hasher: hashlib._Hash | None = None,
    ) -> Reason | None:
        """Write at once, since memory does not block; `done` still follows later."""
        size = sum(map(len, blocks))
        if offset + size > self._account.left // _PARTS or not self._held.try_grow(size):
            return self._why
        if hasher is not None:
            for block in blocks:
                hasher.update(block)
        try:
            if self.fd is None:
                self.fd = os.memfd_create("reliability-proxy", os.MFD_CLOEXEC)
                self._spool.files += 1
        except OSError as error:
            self._held.shrink(size)
            return self._spool.failed(error)
        _, written, trouble = _write(self.fd, self._spool.directory, blocks, offset)
        reason: Reason | None = None if trouble is None else "no_space"
        self._spool.disk.soon(lambda: done(written, reason))
        return None

    def take_over(self, other: SpoolFile, size: int, done: Callable[[bool], None]) -> bool:
        """Copy the first `size` bytes of another file; `done(success)` follows. False if there is
        no room for them."""
        source = other.fd
        if source is None or size > self._account.left // _PARTS or not self._held.try_grow(size):
            return False
        self._busy += 1
        other.hold()

        def work() -> int | None:
            return _copy(source, size)

        def finished(fd: int | None) -> None:
            self.fd = fd
            self._spool.files += fd is not None
            other.let_go()
            self._less_busy()
            done(fd is not None)

        self._spool.disk.submit(work, finished)
        return True

    def _close_when_idle(self) -> None:
        if self._busy:
            return
        self._held.clear()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
            self._spool.files -= 1


def _write(
    fd: int | None, directory: Path, blocks: Sequence[Block], offset: int
) -> tuple[int | None, int, OSError | None]:
    """(descriptor, bytes written, error)."""
    written = 0
    try:
        if fd is None:
            fd = open_nameless(directory)
        left: list[memoryview] = [memoryview(block) for block in blocks]
        while left:
            got = os.pwritev(fd, left[:_PIECES], offset + written)
            if not got:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += got
            while left and got >= len(left[0]):
                got -= len(left.pop(0))
            if got:
                left[0] = left[0][got:]
    except OSError as error:
        return fd, written, error
    return fd, written, None


def _copy(source: int, size: int) -> int | None:
    """A file in memory with the first `size` bytes of `source`; None if that fails."""
    fd = None
    try:
        fd = os.memfd_create("reliability-proxy", os.MFD_CLOEXEC)
        at = 0
        while at < size:
            got = os.pwrite(fd, os.pread(source, min(_COPIED, size - at), at), at)
            if not got:
                raise OSError(errno.EIO, "the file has become shorter")
            at += got
    except OSError:
        if fd is not None:
            os.close(fd)
        return None
    return fd


def _read(fd: int, offset: int, size: int) -> bytes | OSError:
    try:
        return os.pread(fd, size, offset) or OSError(errno.EIO, "the file has become shorter")
    except OSError as error:
        return error
