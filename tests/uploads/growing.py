"""A file that comes while it is examined, without a process or a descriptor."""

from __future__ import annotations

from proxy.uploads.probe.source import Source


class Growing(Source):
    """Of `data` just so much is there as was waited for; `waits` counts how often that was."""

    def __init__(self, data: bytes) -> None:
        super().__init__(-1, 0, not data, self._come)
        self._data = data
        self.waits = 0

    def whole_one(self) -> Growing:
        """The same, all of it there."""
        self.drain()
        return self

    def _come(self, size: int) -> tuple[int, bool]:
        self.waits += 1
        return min(size, len(self._data)), size >= len(self._data)

    def _read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]
