"""Digests that a client has sent for a body that is rewritten: checked, then dropped.

Rules:
1. RFC 9530 (`Content-Digest`, `Repr-Digest`; without a content coding both cover the same bytes),
   RFC 3230 (`Digest`) and RFC 1864 (`Content-MD5`).
2. An upload whose digest does not match was damaged in transit and is rejected. A digest that
   cannot be parsed, or has an unknown algorithm, is ignored.
3. No digest goes upstream, since the app gets other bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

#: Fields in the order in which they are checked, in lower case.
DIGEST_FIELDS: Final = (b"content-digest", b"repr-digest", b"digest", b"content-md5")

_ALGORITHMS: Final = {
    b"md5": "md5",
    b"sha": "sha1",
    b"sha-1": "sha1",
    b"sha-256": "sha256",
    b"sha-512": "sha512",
}
_MAX_CLAIMS = 16


class Digests:
    """Call `update` with every byte of the body, then `mismatch`."""

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """`fields`: lower-case names and values, of those in `DIGEST_FIELDS`."""
        self._claims = [
            (name, algorithm, digest)
            for name, value in fields
            for algorithm, digest in _claims(name, value)
        ][:_MAX_CLAIMS]
        self._hashers = {
            algorithm: hashlib.new(algorithm, usedforsecurity=False)
            for _, algorithm, _ in self._claims
        }

    def update(self, data: bytes) -> None:
        """The next bytes of the body."""
        for hasher in self._hashers.values():
            hasher.update(data)

    def mismatch(self) -> str | None:
        """The name of a field that does not match the body, or None."""
        for name, algorithm, digest in self._claims:
            if self._hashers[algorithm].digest() != digest:
                return "Content-MD5" if name == b"content-md5" else name.decode().title()
        return None


def _claims(name: bytes, value: bytes) -> Iterator[tuple[str, bytes]]:
    """The algorithms and digests in a field that can be parsed (rule 2)."""
    members = [b"md5=" + value] if name == b"content-md5" else value.split(b",")
    for member in members:
        label, _, text = member.strip().partition(b"=")
        algorithm = _ALGORITHMS.get(label.strip().lower())
        if algorithm is None:
            continue
        if name in DIGEST_FIELDS[:2]:  # a byte sequence of RFC 9651: between colons
            text = text.partition(b";")[0].strip()
            if len(text) < 2 or text[:1] != b":" or text[-1:] != b":":
                continue
            text = text[1:-1]
        digest = _decode(text.strip(), hashlib.new(algorithm, usedforsecurity=False).digest_size)
        if digest is not None:
            yield algorithm, digest


def _decode(text: bytes, size: int) -> bytes | None:
    """Decode Base64, or the hexadecimal digits that some clients send; None if it is neither."""
    try:
        digest = bytes.fromhex(text.decode()) if len(text) == 2 * size else base64.b64decode(text)
    except (ValueError, binascii.Error):
        return None
    return digest if len(digest) == size else None
