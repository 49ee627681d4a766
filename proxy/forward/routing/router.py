"""Finds a request's route: the first in file order whose method and path match.

All routes of a listener form one regular expression over `METHOD path`, so that a match is one call
into C however many routes there are. Matching uses the path as an application sees it after
percent-decoding (RFC 3986 §6.2.2): `/%6dake-video` must not bypass the checks of `/make-video`. The
path is forwarded as the client wrote it.

In addition, a guarding route (one with checks) takes its path in every reading that a framework may
have of it (path_readings.py):

1. If several routes match exactly, the first in file order wins. A guarding route that matches in
   another reading takes precedence over routes without checks.
2. If two guarding routes match, each in a different reading, the request is refused: only the
   application knows which one it would choose.
3. If no route takes the method, `Allow` lists the methods of all routes that would take the path in
   any reading. A guarding route that takes GET also takes HEAD.
4. A request whose method a framework might read as another one (lower case, or an override field)
   is refused if that method would lead to a guarding route.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from proxy.core.errors import BadRequest, MethodNotAllowed, NoRoute
from proxy.forward.routing.path_readings import (
    Guard,
    Spelling,
    canonical,
    needs_care,
    spellings,
    with_head,
)

_SEGMENT = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:\*)?\}")

_SLASHES = re.compile("/+")

T = TypeVar("T")


@dataclass(frozen=True)
class Pattern:
    """A route's path as a regular expression, with the names of its parameters in order."""

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


def _none(_: object) -> bool:
    return False


class RouteTable(Generic[T]):
    """The routes of one listener: `(methods or None, path, what)` in file order. `guards(what)`
    tells whether the route must not be bypassed."""

    def __init__(
        self,
        routes: Iterable[tuple[Sequence[str] | None, str, T]],
        guards: Callable[[T], bool] = _none,
    ) -> None:
        self._routes: list[_Route[T]] = []
        self._by_group: dict[int, int] = {}
        alternatives, group = [], 1
        for position, (methods, path, what) in enumerate(routes):
            pattern = compile_pattern(path)
            everything = methods is None and path.startswith("/{") and path.endswith(":*}")
            guard = Guard(methods, path) if guards(what) and not everything else None
            if guard is not None and methods is not None:
                methods = with_head(methods)
            method = "|".join(map(re.escape, methods)) if methods else "[^ ]+"
            # `*` addresses the server as a whole (OPTIONS), so it belongs to the catch-all route.
            extra = r"|\*" if path == "/{rest:*}" else ""
            alternatives.append(f"((?:{method}) (?:{pattern.expression}{extra}))")
            self._by_group[group] = position
            exact = re.compile(pattern.expression, re.DOTALL)
            self._routes.append(
                _Route(position, methods, exact, what, pattern.parameters, group, guard)
            )
            group += 1 + len(pattern.parameters)
        self._match = re.compile("|".join(alternatives), re.DOTALL).fullmatch
        self._guards = [route for route in self._routes if route.guard is not None]
        #: Guarding routes that share no ordinary path with another one, so need no comparison.
        self._alone = frozenset(
            one.position
            for one in self._guards
            if not any(_rivals(one, other) for other in self._guards)
        )
        #: Methods of all guarding routes, and whether one of them takes any method.
        self._guarded = frozenset(name for one in self._guards for name in one.methods or ())
        self._any_guarded = any(one.methods is None for one in self._guards)
        self._starts = frozenset(one.guard.start for one in self._guards if one.guard is not None)

    def match(
        self, method: str, target: str, overrides: Sequence[bytes] | None = None
    ) -> tuple[T, dict[str, str]]:
        """The route for `target` (origin-form or `*`), and the path's decoded parameters.

        `overrides` are the methods in the client's override fields. Raises `BadRequest` for a path
        that must not be served, `NoRoute`, or `MethodNotAllowed` with the allowed methods.
        """
        raw = target.partition("?")[0]
        odd = needs_care(raw) is not None
        path = canonical(raw) if odd else raw
        route = self._choose(method, raw, path, odd)
        if self._guards and (overrides or not method.isupper()):
            self._refuse_others(method, (*(overrides or ()), method.encode()), raw, path, odd)
        if route is None:
            raise self._refusal(raw, path)
        found, parameters = route
        return found.what, parameters

    def takes(self, method_and_path: str) -> bool:
        """Whether some route matches exactly, e.g. `OPTIONS *`."""
        return self._match(method_and_path) is not None

    def _choose(
        self, method: str, raw: str, path: str, odd: bool
    ) -> tuple[_Route[T], dict[str, str]] | None:
        """The route, and the path's parameters."""
        found = self._match(f"{method} {path}")
        exact: _Route[T] | None = None
        if found is not None:
            # The outermost group of the alternative that matched is the last one to close.
            assert found.lastindex is not None
            exact = self._routes[self._by_group[found.lastindex]]
        if self._guards:
            guarding = self._guarding(method, raw, path, odd, exact)
            if guarding is not None:
                return guarding
        if exact is None:
            return None
        assert found is not None
        group = exact.group + 1
        return exact, {name: found[group + i] or "" for i, name in enumerate(exact.parameters)}

    def _guarding(
        self, method: str, raw: str, path: str, odd: bool, exact: _Route[T] | None
    ) -> tuple[_Route[T], dict[str, str]] | None:
        """The guarding route that takes precedence over `exact`, if any (rules 1 and 2)."""
        if not odd:
            if exact is not None and exact.position in self._alone:
                return None
            start = raw[1:].partition("/")[0].casefold()
            if start not in self._starts and None not in self._starts:
                return None
        paths: list[Spelling] = []
        taken: list[tuple[_Route[T], dict[str, str]]] = []
        for route in self._guards:
            assert route.guard is not None
            if not route.guard.takes(method):
                continue
            paths = paths or spellings(raw)
            parameters = route.guard.match(paths)
            if parameters is None:
                continue
            later = exact is not None and exact.position < route.position
            if not (later and route.exact.fullmatch(path)):
                taken.append((route, parameters))
        if len(taken) > 1:
            merged = _SLASHES.sub("/", path).rstrip("/")
            if not all(route.exact.fullmatch(merged) for route, _ in taken):
                raise BadRequest("Bad request: the path can be read in several ways")
        return taken[0] if taken and taken[0][0] is not exact else None

    def _refuse_others(
        self, method: str, others: Sequence[bytes], raw: str, path: str, odd: bool
    ) -> None:
        """Rule 4. Each method is checked once, however many fields contain it."""
        requested = {
            member.strip().upper()
            for value in others
            for member in value.decode("latin-1").split(",")  # Express takes the first of several
        } - {method}
        candidates = requested & self._guarded
        if self._any_guarded:
            candidates |= set(list(requested - candidates)[:1])  # such a route takes all alike
        for other in candidates:
            found = self._choose(other, raw, path, odd)
            if found is not None and found[0].guard is not None:
                raise BadRequest("Bad request: some read the method as another one; send that")

    def _refusal(self, raw: str, path: str) -> NoRoute | MethodNotAllowed:
        allowed: list[str] = []
        paths = spellings(raw)
        for route in self._routes:
            if not route.methods:
                continue
            if route.exact.fullmatch(path) or (
                route.guard is not None and route.guard.match(paths) is not None
            ):
                allowed += [name for name in route.methods if name not in allowed]
        if allowed:
            return MethodNotAllowed(
                f"Method not allowed here; allowed: {', '.join(allowed)}", allow=", ".join(allowed)
            )
        return NoRoute("No route matches this path")


@dataclass(frozen=True, slots=True)
class _Route(Generic[T]):
    """One route. `group` is its first group in the common expression; `methods` is None if it takes
    all."""

    position: int
    methods: Sequence[str] | None
    exact: re.Pattern[str]
    what: T
    parameters: tuple[str, ...]
    group: int
    guard: Guard | None


def _rivals(one: _Route[T], other: _Route[T]) -> bool:
    if one is other or one.guard is None or other.guard is None:
        return False
    apart = one.methods and other.methods and not set(one.methods) & set(other.methods)
    return not apart and one.guard.overlaps(other.guard)
