"""What all spooled bodies of a process share: the directory, the bound, the counters, the state."""

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

#: Why there is no room: the bound `spool.max_size`, a disk or quota that is full, a directory that
#: cannot be written to, any other error of the disk, or a client that has its share of the bound.
Reason = Literal["max_size", "no_space", "no_directory", "disk_error", "client_share"]
REASONS: tuple[Reason, ...] = (
    "max_size",
    "no_space",
    "no_directory",
    "disk_error",
    "client_share",
)

#: How many times what is left of the bound one client may have in files, while others have some
#: there and while none has: a fifth is always left for those who come.
SHARE, SHARE_ALONE = 1, 4

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS})

#: Seconds for which the disk is left alone after an error.
_PAUSE = 1.0

#: Seconds for which a spool that fills again and again is not logged again.
_QUIET = 10.0

#: Share of the bound below which a spool that was full has room again.
_ROOM_AGAIN = 0.8


def client_of(owner: Owner | None) -> object:
    """Whose share of the spool `owner` uses; None: nobody's, as over a unix socket."""
    return (owner.who or None) if owner is not None else None


class Spool:
    """`used` and `files` are what nameless files hold now, in bytes and by number; `refused` counts
    by reason how often a body found no room. `full` is the reason why there is none now."""

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
        self._logged_at = float("-inf")  # when it was last logged as full
        self._logged = False  # whether this time was
        self.directory = directory
        self.max_size = max_size
        self.memory = memory
        self.scratch = memoryview(bytearray(READ))  # what the loop reads into
        self.disk = DiskThreads(threads) if threads else DiskThreads()
        self.used = 0
        self.files = 0
        self.spooled = 0  # bytes ever written to files
        self.refused: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self.full: Reason | None = None
        self._shares: dict[object, int] = {}  # what each client has in files, in bytes

    def configure(self, directory: Path, max_size: int) -> None:
        """Take new rules at a reload; files that are open stay where they are."""
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
        """A body to be kept whole. `owner` (a client connection) answers for its memory; `limit`:
        bytes beyond which it is not worth keeping. `keep`: it must be a file, if need be one in
        memory."""
        return SpooledBody(self, on_change, owner=owner, sha256=sha256, limit=limit, keep=keep)

    def memory_file(self, owner: Owner | None, why: Reason) -> MemoryFile | None:
        """For a body that must be a file where the disk takes nothing, and `why`; None where the
        system has no such files."""
        if not hasattr(os, "memfd_create"):
            return None
        return MemoryFile(self, self.memory.sibling("memory_files"), owner, why)

    def queue(self, on_change: Callable[[], None], *, owner: Owner | None = None) -> SpooledQueue:
        """A body to be read once, while it is written."""
        return SpooledQueue(self, on_change, owner)

    def check(self) -> None:
        """See whether a file can be opened in the directory; the log and the counters have it where
        that fails. Called from the event loop, which does not wait for the disk."""
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
        """Whether a body of `size` bytes is worth beginning with; a refusal is counted."""
        if size <= MOST:
            return True
        client = client_of(owner)
        if self.reserve(size, client) is not None:
            return False
        self.release(size, client)
        return True

    def share_left(self, client: object) -> int:
        """Bytes that `client` may have in files beside those it has (dynamic thresholds, as in the
        memory budget); what is left of the bound for all where it is None."""
        left = max(0, self.max_size - self.used)
        if client is None:
            return left
        has = self._shares.get(client, 0)
        others = len(self._shares) > (client in self._shares)
        return min(left, left * (SHARE if others else SHARE_ALONE) - has)

    # --- what the files call ----------------------------------------------------------------------

    def reserve(self, size: int, client: object = None) -> Reason | None:
        """Count `size` bytes of `client`'s that are about to be written, or say why they must not
        be."""
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
        """Bytes that are in no file any more, or never got there."""
        self.used -= size
        if client is not None and size:
            self._shares[client] -= size
            if not self._shares[client]:
                del self._shares[client]
        if self.full == "max_size" and self.used <= self.max_size * _ROOM_AGAIN:
            self._room_again()

    def wrote(self, size: int) -> None:
        """The disk has taken `size` bytes."""
        self.spooled += size
        if self.full not in (None, "max_size"):
            self._room_again()

    def failed(self, error: OSError) -> Reason:
        """The disk has refused: it is left alone for a moment."""
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
        """A nameless file, opened when something is written to it, in the share of `owner`."""
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
