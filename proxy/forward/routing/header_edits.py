"""Header fields that a route sets and removes (`headers:`), compiled at load. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class FieldEdits:
    """What a route does to the fields of a head. `added` are whole lines, a CRLF before each."""

    __slots__ = ("_removed", "added")

    def __init__(self, fields: Mapping[str, str], remove: Sequence[str]) -> None:
        self._removed = frozenset(name.lower().encode() for name in (*fields, *remove))
        self.added = b"".join(
            f"\r\n{name}: {value}".encode("latin-1") for name, value in fields.items()
        )

    def then(self, later: FieldEdits) -> FieldEdits:
        """Both, one after the other."""
        both = FieldEdits({}, ())
        both._removed = self._removed | later._removed
        kept = later.keep(self.added.split(b"\r\n")[1:])
        both.added = b"".join(b"\r\n" + line for line in kept) + later.added
        return both

    def keep(self, lines: Sequence[bytes]) -> list[bytes]:
        """The lines of fields that are neither removed nor set anew."""
        return [
            line for line in lines if line.partition(b":")[0].strip().lower() not in self._removed
        ]

    def of_request(self, fields: bytes) -> bytes:
        """The block of a request's fields, a CRLF before each line."""
        kept = self.keep(fields.split(b"\r\n")[1:])
        return b"".join(b"\r\n" + line for line in kept) + self.added

    def of_response(self, head: bytes) -> bytes:
        """A status line and its fields, a CRLF after each line."""
        status, *lines, _ = head.split(b"\r\n")
        return b"\r\n".join((status, *self.keep(lines))) + self.added + b"\r\n"
