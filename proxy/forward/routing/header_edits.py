"""Header fields that a route sets and removes (`headers:`), compiled at load. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class FieldEdits:
    """A route's changes to the fields of a head. `added` are whole lines, each preceded by CRLF."""

    __slots__ = ("_removed", "added")

    def __init__(self, fields: Mapping[str, str], remove: Sequence[str]) -> None:
        self._removed = frozenset(name.lower().encode() for name in (*fields, *remove))
        self.added = b"".join(
            f"\r\n{name}: {value}".encode("latin-1") for name, value in fields.items()
        )

    def then(self, later: FieldEdits) -> FieldEdits:
        """These edits followed by `later`."""
        both = FieldEdits({}, ())
        both._removed = self._removed | later._removed
        kept = later.keep(self.added.split(b"\r\n")[1:])
        both.added = b"".join(b"\r\n" + line for line in kept) + later.added
        return both

    def keep(self, lines: Sequence[bytes]) -> list[bytes]:
        """The lines whose fields are neither removed nor set."""
        return [
            line for line in lines if line.partition(b":")[0].strip().lower() not in self._removed
        ]

    def of_request(self, fields: bytes) -> bytes:
        """Edit a request's fields, each line preceded by CRLF."""
        kept = self.keep(fields.split(b"\r\n")[1:])
        return b"".join(b"\r\n" + line for line in kept) + self.added

    def of_response(self, head: bytes) -> bytes:
        """Edit a status line and its fields, each line followed by CRLF."""
        status, *lines, _ = head.split(b"\r\n")
        return b"\r\n".join((status, *self.keep(lines))) + self.added + b"\r\n"
