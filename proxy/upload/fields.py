"""The fields of a form beside its file: as they go upstream, and what is in them."""

from __future__ import annotations

import hashlib
from typing import TypedDict, Unpack

from proxy.memory_budget import Holding
from proxy.spool import SpooledBody
from proxy.upload import disposition
from proxy.upload.form import Part


class Place(TypedDict):
    """Where a part goes: `behind` the file or before it, after which `boundary`. `raw`: its name
    goes as it came, whatever its charset; else it is written in UTF-8."""

    behind: bool
    boundary: bytes
    raw: bool


class Fields:
    """`before` and `behind` are those before and behind the file, written anew; `content` has name
    and SHA-256 of the value of each, where that is wanted. `held` counts their bytes."""

    def __init__(self, held: Holding, *, digest: bool) -> None:
        self.before: list[bytearray | SpooledBody] = []
        self.behind: list[bytearray | SpooledBody] = []
        self.content: list[tuple[bytes, bytes]] = []
        self._held = held
        self._out = bytearray()
        self._digest = digest
        self._name = b""
        self._value = hashlib.sha256(usedforsecurity=False)

    def begin(self, part: Part, **place: Unpack[Place]) -> None:
        """A field."""
        self._open(part, place)
        if part.text_type is not None:
            self._out += b"Content-Type: " + part.text_type + b"\r\n"
        self._out += b"\r\n"
        if self._digest:
            self._name = part.name.encode()
            self._value = hashlib.sha256(usedforsecurity=False)

    def add(self, data: bytes) -> None:
        """The next bytes of its value."""
        self._out += data
        self._held.grow(len(data))
        if self._digest:
            self._value.update(data)

    def end(self) -> None:
        """The field is complete."""
        self._out += b"\r\n"
        if self._digest:
            self.content.append((self._name, self._value.digest()))

    def unfilled(self, part: Part, **place: Unpack[Place]) -> None:
        """A file input that was left empty, as browsers send it."""
        self._open(part, place, filename="")
        self._out += b"Content-Type: application/octet-stream\r\n\r\n\r\n"

    def file(
        self, part: Part, body: SpooledBody, name: str, kind: bytes, **place: Unpack[Place]
    ) -> None:
        """A file of that name and type, which `body` holds."""
        self._open(part, place, name)
        self._out += b"Content-Type: " + kind + b"\r\n\r\n"
        self._out = bytearray(b"\r\n")
        (self.behind if place["behind"] else self.before).extend((body, self._out))

    def _open(self, part: Part, place: Place, filename: str | None = None) -> None:
        self._out = bytearray()
        (self.behind if place["behind"] else self.before).append(self._out)
        name = part.raw_name
        if not place["raw"]:
            name = disposition.decode(name.decode("latin-1")).encode()
        line = disposition.write_disposition(name, filename)
        self._out += b"--" + place["boundary"] + b"\r\n" + line

    def clear(self) -> None:
        """Forget the values."""
        self.before, self.behind, self._out = [], [], bytearray()
        self._held.clear()
