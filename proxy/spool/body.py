"""A body that is kept whole: written once, read any number of times, even while it grows.

Rules:
1. A body stays in memory up to the allowance of the process' budget (256 KiB, less if memory is
   short). A larger one, or any after `to_file`, goes to a nameless file. The content is always the
   first `written` bytes of the file followed by the bytes in memory.
2. Bytes that the disk does not take stay in memory. `full` is then set for good, and the owner
   should stop appending; everything appended so far can be read.
3. `blocked` is back-pressure from the disk: too many bytes wait for it.
4. A body that must be a file (`keep`) moves to a file in memory, with a new `fd`, if the disk takes
   no more and the budget has room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from proxy.core.memory.budget import Holding, Owner
from proxy.spool.blocks import Blocks, cut
from proxy.spool.file import READ, Block, MemoryFile, SpoolError

if TYPE_CHECKING:
    from proxy.spool.file import SpoolFile
    from proxy.spool.spool import Reason, Spool

#: How many times its memory allowance a body may have waiting for the disk, besides the bytes being
#: written, before its sender is blocked.
AHEAD = 4

#: What may frame a body: bytes, or another body.
Framing: TypeAlias = "bytes | SpooledBody"


def length_of(parts: Iterable[Framing]) -> int:
    """Bytes of all of them."""
    return sum(len(part) if isinstance(part, bytes) else part.length for part in parts)


def _no_listener() -> None:
    """Replaces the listener of a closed body."""


class SpooledBody:
    """`size`: bytes of the content so far; `length`: with its frame. `complete`: it will not grow.
    `full`: why no more of it can be kept, or None."""

    __slots__ = (
        "_closed",
        "_digest",
        "_file",
        "_frame",
        "_hashed",
        "_hasher",
        "_in_file",
        "_keep",
        "_limit",
        "_memory",
        "_moving",
        "_on_change",
        "_owner",
        "_spool",
        "_writing",
        "after",
        "before",
        "complete",
        "full",
        "size",
        "written",
    )

    def __init__(
        self,
        spool: Spool,
        on_change: Callable[[], None],
        *,
        owner: Owner | None = None,
        sha256: bool = False,
        limit: int | None = None,
        keep: bool = False,
    ) -> None:
        self._spool = spool
        self._owner = owner
        self._keep = keep
        self._on_change = on_change
        self._memory = Blocks(spool.memory, owner)  # not yet being written
        self._frame = Holding(spool.memory, owner)
        self._writing: list[Block] = []
        self._file: SpoolFile | None = None
        self._in_file = False
        self._moving = False  # the file is being copied to another one
        self._limit = limit
        self._hasher = hashlib.sha256(usedforsecurity=False) if sha256 else None
        self._hashed = 0
        self._digest: bytes | None = None
        self._closed = False
        self.before: tuple[Framing, ...] = ()
        self.after: tuple[Framing, ...] = ()
        self.complete = False
        self.full: Reason | str | None = None
        self.size = 0
        self.written = 0

    # --- writing ----------------------------------------------------------------------------------

    def append(self, pieces: list[bytes]) -> None:
        """Append to the content. All pieces are taken, even if `full` is then set."""
        if self._closed:
            return
        self.size += self._memory.add(pieces)
        if self._limit is not None and self.size > self._limit and self.full is None:
            self.full = "limit"
        if self._in_file or self._memory.size > self._spool.memory.allowance:
            self.to_file()

    def end(self) -> None:
        """Complete the content."""
        self.complete = True

    def frame(self, before: Iterable[Framing], after: Iterable[Framing]) -> None:
        """Set what readers get before and after the content; not part of file, `size` and digest.
        Bodies in it must be complete, and are closed by their owners."""
        self.before, self.after = tuple(before), tuple(after)
        parts = (*self.before, *self.after)
        self._frame.set(sum(len(part) for part in parts if isinstance(part, bytes)))

    def to_file(self) -> None:
        """Write the content to a file from now on. `fd` and `written` follow."""
        self._in_file = True
        if self._writing or self._moving or self._closed:
            return
        if self.full is not None or not self._memory.size:
            return
        if self._file is None:
            self._file = self._spool.file(self._owner)
        hasher = self._hasher if self._hashed == self.written else None
        if hasher is None:
            self._catch_up()  # a file that failed may have hashed some of it
        self._writing = self._memory.move_out()
        size = sum(map(len, self._writing))
        refusal = self._file.write(self._writing, self.written, self._wrote, hasher)
        if refusal is not None:
            self._memory.put_back(self._writing, 0)
            self._writing = []
            self._no_room(refusal)
        elif hasher is not None:
            self._hashed += size

    @property
    def blocked(self) -> bool:
        """Whether the owner should stop appending until `on_change`."""
        return self.writing and self._memory.size > AHEAD * self._spool.memory.allowance

    def _catch_up(self) -> None:
        """Hash what is in memory."""
        if self._hasher is not None:
            for piece in cut(self._memory.blocks, self._hashed - self.written, self.size + 1):
                self._hasher.update(piece)
            self._hashed = self.size

    def _no_room(self, refusal: Reason) -> None:
        """The file takes no more: continue with one in memory, or stop."""
        old = self._file
        instead = self._spool.memory_file(self._owner, refusal) if self._keep else None
        if isinstance(old, MemoryFile) or instead is None:
            self.full = refusal
        elif old is None or not self.written:
            self._replace(instead)
        else:

            def moved(worked: bool) -> None:
                self._moving = False
                if self._closed or not worked:
                    instead.close()
                    self.full = refusal
                else:
                    self._replace(instead)
                if not self._closed:
                    self._on_change()

            self._moving = instead.take_over(old, self.written, moved)
            if not self._moving:
                self.full = refusal

    def _replace(self, file: SpoolFile) -> None:
        if self._file is not None:
            self._file.close()
        self._file = file
        self.to_file()

    def _wrote(self, size: int, refusal: Reason | None) -> None:
        blocks, self._writing = self._writing, []
        if refusal is not None and not self.written and not self._closed:
            # No reader has seen this file yet, so another one can replace it.
            self._memory.put_back(blocks, 0)
            self._no_room(refusal)
            self._on_change()
            return
        self.written += size
        if self._closed:
            self._memory.release(sum(map(len, blocks)))
            return
        self._memory.release(size)
        if refusal is not None:
            self._memory.put_back(blocks, size)
            self._no_room(refusal)
        elif self._memory.size:
            self.to_file()
        self._on_change()

    def keeps(self, size: int) -> bool:
        """Whether a body of `size` bytes would be kept whole, as far as is known."""
        return self.full is None and (self._limit is None or size <= self._limit)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Bytes that a reader returns in total, as of now."""
        return length_of(self.before) + self.size + length_of(self.after)

    @property
    def writing(self) -> bool:
        """Whether some of it is on its way to the file."""
        return bool(self._writing) or self._moving

    @property
    def fd(self) -> int | None:
        """The file's descriptor, from which `written` bytes can be read; None if there is no file.
        `close` closes it: copy it (`os.dup`, `send_fds`) to keep it longer."""
        return self._file.fd if self._file is not None else None

    @property
    def in_file(self) -> bool:
        """Whether all of the content is in the file."""
        return self.fd is not None and self.written == self.size

    def reader(self) -> BodyReader:
        """A new reader, from the beginning, independent of others."""
        return BodyReader(self, self._spool)

    def digest(self) -> bytes | None:
        """The SHA-256 of a complete body made with `sha256`; None while it is being written."""
        if self._hasher is None or self._writing:
            return None
        if self._digest is None:
            self._catch_up()
            self._digest = self._hasher.digest()
        return self._digest

    def in_memory(self, start: int, limit: int) -> list[bytes]:
        """Content from `start` on that is not in the file (for readers)."""
        return cut(self._writing + self._memory.blocks, start - self.written, limit)

    def from_file(
        self, start: int, size: int, done: Callable[[bytes | OSError], None]
    ) -> bytes | None:
        """Content from `start` on that is in the file (for readers)."""
        assert self._file is not None
        return self._file.read(start, size, done)

    def changed(self) -> None:
        """Notify the owner that a reader has what it waited for."""
        if not self._closed:
            self._on_change()

    def close(self) -> None:
        """Release memory and file. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._on_change = _no_listener  # usually a method of our owner: a reference cycle
        self._memory.clear()
        self.frame((), ())
        if self._file is not None:
            self._file.close()


class BodyReader:
    """Reads a body from its beginning; `at` bytes of `body.length` have been returned."""

    __slots__ = ("_body", "_error", "_inner", "_ready", "_spool", "_waiting", "at")

    def __init__(self, body: SpooledBody, spool: Spool) -> None:
        self._body = body
        self._spool = spool
        self._ready: bytes | None = None
        self._error: OSError | None = None
        self._waiting = False
        self._inner: BodyReader | None = None  # of a body in the frame
        self.at = 0

    @property
    def done(self) -> bool:
        """Whether everything has been returned and the body is complete."""
        return self._body.complete and self.at == self._body.length

    @property
    def caught_up(self) -> bool:
        """Whether everything appended so far has been returned."""
        body = self._body
        return self.at == (body.length if body.complete else length_of(body.before) + body.size)

    def take(self, limit: int = READ) -> list[bytes]:
        """The next bytes, about `limit` at most; none at the end, or while there are none. Raises
        `SpoolError` if they cannot be read back."""
        pieces = self._take(limit)
        self.at += sum(map(len, pieces))
        return pieces

    def _take(self, limit: int) -> list[bytes]:
        body = self._body
        start = self.at - length_of(body.before)
        if start < 0:
            return self._take_frame(body.before, self.at, limit)
        if start >= body.size:
            return self._take_frame(body.after, start - body.size, limit) if body.complete else []
        if start >= body.written:
            return body.in_memory(start, limit)
        if self._error is not None:
            raise SpoolError(f"a spooled body cannot be read: {self._error.strerror}")
        if self._ready is not None:
            piece, self._ready = self._ready, None
            return [piece]
        if not self._waiting:
            found = body.from_file(start, min(READ, body.written - start), self._came)
            if found is not None:
                return [found]
            self._waiting = True
        return []

    def _take_frame(self, parts: Sequence[Framing], start: int, limit: int) -> list[bytes]:
        for part in parts:
            size = length_of((part,))
            if start >= size:
                start -= size
            elif isinstance(part, bytes):
                return [part[start:]]
            else:
                inner = self._inner
                if inner is None or inner._body is not part or inner.at != start:
                    inner = self._inner = part.reader()
                return inner.take(limit)
        return []

    def _came(self, result: bytes | OSError) -> None:
        self._waiting = False
        if isinstance(result, OSError):
            self._error = result
        else:
            self._ready = result
        self._body.changed()
