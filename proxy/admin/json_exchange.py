"""JSON requests and responses of the admin API, bounded and checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from proxy.config import units
from proxy.core.errors import BadRequest, RequestTimeout

BODY_LIMIT = 64 * 1024  # bytes
BODY_TIME = 10.0  # seconds

_TRUE = frozenset({"1", "true", "yes"})
_FALSE = frozenset({"", "0", "false", "no"})


def answer(document: object, status: int = 200) -> web.Response:
    """Indented JSON, because people read it as often as programs."""
    text = json.dumps(document, indent=2, default=str) + "\n"
    return web.Response(status=status, text=text, content_type="application/json")


async def read_object(request: web.Request, *known: str) -> dict[str, Any]:
    """The JSON object in a request's body; an empty body is an empty object.

    Raises `BadRequest` for anything but an object with only `known` members, and `RequestTimeout`
    for a body that does not arrive.
    """
    try:
        async with asyncio.timeout(BODY_TIME):
            raw = await request.read()
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {BODY_TIME:g}s") from None
    if not raw.strip():
        return {}
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON") from None
    if not isinstance(document, dict):
        raise BadRequest("The body is not a JSON object")
    _check_names(document, known)
    return document


def read_query(request: web.Request, *known: str) -> dict[str, str]:
    """The query's parameters. Raises `BadRequest` for unknown and repeated ones."""
    query = request.query
    _check_names(query, known)
    if len(set(query)) != len(query):
        raise BadRequest("A parameter is repeated")
    return dict(query)


def _check_names(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(name for name in given if name not in known)
    if unknown:
        expected = ", ".join(known) or "none"
        raise BadRequest(f"Unknown: {', '.join(unknown)[:200]}; expected: {expected}")


def text(given: Mapping[str, Any], name: str, limit: int = 500) -> str | None:
    """An optional text; absent, null and empty are None."""
    value = given.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > limit:
        raise BadRequest(f"{name}: expected a text of at most {limit} characters", field=name)
    return value


def seconds(given: Mapping[str, Any], name: str) -> float | None:
    """An optional duration (`10m`) in seconds; absent and null are None."""
    value = given.get(name)
    if value is None:
        return None
    try:
        duration = units.parse_duration(value)
    except ValueError as error:
        raise BadRequest(f"{name}: {error}"[:500], field=name) from None
    if duration <= 0:
        raise BadRequest(f"{name}: expected more than 0", field=name)
    return duration


def number(given: Mapping[str, str], name: str, default: int, most: int) -> int:
    """An optional whole number from 1 to `most`."""
    value = given.get(name) or str(default)
    if not (value.isascii() and value.isdecimal() and len(value) < 10) or not (
        1 <= int(value) <= most
    ):
        raise BadRequest(f"{name}: expected a whole number from 1 to {most}", field=name)
    return int(value)


def flag(given: Mapping[str, str], name: str) -> bool:
    """An optional yes or no; absent is no."""
    value = given.get(name, "").lower()
    if value not in _TRUE | _FALSE:
        raise BadRequest(f"{name}: expected true or false", field=name)
    return value in _TRUE
