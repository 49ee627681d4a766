"""Bytes in memory as a list of blocks: not too small, rarely copied, and accounted for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.memory.budget import Account, Holding, Owner

if TYPE_CHECKING:
    from proxy.spool.file import Block

#: Smaller pieces are joined into blocks of up to `_JOINED`: chunks may arrive by the thousand.
_SMALL, _JOINED = 4 * 1024, 64 * 1024


class Blocks:
    """A growing list of blocks. Their bytes, and those moved out and not yet released, are charged
    to `owner` in the process' memory budget."""

    __slots__ = ("_held", "blocks", "size")

    def __init__(self, memory: Account, owner: Owner | None) -> None:
        self._held = Holding(memory, owner)
        self.blocks: list[Block] = []
        self.size = 0

    def add(self, pieces: list[bytes]) -> int:
        """Append `pieces`. Returns their size in bytes."""
        if len(pieces) > 8:
            pieces = [b"".join(pieces)]
        blocks, added = self.blocks, 0
        for piece in pieces:
            size = len(piece)
            if not size:
                continue
            added += size
            last = blocks[-1] if blocks else None
            if size >= _SMALL:
                blocks.append(piece)
            elif isinstance(last, bytearray) and len(last) + size <= _JOINED:
                last += piece
            else:
                blocks.append(bytearray(piece))
        self.size += added
        self._held.grow(added)
        return added

    def put_back(self, blocks: list[Block], skip: int) -> None:
        """Put `blocks`, less their first `skip` bytes, back in front of all others. They are still
        charged (`move_out`)."""
        left: list[Block] = []
        for block in blocks:
            if skip >= len(block):
                skip -= len(block)
                continue
            left.append(bytes(block[skip:]) if skip else block)
            skip = 0
        self.blocks[:0] = left
        self.size += sum(map(len, left))

    def move_out(self) -> list[Block]:
        """Remove and return all blocks. They stay charged until `release`."""
        blocks, self.blocks, self.size = self.blocks, [], 0
        return blocks

    def release(self, size: int) -> None:
        """Stop charging for `size` bytes that were moved out."""
        self._held.shrink(size)

    def clear(self) -> None:
        """Drop everything."""
        self._held.shrink(self.size)
        self.blocks, self.size = [], 0


def cut(blocks: list[Block], start: int, limit: int) -> list[bytes]:
    """Up to `limit` bytes of `blocks` from `start` on."""
    out: list[bytes] = []
    for block in blocks:
        size = len(block)
        if start >= size:
            start -= size
            continue
        piece = bytes(block[start : start + limit]) if start or size > limit else bytes(block)
        start = 0
        out.append(piece)
        limit -= len(piece)
        if limit <= 0:
            break
    return out
