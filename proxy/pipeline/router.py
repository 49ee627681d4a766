"""Which route a request takes: the first in file order whose method and path match.

All routes of a listener become one regular expression over `METHOD path`, so that a match is one
call into C however many routes there are. Matching sees the path as an application would after
percent-decoding (RFC 3986 §6.2.2): `/%6dake-video` must not slip past the checks of `/make-video`.
What is forwarded stays as the client wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote

from proxy.errors import MethodNotAllowed, NoRoute

_SEGMENT = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:\*)?\}")

T = TypeVar("T")


@dataclass(frozen=True)
class Pattern:
    """A route's path: its regular expression and the names of its parameters, in order."""

    expression: str
    parameters: tuple[str, ...]


def compile_pattern(path: str) -> Pattern:
    """`/jobs/{job_id}` or `/files/{rest:*}`. The config loader has checked the syntax."""
    expression, names, at = "", [], 0
    for match in _SEGMENT.finditer(path):
        expression += re.escape(path[at : match.start()])
        expression += "(.*)" if match[2] else "([^/]+)"
        names.append(match[1])
        at = match.end()
    return Pattern(expression + re.escape(path[at:]), tuple(names))


class RouteTable(Generic[T]):
    """Routes of one listener: `(methods or None, path, what)` in file order."""

    def __init__(self, routes: Iterable[tuple[Sequence[str] | None, str, T]]) -> None:
        self._routes: list[tuple[Sequence[str] | None, re.Pattern[str], T]] = []
        self._by_group: dict[int, tuple[T, tuple[str, ...]]] = {}
        alternatives, group = [], 1
        for methods, path, what in routes:
            pattern = compile_pattern(path)
            method = "|".join(map(re.escape, methods)) if methods else "[^ ]+"
            # `*` is the server as a whole (OPTIONS): it is every path's, so the catch-all's.
            extra = r"|\*" if path == "/{rest:*}" else ""
            alternatives.append(f"((?:{method}) (?:{pattern.expression}{extra}))")
            self._by_group[group] = (what, pattern.parameters)
            self._routes.append((methods, re.compile(pattern.expression, re.DOTALL), what))
            group += 1 + len(pattern.parameters)
        self._match = re.compile("|".join(alternatives), re.DOTALL).fullmatch

    def match(self, method: str, target: str) -> tuple[T, re.Match[str], int]:
        """The route for `target` (origin-form or `*`), with the match and its group.

        Raises `NoRoute`, or `MethodNotAllowed` with what would be allowed.
        """
        path = target.partition("?")[0]
        if "%" in path or "/." in path:
            path = normalise(path)
        found = self._match(f"{method} {path}")
        if found is None:
            raise self._refusal(method, path)
        # The outermost group of the alternative that matched is the last one to close.
        group = found.lastindex
        assert group is not None
        return self._by_group[group][0], found, group

    def takes(self, method_and_path: str) -> bool:
        """Whether some route matches, e.g. `OPTIONS *`."""
        return self._match(method_and_path) is not None

    def parameters(self, found: re.Match[str], group: int) -> dict[str, str]:
        """The path parameters of a match, percent-decoded."""
        names = self._by_group[group][1]
        return {name: found[group + 1 + i] or "" for i, name in enumerate(names)}

    def _refusal(self, method: str, path: str) -> NoRoute | MethodNotAllowed:
        allowed: list[str] = []
        for methods, pattern, _ in self._routes:
            if methods and pattern.fullmatch(path):
                allowed += [name for name in methods if name not in allowed]
        if allowed:
            return MethodNotAllowed(
                f"Method not allowed here; allowed: {', '.join(allowed)}", allow=", ".join(allowed)
            )
        return NoRoute("No route matches this path")


def normalise(path: str) -> str:
    """Percent-decoded, dot segments resolved (RFC 3986 §6.2.2): one spelling of a path.

    Bytes that are not UTF-8 become U+FFFD, which no configured path contains.
    """
    decoded = unquote(path, errors="replace")
    kept: list[str] = []
    segments = decoded.split("/")
    for segment in segments[1:]:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    trailing = "/" if kept and segments[-1] in (".", "..") else ""
    return "/" + "/".join(kept) + trailing
