"""Header fields that a stage sets, and their limits."""

from __future__ import annotations

import re

from proxy.core.headers import NOT_EDITABLE

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")

#: Servers and clients accept 8 KiB per field (aiohttp, nginx); all fields of a stage: 32 KiB.
LONGEST, MOST = 8000, 32 * 1024


def check_value(name: str, value: str) -> None:
    if len(value) > LONGEST:
        raise ValueError(f"{name} has {len(value)} characters, {LONGEST} at most")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value for {name} has characters that are not allowed in a field")


class Edits:
    """Header fields to set and to remove. Raises `ValueError` for fields that belong to framing,
    the connection or the proxy, for invalid values, and for too many bytes."""

    def __init__(self) -> None:
        self._room = MOST
        self.set: dict[str, str] = {}
        self.removed: set[str] = set()
        self.added: list[tuple[str, str]] = []

    def put(self, name: str, value: str) -> None:
        """Replace all fields of that name with one."""
        self._check(name, value)
        self.set[name] = value

    def add(self, name: str, value: str) -> None:
        """Add a field of that name."""
        self._check(name, value)
        self.added.append((name, value))

    def drop(self, name: str) -> None:
        """Remove all fields of that name."""
        self._check(name)
        self.removed.add(name)

    def _check(self, name: str, value: str = "") -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header field")
        if name.lower() in NOT_EDITABLE:
            raise ValueError(f"{name} belongs to the proxy and cannot be changed")
        check_value(name, value)
        self._room -= len(name) + len(value)
        if self._room < 0:
            raise ValueError(f"the fields that are set have more than {MOST} bytes")
