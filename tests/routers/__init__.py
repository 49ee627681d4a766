"""Routers of real frameworks, asked which handler a request target reaches.

All have the same four resources behind `HANDLERS`; each adapter hands the target to the framework
as a server of that world would (what is decoded where is the point). An adapter takes a method and
a raw target and answers with the name of the handler that ran, or None.
"""

from __future__ import annotations

from collections.abc import Callable

#: (name, method or None for all, path as in our config)
HANDLERS: tuple[tuple[str, str | None, str], ...] = (
    ("create", "POST", "/make-video"),
    ("list", "GET", "/jobs"),
    ("read", "GET", "/jobs/{id}"),
    ("delete", "DELETE", "/jobs/{id}"),
    ("part", "POST", "/jobs/{id}/parts/{part}"),
    ("file", "PUT", "/files/{rest:*}"),
)

Router = Callable[[str, str], str | None]
