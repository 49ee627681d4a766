"""Path patterns, `/jobs/{job_id}` and `/files/{rest:*}`: their syntax, and which covers which.

1. A pattern is split at `/`. A segment is literal text, `{name}` (exactly one segment, not empty)
   or, only at the end, `{name:*}` (the rest of the path, which may be empty).
2. A segment is either literal or a parameter; a mixture such as `/a-{x}` is refused.
3. Literals are compared with the percent-decoded request path without dot segments and empty
   segments. Text that could never match, or that looks like a query, is refused: `%`, `?`, `#`,
   control characters, `.`, `..` and `//`.
4. Patterns of other routers, which would be literal text here, are refused with a hint at the right
   spelling: `*`, `:id`, `<id>`, `[id]`, `{id:int}`, `(.*)` and other regular expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:\*)?\}")
_LITERAL = re.compile(r"[^{}%?#\\\x00-\x1f\x7f]*")


# Segments in the syntax of other routers: one named segment, or the rest of the path.
_ONE = re.compile(
    r":(\w+)\??(?:\([^/]*\))?"  # Express, Rails, gin, httprouter
    r"|<(?:\w+:)?(\w+)>"  # Flask, Django
    r"|\[(\w+)\]"  # Next.js
    r"|\{(\w+)(?::(?!\*)[^}]*)?\}"  # Starlette, aiohttp, Spring, chi
    r"|\(\?P?<(\w+)>[^/]*\)|\*"  # regular expressions; globs
)
_REST = re.compile(
    r"\*{1,2}(\w*)|\(?\.[*+]\??\)?\$?|:(\w+)[*+]|<path:(\w+)>|\[\.\.\.(\w+)\]|\{(\w+)(?:\.\.\.|:path)\}"
    r"|\{\*(\w+)\}|\(\?P?<(\w+)>\.[*+]\)\$?"
)
_REGULAR = re.compile(r"[*\[\]<>|^]|\([^)]*[+?.][^)]*\)|\$$|^:\w")


def _elsewhere(part: str, last: bool) -> str | None:
    """Our spelling of a segment in another router's syntax, or what to use instead."""
    rest = _REST.fullmatch(part) if last else None
    if rest is not None:
        return f"{{{_name(rest, 'rest')}:*}}"
    one = _ONE.fullmatch(part)
    if one is not None:
        return f"{{{_name(one, 'name')}}}"
    return "a segment of plain text" if _REGULAR.search(part) else None


def _name(match: re.Match[str], otherwise: str) -> str:
    found = next((group for group in match.groups() if group), otherwise)
    return found if found.isascii() and not found[0].isdigit() else otherwise


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a pattern. `text` is the literal, or the parameter's name."""

    text: str
    parameter: bool = False
    rest: bool = False


def parse_pattern(value: str) -> tuple[Segment, ...]:
    """The segments of a pattern, `/` being one empty literal.

    Raises `ValueError` ("expected ..., found ...") if the syntax is not that of the rules above.
    """
    if not value.startswith("/"):
        raise ValueError(f"expected a path that begins with /, found {value!r}")
    segments: list[Segment] = []
    parts = value[1:].split("/")
    for position, part in enumerate(parts):
        match = _PARAMETER.fullmatch(part)
        if match is None:
            if (meant := _elsewhere(part, last=position == len(parts) - 1)) is not None:
                raise ValueError(f"expected {meant}, found {part!r}, which is no pattern here")
            empty = not part and position < len(parts) - 1
            if empty or part in (".", "..") or not _LITERAL.fullmatch(part):
                raise ValueError(
                    "expected segments of plain text (decoded, no query), {name} or, at the end, "
                    f"{{name:*}}, found {part!r}"
                )
            segments.append(Segment(part))
            continue
        if match[2] and position < len(parts) - 1:
            raise ValueError(f"expected {part} only as the last segment, found more behind it")
        if any(segment.parameter and segment.text == match[1] for segment in segments):
            raise ValueError(f"expected each parameter once, found {{{match[1]}}} again")
        segments.append(Segment(match[1], parameter=True, rest=bool(match[2])))
    return tuple(segments)


def parameters(segments: tuple[Segment, ...]) -> tuple[str, ...]:
    """The names of the parameters, in order."""
    return tuple(segment.text for segment in segments if segment.parameter)


def covers(first: tuple[Segment, ...], second: tuple[Segment, ...]) -> bool:
    """Whether every path that `second` matches is matched by `first` too."""
    for position, segment in enumerate(first):
        if segment.rest:
            return position < len(second)
        if position >= len(second) or second[position].rest:
            return False
        other = second[position]
        if segment.parameter:
            if not other.parameter and not other.text:
                return False
        elif other.parameter or other.text != segment.text:
            return False
    return len(first) == len(second)
