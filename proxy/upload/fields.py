"""The fields of a form beside its file: as they go upstream, and what is in them."""

from __future__ import annotations

import hashlib

from proxy.upload import disposition


class Fields:
    """`before` and `behind` are those before and behind the file, written anew; `content` has name
    and SHA-256 of the value of each, where that is wanted. `size`: bytes of all values."""

    def __init__(self, *, digest: bool) -> None:
        self.before = bytearray()
        self.behind = bytearray()
        self.content: list[tuple[bytes, bytes]] = []
        self.size = 0
        self._out = self.before
        self._digest = digest
        self._name = b""
        self._value = hashlib.sha256(usedforsecurity=False)

    def begin(self, name: str, *, behind: bool, boundary: bytes) -> None:
        """A field, `behind` the file or before it."""
        self._out = self.behind if behind else self.before
        self._out += b"--" + boundary + b"\r\n" + disposition.write_disposition(name) + b"\r\n"
        if self._digest:
            self._name = name.encode()
            self._value = hashlib.sha256(usedforsecurity=False)

    def add(self, data: bytes) -> None:
        """The next bytes of its value."""
        self._out += data
        self.size += len(data)
        if self._digest:
            self._value.update(data)

    def end(self) -> None:
        """The field is complete."""
        self._out += b"\r\n"
        if self._digest:
            self.content.append((self._name, self._value.digest()))

    def clear(self) -> int:
        """Forget the values; how many bytes they were."""
        self._out = self.before = bytearray()
        self.behind = bytearray()
        size, self.size = self.size, 0
        return size
