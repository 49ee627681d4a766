"""A body that is read once, while it is written: the bytes that a slow reader has not taken yet.

Their order is: unread bytes of the file, bytes being written, bytes in memory. As long as the
reader keeps up, nothing touches a disk. Once the reader has caught up with the file, the file is
dropped and a new one begins, so a body may be longer than any limit.

One body may have no more in files than what is left for all others (dynamic thresholds, as in the
shared buffers of switches): a slow download cannot use up the spool. Nor can many of one client,
by the same rule (`Spool.share_left`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.core.memory.budget import Owner
from proxy.spool.blocks import Blocks, cut
from proxy.spool.body import AHEAD
from proxy.spool.file import READ, Block, SpoolError

if TYPE_CHECKING:
    from proxy.spool.file import SpoolFile
    from proxy.spool.spool import Reason, Spool


class SpooledQueue:
    """`size`: bytes put and not yet taken. `blocked`: put no more until something is taken, or
    until `on_change`."""

    __slots__ = (
        "_closed",
        "_end",
        "_error",
        "_file",
        "_full",
        "_memory",
        "_on_change",
        "_owner",
        "_reading",
        "_ready",
        "_spool",
        "_start",
        "_taken",
        "_writing",
        "size",
    )

    def __init__(
        self, spool: Spool, on_change: Callable[[], None], owner: Owner | None = None
    ) -> None:
        self._spool = spool
        self._on_change = on_change
        self._owner = owner
        self._memory = Blocks(spool.memory, owner)
        self._writing: list[Block] = []
        self._taken = 0  # bytes of `_writing` that were read meanwhile
        self._file: SpoolFile | None = None
        self._start = self._end = 0  # the unread range of the file
        self._full = False
        self._reading = False
        self._ready: bytes | None = None
        self._error: OSError | None = None
        self._closed = False
        self.size = 0

    def put(self, pieces: list[bytes]) -> None:
        """Append bytes. All pieces are taken, even if `blocked` is then set."""
        self.size += self._memory.add(pieces)
        if self._memory.size > self._spool.memory.allowance:
            self._spill()

    @property
    def blocked(self) -> bool:
        """Whether there is no room for more."""
        allowance = self._spool.memory.allowance
        return self._memory.size > (allowance if self._full else AHEAD * allowance)

    def take(self) -> list[bytes]:
        """The next bytes, about 256 KiB at most; none where there are none yet: then `on_change`
        follows if `size` is not 0. Raises `SpoolError`."""
        pieces = self._take()
        self.size -= sum(map(len, pieces))
        return pieces

    def close(self) -> None:
        """Drop what is left. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._memory.clear()
        if self._file is not None:
            self._file.close()

    def _take(self) -> list[bytes]:
        if self._start < self._end:
            piece = self._take_from_file()
            return [piece] if piece is not None else []
        if self._writing:
            pieces = cut(self._writing, self._taken, READ)
            if pieces:
                self._taken += sum(map(len, pieces))
                return pieces
        pieces = cut(self._memory.blocks, 0, READ)
        if pieces:
            size = sum(map(len, pieces))
            self._memory.put_back(self._memory.move_out(), size)
            self._memory.release(size)
            if self._full and not self.blocked:
                self._rewind()
        return pieces

    def _take_from_file(self) -> bytes | None:
        if self._error is not None:
            raise SpoolError(f"a spooled body cannot be read: {self._error.strerror}")
        piece, self._ready = self._ready, None
        if piece is None and not self._reading:
            assert self._file is not None
            size = min(READ, self._end - self._start)
            piece = self._file.read(self._start, size, self._came)
            self._reading = piece is None
        if piece is not None:
            self._start += len(piece)
            self._rewind()
        return piece

    def _came(self, result: bytes | OSError) -> None:
        self._reading = False
        if isinstance(result, OSError):
            self._error = result
        else:
            self._ready = result
        if not self._closed:
            self._on_change()

    def _rewind(self) -> None:
        """Drop a file that has been read completely."""
        if self._start != self._end or self._writing:
            return
        self._start = self._end = 0
        self._full = False
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        if self._writing or self._full or self._closed:
            return
        if self._file is None:
            self._file = self._spool.file(self._owner)
        spool, size, file = self._spool, self._memory.size, self._file
        if size > min(spool.max_size - spool.used - file.reserved, spool.share_left(file.client)):
            self._full = True  # beyond its share; others may still have room
            return
        self._writing, self._taken = self._memory.move_out(), 0
        if self._file.write(self._writing, self._end, self._wrote) is not None:
            self._full = True
            self._memory.put_back(self._writing, 0)
            self._writing = []

    def _wrote(self, size: int, refusal: Reason | None) -> None:
        blocks, self._writing = self._writing, []
        whole = sum(map(len, blocks))
        if self._closed:
            self._memory.release(whole)
            return
        self._end += size
        self._start += min(self._taken, size)
        kept = max(size, self._taken)  # bytes of the blocks that memory no longer needs
        self._memory.release(kept)
        if refusal is not None:
            self._full = True
            self._memory.put_back(blocks, kept)
        elif self._memory.size > self._spool.memory.allowance:
            self._spill()
        self._rewind()
        self._on_change()
