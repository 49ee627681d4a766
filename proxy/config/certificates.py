"""Reads validity, issuer and subject from the certificates of a listener's chain.

The standard library loads certificates but does not expose them, so the few fields needed are read
here, from the DER (X.690) of X.509 (RFC 5280 §4.1): a certificate is a sequence whose first member
has, after an optional version, serial number, algorithm, issuer, validity and subject.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION = 0xA0  # [0], constructed
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate; times are Unix seconds, `issuer` and `subject` names in DER."""

    begins: float
    ends: float
    issuer: bytes
    subject: bytes


def read_chain(file: Path) -> list[Certificate]:
    """The certificates of a PEM file, in order. Raises `OSError`, and `ValueError` for a malformed
    certificate."""
    text = file.read_text(encoding="latin-1")
    return [_certificate(ssl.PEM_cert_to_DER_cert(block)) for block in _PEM.findall(text)]


def ends_of(file: Path) -> float | None:
    """When the first certificate of the chain to expire does so, in Unix seconds; None if none can
    be read."""
    try:
        return min((one.ends for one in read_chain(file)), default=None)
    except (OSError, ValueError):
        return None


def _certificate(der: bytes) -> Certificate:
    try:
        (_, whole), *_ = _members(der)
        (_, signed), *_ = _members(whole)
        fields = [value for tag, value in _members(signed) if tag != _VERSION]
        _serial, _algorithm, issuer, validity, subject = fields[:5]
        begins, ends = (_time(tag, value) for tag, value in _members(validity))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("no certificate") from error
    return Certificate(begins, ends, issuer, subject)


def _members(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value in turn. Raises `IndexError` if one is truncated."""
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size >= 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count]), at + count
        if at + size > len(data):
            raise IndexError
        yield tag, data[at : at + size]
        at += size


def _time(tag: int, value: bytes) -> float:
    """RFC 5280 §4.1.2.5: always in UTC with seconds; a year of two digits is 1950 to 2049."""
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
