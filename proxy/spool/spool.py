"""What all spooled bodies of a process share: directory, limit, counters and state."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from proxy.core.clock import Clock
from proxy.core.memory.budget import MOST, Account, Owner
from proxy.core.process.shortage import Shortages
from proxy.spool.body import SpooledBody
from proxy.spool.file import READ, MemoryFile, SpoolFile, open_nameless
from proxy.spool.queue import SpooledQueue
from proxy.spool.threads import DiskThreads

logger = logging.getLogger(__name__)

#: Why there is no room: the limit `spool.max_size`, a full disk or quota, a directory that is not
#: writable, any other disk error, or a client that has used up its share of the limit.
Reason = Literal["max_size", "no_space", "no_directory", "disk_error", "client_share"]
REASONS: tuple[Reason, ...] = (
    "max_size",
    "no_space",
    "no_directory",
    "disk_error",
    "client_share",
)

#: How many times the room that is left one client may have in files, while others have some there
#: and while none has. So a fifth always remains for others.
SHARE, SHARE_ALONE = 1, 4

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS})

#: Seconds without writes after a disk error.
_PAUSE = 1.0

#: Minimum seconds between two log lines about a full spool.
_QUIET = 10.0

#: Fraction of the limit below which a spool that was full has room again.
_ROOM_AGAIN = 0.8


def client_of(owner: Owner | None) -> object:
    """The client whose share of the spool `owner` uses; None over a unix socket."""
    return (owner.who or None) if owner is not None else None


class Spool:
    """`used`, `files`: bytes in nameless files and their number; `refused`: how often a body found
    no room, by reason. `full`: why there is no room now, or None."""

    def __init__(
        self,
        directory: Path,
        max_size: int,
        memory: Account,
        clock: Clock,
        shortages: Shortages | None = None,
        *,
        threads: int = 0,
    ) -> None:
        self._clock = clock
        self._shortages = shortages or Shortages()
        self._retry_at = 0.0
        self._logged_at = float("-inf")  # when a full spool was last logged
        self._logged = False  # whether the current shortage was
        self.directory = directory
        self.max_size = max_size
        self.memory = memory
        self.scratch = memoryview(bytearray(READ))  # the loop's read buffer
        self.disk = DiskThreads(threads) if threads else DiskThreads()
        self.used = 0
        self.files = 0
        self.spooled = 0  # bytes ever written to files
        self.refused: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self.full: Reason | None = None
        self._shares: dict[object, int] = {}  # bytes in files by client

    def configure(self, directory: Path, max_size: int) -> None:
        """Take new settings at a reload; open files stay where they are."""
        self.directory = directory
        self.max_size = max_size

    def body(
        self,
        on_change: Callable[[], None],
        *,
        owner: Owner | None = None,
        sha256: bool = False,
        limit: int | None = None,
        keep: bool = False,
    ) -> SpooledBody:
        """A body to be kept whole. `owner`: the client connection that its memory is charged to;
        `limit`: bytes beyond which it is not kept. `keep`: it must be a file, if need be one in
        memory."""
        return SpooledBody(self, on_change, owner=owner, sha256=sha256, limit=limit, keep=keep)

    def memory_file(self, owner: Owner | None, why: Reason) -> MemoryFile | None:
        """A file for a body that must be one although the disk takes no more (`why`); None if the
        system has no files in memory."""
        if not hasattr(os, "memfd_create"):
            return None
        return MemoryFile(self, self.memory.sibling("memory_files"), owner, why)

    def queue(self, on_change: Callable[[], None], *, owner: Owner | None = None) -> SpooledQueue:
        """A body to be read once, while it is written."""
        return SpooledQueue(self, on_change, owner)

    def check(self) -> None:
        """Try to open a file in the directory, and log and count a failure. Called from the event
        loop, which does not wait for the disk."""
        directory = self.directory

        def work() -> OSError | None:
            try:
                os.close(open_nameless(directory))
            except OSError as error:
                return error
            return None

        def done(error: OSError | None) -> None:
            if error is not None:
                self.failed(error)

        self.disk.submit(work, done)

    def admits(self, size: int, owner: Owner | None = None) -> bool:
        """Whether there is room for a body of `size` bytes; a refusal is counted."""
        if size <= MOST:
            return True
        client = client_of(owner)
        if self.reserve(size, client) is not None:
            return False
        self.release(size, client)
        return True

    def share_left(self, client: object) -> int:
        """Bytes that `client` may add to its files (dynamic thresholds, as in the memory budget);
        all that is left of the limit if it is None."""
        left = max(0, self.max_size - self.used)
        if client is None:
            return left
        has = self._shares.get(client, 0)
        others = len(self._shares) > (client in self._shares)
        return min(left, left * (SHARE if others else SHARE_ALONE) - has)

    # --- what the files call ----------------------------------------------------------------------

    def reserve(self, size: int, client: object = None) -> Reason | None:
        """Reserve `size` bytes for `client`, or return why they must not be written."""
        if self.used + size > self.max_size:
            self._refuse("max_size", f"all of its {self.max_size} bytes are in use")
            return "max_size"
        if self.full not in (None, "max_size") and self._clock.monotonic() < self._retry_at:
            assert self.full is not None
            self.refused[self.full] += 1
            return self.full
        if client is not None and size:
            if size > self.share_left(client):
                self.refused["client_share"] += 1
                return "client_share"
            self._shares[client] = self._shares.get(client, 0) + size
        self.used += size
        return None

    def release(self, size: int, client: object = None) -> None:
        """Release bytes that are no longer in a file, or never got there."""
        self.used -= size
        if client is not None and size:
            self._shares[client] -= size
            if not self._shares[client]:
                del self._shares[client]
        if self.full == "max_size" and self.used <= self.max_size * _ROOM_AGAIN:
            self._room_again()

    def wrote(self, size: int) -> None:
        """Count `size` bytes that the disk has taken."""
        self.spooled += size
        if self.full not in (None, "max_size"):
            self._room_again()

    def failed(self, error: OSError) -> Reason:
        """Record a disk error; there are no writes for a second."""
        self._retry_at = self._clock.monotonic() + _PAUSE
        self._shortages.check(error, "a file of the spool")
        reason: Reason = "disk_error"
        if error.errno in _NO_SPACE:
            reason = "no_space"
        elif error.errno in _NO_DIRECTORY:
            reason = "no_directory"
        self._refuse(reason, error.strerror or str(error))
        return reason

    def file(self, owner: Owner | None = None) -> SpoolFile:
        """A nameless file, opened at the first write, in the share of `owner`."""
        return SpoolFile(self, client_of(owner))

    def _refuse(self, reason: Reason, detail: str) -> None:
        self.refused[reason] += 1
        if self.full == reason:
            return
        now = self._clock.monotonic()
        self.full = reason
        self._logged = now >= self._logged_at + _QUIET
        if not self._logged:
            return
        self._logged_at = now
        logger.warning(
            "spool full: bodies are passed on as they come",
            extra={"reason": reason, "detail": detail, "directory": str(self.directory)},
        )

    def _room_again(self) -> None:
        self.full = None
        if self._logged:
            logger.info("spool has room again", extra={"directory": str(self.directory)})
