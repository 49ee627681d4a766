"""The ways in which an application may read a request's path. Pure.

A check on a route is only as good as its weakest spelling: if the application passes
`/make-video%0a` to the handler of `/make-video` and the proxy does not, the check can be bypassed.
So a path is either refused (rules 1 and 2, on every route), or a route that *guards* (`upload`,
`job`, any check of a request) takes it in every reading of some common framework (rule 3). The path
is forwarded as the client wrote it.

1. A path that decodes to a control character (C0, DEL, C1, U+2028, U+2029) is 400. No route needs
   one, and `$` in a pattern of Starlette or Django also matches before a final line feed. A query
   may contain them: text fields hold line ends, and no framework routes by a query.
2. A path with a segment `.` or `..` is 400: plain or encoded, once or several times, between
   slashes of any kind, followed by `;parameters` (Tomcat) or not.
3. A guarding route takes a path when one of these readings makes it the route's own:

   reading                                     who reads so
   ------------------------------------------  ---------------------------------------------------
   percent-decoded, then split at `/`          Starlette, Werkzeug/Flask, Django, nginx, Go < 1.22
   split at `/`, then percent-decoded: an      Express and Go 1.22 (parameters), routers that match
     encoded slash is part of a segment          the raw path
   decoded again, three times in all           a second proxy or a framework behind one that decodes
   bytes that spell ASCII in overlong UTF-8    decoders of old
   bytes that are no UTF-8 left out            Bottle
   letter case ignored                         Express
   trailing slashes ignored                    Express; Flask with `strict_slashes=False`; Rails
   slashes merged, leading ones too            nginx, Werkzeug (leading), http.server, Rails
   `\\` as `/`, plain or encoded               whatever reads by the WHATWG URL standard; Windows
   `//name/path` as `/path`                    `new URL(req.url, base)` in Node
   `;parameters` cut from each segment         Tomcat, Spring
   everything behind `;` cut                   Fastify 4
   `?` and `#`, encoded, as what they mean     what decodes before it splits
   HEAD by the handler of GET                  Starlette, Flask, Django, Express, Go

   Readings combine: a hop that merges slashes may stand in front of one that ignores case.

Handled elsewhere: methods in lower case, which Werkzeug and Django convert to upper case, and
method overrides (`X-HTTP-Method-Override` and the like) are 400 if they would lead to a guarding
route (`router.py`). Targets in absolute form become a path and a `Host`, and fragments are 400
(`http1/request_head.py`). Fields that change the path for some frameworks are accepted only from a
trusted proxy (`headers.READDRESSING`).

Not covered: what an application adds by itself. A Django view or `app.all` in Express takes every
method, `http.Handle("/x/", …)` in Go every path below, Rails a suffix such as `.json`, and
`_method` in a form changes the method. Such routes must be listed in the config as the application
has them.

The table is tested against the real frameworks (`tests/integration/test_path_readings.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from proxy.config.patterns import Segment, parse_pattern
from proxy.core.errors import BadRequest

#: Matches paths that can be read in two ways by more than letter case or a trailing slash.
needs_care = re.compile(r"[%\\;?#]|//|/\.\.?(?:/|$)").search

#: Levels of percent-decoding that are considered; nobody serves a path that needs more.
_DECODINGS = 3

#: Limit for segments that consist of `;parameters` only. Nobody has more, and each is another place
#: where a route's next segment may begin.
_EMPTY = 16

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: Removed from a segment before it is compared: control characters, and the replacement character
#: for invalid UTF-8.
_LEFT_OUT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]")
_DOTS = re.compile(r"(?:^|[/\\])\.\.?(?:;[^/\\]*)?(?:[/\\]|$)")
_CUT = re.compile(r"[;?#]")
_SLASHES, _BOTH_SLASHES = re.compile("/+"), re.compile(r"[/\\]+")
#: A percent sign without two hex digits stands for itself.
_STRAY = re.compile(r"%(?![0-9A-Fa-f]{2})")

#: An ASCII character in overlong UTF-8 of two, three or four bytes; and its one-byte form, by the
#: last four characters.
_OVERLONG = re.compile(
    r"%c[01]%[89ab][0-9a-f]|%e0%8[01]%[89ab][0-9a-f]|%f0%80%8[01]%[89ab][0-9a-f]", re.IGNORECASE
)
_SHORTEST = {
    f"{high}%{0x80 | low:02x}": f"%{high << 6 | low:02x}" for high in (0, 1) for low in range(64)
}


def canonical(path: str) -> str:
    """The path percent-decoded once, as most frameworks match it; routes' patterns are compared
    with this. Invalid UTF-8 becomes U+FFFD, which no configured path contains.

    Raises `BadRequest` by rules 1 and 2.
    """
    for one in _respelled(path):
        _refuse_unfit(one)
    return _decode(path)


def _refuse_unfit(path: str) -> None:
    decoded = _decode(path)
    if _CONTROL.search(decoded):
        raise BadRequest("Bad request: the path has a control character, plain or encoded")
    for _ in range(_DECODINGS):
        if "." in decoded and _DOTS.search(decoded):
            raise BadRequest('Bad request: the path has a segment "." or "..", plain or encoded')
        if "%" not in decoded:
            break
        decoded = _decode(decoded)


def _decode(path: str) -> str:
    """Like `urllib.parse.unquote`, but in C, because a path of 8 KB of escapes is decoded some
    twenty times. Percent escapes are converted to Python's `\\xNN` escapes."""
    if "%" not in path:
        return path
    return _decode_escapes(path)


@lru_cache(maxsize=32)  # the readings of one path decode the same again and again
def _decode_escapes(path: str) -> str:
    escaped = _STRAY.sub("%25", path).encode().replace(b"\\", b"\\\\").replace(b"%", b"\\x")
    return escaped.decode("unicode_escape").encode("latin-1").decode(errors="replace")


def _respelled(path: str) -> tuple[str, ...]:
    """The path, and its form after an old decoder has accepted overlong UTF-8 in it."""
    if "%" not in path:
        return (path,)
    shorter = _OVERLONG.sub(lambda match: _SHORTEST[match[0][-4:].lower()], path)
    return (path,) if shorter == path else (path, shorter)


def spellings(path: str) -> list[Spelling]:
    """`path` split into segments in every possible way."""
    if not needs_care(path):
        return [Spelling(path[1:].split("/"), 0, decoded=True)]
    found: list[Spelling] = []
    for one in _respelled(path):
        found += _splits(one)
    if path[1:2] in ("/", "\\"):  # a network path: the first segment may be a host name
        found += [Spelling(one.pieces, 1, one.decoded) for one in found]
    return found


def _splits(path: str) -> list[Spelling]:
    found: list[Spelling] = []
    level, decoded = path, False
    for _ in range(_DECODINGS):
        found.append(Spelling(_SLASHES.split(level)[1:], 0, decoded))
        if "\\" in level:
            found.append(Spelling(_BOTH_SLASHES.split(level)[1:], 0, decoded))
        deeper = _decode(level)
        if deeper == level:
            break
        level, decoded = deeper, True
    return found


class Spelling:
    """One way to split a path. A route's path may begin at piece `first`."""

    __slots__ = ("_folded", "decoded", "first", "pieces")

    def __init__(self, pieces: list[str], first: int, decoded: bool) -> None:
        self.pieces = pieces
        self.first = first
        self.decoded = decoded
        self._folded: dict[int, tuple[str, str]] = {}

    def folded(self, at: int) -> tuple[str, str]:
        """Piece `at` as it is compared with literals: decoded and in lower case, with and without
        the part that some readings cut off."""
        known = self._folded.get(at)
        if known is None:
            text = self.pieces[at]
            for _ in range(_DECODINGS):
                text = _decode(text)
            text = _LEFT_OUT.sub("", text).casefold()
            known = self._folded[at] = (text, _CUT.split(text, maxsplit=1)[0])
        return known

    def value(self, start: int, end: int) -> str:
        """Pieces `start` to `end` as the value of a parameter: decoded once."""
        text = "/".join(self.pieces[start:end])
        return text if self.decoded else _decode(text)


class Guard:
    """A guarding route's path, matched in every reading."""

    __slots__ = ("_methods", "_segments", "start")

    def __init__(self, methods: Sequence[str] | None, path: str) -> None:
        self._methods = None if methods is None else with_head(methods)
        segments = parse_pattern(path)
        if segments[-1] == Segment(""):
            segments = segments[:-1]  # a trailing slash makes no difference
        self._segments = tuple(
            segment if segment.parameter else Segment(segment.text.casefold())
            for segment in segments
        )
        #: The first segment in lower case, or None where it may be anything.
        self.start = self._start()

    def _start(self) -> str | None:
        if not self._segments:
            return ""
        return None if self._segments[0].parameter else self._segments[0].text

    def overlaps(self, other: Guard) -> bool:
        """Whether an ordinary path may match both this route and `other`, ignoring case and a
        trailing slash."""
        for one, two in zip(self._segments, other._segments, strict=False):
            if one.rest or two.rest:
                return True
            if not (one.parameter or two.parameter or one.text == two.text):
                return False
        return len(self._segments) == len(other._segments)

    def takes(self, method: str) -> bool:
        """Whether the route guards requests of that method."""
        return self._methods is None or method in self._methods

    def match(self, paths: list[Spelling]) -> dict[str, str] | None:
        """The path's parameters, decoded once, or None if no reading matches the route.

        Raises `BadRequest` for a path with too many empty segments.
        """
        for path in paths:
            spans = self._spans(path)
            if spans is not None:
                return {name: path.value(start, end) for name, start, end in spans}
        return None

    def _spans(self, path: Spelling) -> tuple[Span, ...] | None:
        """Name, first piece and end of each parameter.

        Follows all readings at once: `places` holds, for each piece at which a segment may begin,
        the parameters on the way to it.
        """
        last = len(path.pieces)
        places: dict[int, tuple[Span, ...]] = {path.first: ()}
        ended: tuple[Span, ...] | None = None  # matched so far, if a reading cuts the path here
        for segment in self._segments:
            ended = None
            following: dict[int, tuple[Span, ...]] = {}
            for at, found in _with_skips(path, places).items():
                if at >= last:
                    continue
                if segment.rest:
                    return (*found, (segment.text, at, last))
                whole, cut = path.folded(at)
                if segment.parameter:
                    if not path.pieces[at]:
                        continue
                    found = (*found, (segment.text, at, at + 1))
                elif segment.text not in (whole, cut):
                    continue
                following.setdefault(at + 1, found)
                if cut != whole:
                    ended = found
            if not following:
                return None
            places = following
        return ended if ended is not None else _with_skips(path, places).get(last)


#: A parameter's name, its first piece, and the piece after its last.
Span = tuple[str, int, int]


def with_head(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods that a guarding route takes: GET includes HEAD."""
    return (*methods, "HEAD") if "GET" in methods and "HEAD" not in methods else tuple(methods)


def _with_skips(path: Spelling, places: dict[int, tuple[Span, ...]]) -> dict[int, tuple[Span, ...]]:
    """`places`, and those after empty pieces: `;x`, or what a trailing slash leaves."""
    last, more = len(path.pieces), dict(places)
    for at, found in places.items():
        here = at
        while here < last and not path.folded(here)[1]:
            here += 1
            if here - at > _EMPTY:
                raise BadRequest("Bad request: the path has too many empty segments")
            more.setdefault(here, found)
    return more
