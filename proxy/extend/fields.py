"""Header fields that a stage sets: what may be in them, and how much of it."""

from __future__ import annotations

import re

from proxy.core.headers import NOT_EDITABLE

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")

#: What servers and clients take: 8 KiB of one field (aiohttp, nginx), and 32 KiB of ours together.
LONGEST, MOST = 8000, 32 * 1024


def check_value(name: str, value: str) -> None:
    if len(value) > LONGEST:
        raise ValueError(f"{name} has {len(value)} characters, {LONGEST} at most")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value for {name} has characters that no field may have")


class Edits:
    """Header fields to set and to remove. Raises `ValueError` for those that belong to framing,
    connection or proxy, for values that no field may have, and for too much."""

    def __init__(self) -> None:
        self._room = MOST
        self.set: dict[str, str] = {}
        self.removed: set[str] = set()
        self.added: list[tuple[str, str]] = []

    def put(self, name: str, value: str) -> None:
        """One field instead of all of that name."""
        self._check(name, value)
        self.set[name] = value

    def add(self, name: str, value: str) -> None:
        """One more field of that name."""
        self._check(name, value)
        self.added.append((name, value))

    def drop(self, name: str) -> None:
        """No field of that name."""
        self._check(name)
        self.removed.add(name)

    def _check(self, name: str, value: str = "") -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header field")
        if name.lower() in NOT_EDITABLE:
            raise ValueError(f"{name} belongs to the proxy and cannot be changed")
        check_value(name, value)
        self._room -= len(name) + len(value)
        if self._room < 0:
            raise ValueError(f"the fields that are set have more than {MOST} bytes")
