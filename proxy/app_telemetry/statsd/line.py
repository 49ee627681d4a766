"""One line of a statsd packet: what it says, or why it is not understood.

    NAME:VALUE[:VALUE...]|TYPE[|@RATE][|#TAG:VALUE,TAG:VALUE][|...]

1. Nothing here raises for any bytes, and nothing takes longer than the line is long.
2. Numbers are plain decimals: no NaN, no infinity, no `1_000`, which `float` would all take.
3. A sample rate stands for 1/rate equal readings. Rates below a millionth are refused: one packet
   must not be able to outweigh everything else.
4. Sections of newer protocols (container, timestamp, cardinality) are passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """What became of a line; each is a value of the label `result`."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    UNDECLARED = "undeclared"
    UNSUPPORTED = "unsupported"
    TYPE = "type"
    VALUE = "value"
    SERIES = "series"
    IGNORED = "ignored"


#: Beyond this a value is refused; sums of such values stay far from where floats end.
LARGEST = 1e15
SMALLEST_RATE = 1e-6

# DogStatsD clients report about themselves under these, unasked.
_CLIENT_TELEMETRY = b"datadog.dogstatsd.client."

_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_./-]{0,199}")
_NUMBER = re.compile(
    rb"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?"
)
_NO_NUMBER = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_KINDS = {b"c": "c", b"g": "g", b"ms": "ms", b"h": "h", b"d": "d"}


@dataclass(slots=True)
class StatsdSample:
    """A line that was understood. `signed` tells for each value whether it was written with a sign,
    `weight` how many readings each stands for; `tags` is the text behind `#`, not yet taken apart.
    """

    kind: str
    values: list[float]
    signed: list[bool]
    weight: float
    tags: bytes


def name_of(line: bytes) -> bytes:
    """The part before the first colon; the whole line where there is none."""
    return line.partition(b":")[0]


def refuse_name(name: bytes) -> Result:
    """Why a line with this name, which nobody declared, is not counted."""
    if name.startswith(_CLIENT_TELEMETRY):
        return Result.IGNORED
    if name.startswith((b"_e{", b"_sc|")):  # DogStatsD events and service checks
        return Result.UNSUPPORTED
    return Result.UNDECLARED if _NAME.fullmatch(name) else Result.MALFORMED


def read(line: bytes) -> StatsdSample | Result:
    """What a line says, or why that cannot be told. The name is not looked at."""
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
    """`#a:1,b:2` as a mapping; of a tag that is there twice the last one counts."""
    pairs = (tag.partition(b":") for tag in tags.split(b","))
    return {name: value for name, colon, value in pairs if colon}
