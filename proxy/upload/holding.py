"""What an upload holds back from its upstream: until it is enough, or all uploads hold too much."""

from __future__ import annotations

#: Bytes that all uploads of a process together may hold back.
ALL_TOGETHER = 64 * 1024 * 1024

_SMALL = 4 * 1024  # bytes of a piece that is copied rather than kept as it is


class Total:
    """Bytes held back by all uploads."""

    def __init__(self) -> None:
        self.size = 0


class Holding:
    """The pieces of one upload, those before the file and those from there on. `size`: bytes."""

    def __init__(self, enough: int, total: Total) -> None:
        self._enough = enough
        self._total = total
        self._before: list[bytes | bytearray] = []
        self._from_file: list[bytes | bytearray] = []
        self.size = 0

    @property
    def enough(self) -> bool:
        """Whether there is no reason to hold more back."""
        return self.size >= self._enough or self._total.size > ALL_TOGETHER

    def add(self, data: bytes, *, before_file: bool) -> None:
        """Hold `data` back, too."""
        self.size += len(data)
        self._total.size += len(data)
        pieces = self._before if before_file else self._from_file
        if len(data) > _SMALL:
            pieces.append(data)
        elif pieces and isinstance(pieces[-1], bytearray):
            pieces[-1] += data  # a piece of its own costs forty bytes beside its few
        else:
            pieces.append(bytearray(data))

    def take(self, between: bytes) -> list[bytes]:
        """All of it, with `between` before the file; nothing is held any more."""
        out = [bytes(piece) for piece in self._before]
        if between:
            out.append(between)
        out += (bytes(piece) for piece in self._from_file)
        self.drop()
        return out

    def drop(self) -> None:
        """Forget it all."""
        self._before.clear()
        self._from_file.clear()
        self._total.size -= self.size
        self.size = 0
