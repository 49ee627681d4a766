"""Parses one line of a statsd packet, or says why it is refused.

    NAME:VALUE[:VALUE...]|TYPE[|@RATE][|#TAG:VALUE,TAG:VALUE][|...]

1. No input raises an exception, and the time is linear in the length of the line.
2. Numbers are plain decimals; NaN, infinity and `1_000`, which `float` accepts, are refused.
3. A sample rate stands for 1/rate equal readings. Rates below a millionth are refused, so that one
   packet cannot outweigh everything else.
4. Sections of newer protocols (container, timestamp, cardinality) are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """The outcome of a line; each is a value of the label `result`."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    UNDECLARED = "undeclared"
    UNSUPPORTED = "unsupported"
    TYPE = "type"
    VALUE = "value"
    SERIES = "series"
    IGNORED = "ignored"


#: Larger values are refused; sums of such values stay far below the limit of floats.
LARGEST = 1e15
SMALLEST_RATE = 1e-6

# DogStatsD clients send telemetry about themselves under these names.
_CLIENT_TELEMETRY = b"datadog.dogstatsd.client."

_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_./-]{0,199}")
_NUMBER = re.compile(
    rb"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?"
)
_NO_NUMBER = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_KINDS = {b"c": "c", b"g": "g", b"ms": "ms", b"h": "h", b"d": "d"}


@dataclass(slots=True)
class StatsdSample:
    """A parsed line. `signed` says for each value whether it was written with a sign, `weight` is
    the number of readings that each stands for; `tags` is the text after `#`, not parsed yet.
    """

    kind: str
    values: list[float]
    signed: list[bool]
    weight: float
    tags: bytes


def name_of(line: bytes) -> bytes:
    """The part before the first colon; the whole line if there is none."""
    return line.partition(b":")[0]


def refuse_name(name: bytes) -> Result:
    """Why a line with this undeclared name is not counted."""
    if name.startswith(_CLIENT_TELEMETRY):
        return Result.IGNORED
    if name.startswith((b"_e{", b"_sc|")):  # DogStatsD events and service checks
        return Result.UNSUPPORTED
    return Result.UNDECLARED if _NAME.fullmatch(name) else Result.MALFORMED


def read(line: bytes) -> StatsdSample | Result:
    """Parse a line without looking at its name; returns the reason if it is refused."""
    _, colon, rest = line.partition(b":")
    numbers, *sections = rest.split(b"|")
    if not colon or not sections:
        return Result.MALFORMED
    kind = _KINDS.get(sections[0])
    if kind is None:
        return Result.UNSUPPORTED if sections[0] == b"s" else Result.MALFORMED
    weight, tags = 1.0, b""
    for section in sections[1:]:
        mark = section[:1]
        if mark == b"@":
            rate = float(section[1:]) if _NUMBER.fullmatch(section, 1) else 0.0
            if not SMALLEST_RATE <= rate <= 1.0:
                return Result.MALFORMED
            weight = 1.0 / rate
        elif mark == b"#":
            more = section.lstrip(b"#")  # older DogStatsD clients write two of them
            tags = tags + b"," + more if tags else more
    values, signed = [], []
    for number in numbers.split(b":"):
        if not _NUMBER.fullmatch(number):
            return Result.VALUE if _NO_NUMBER.fullmatch(number) else Result.MALFORMED
        value = float(number)
        if not -LARGEST <= value <= LARGEST:
            return Result.VALUE
        values.append(value)
        signed.append(number[0] in b"+-")
    return StatsdSample(kind, values, signed, weight, tags)


def tag_values(tags: bytes) -> dict[bytes, bytes]:
    """`#a:1,b:2` as a mapping; the last of repeated tags counts."""
    pairs = (tag.partition(b":") for tag in tags.split(b","))
    return {name: value for name, colon, value in pairs if colon}
