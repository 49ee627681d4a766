"""Digests of a body: read, compared, and passed over where they say nothing."""

from __future__ import annotations

import base64
import hashlib

import pytest

from proxy.uploads.form.digests import Digests

BODY = b"a form, or nearly"


def encoded(algorithm: str, body: bytes = BODY) -> str:
    """The digest in base64."""
    return base64.b64encode(hashlib.new(algorithm, body).digest()).decode()


def mismatch(name: str, value: str) -> str | None:
    """What is wrong with `BODY`, fed in pieces."""
    digests = Digests([(name.encode(), value.encode())])
    digests.update(BODY[:5])
    digests.update(BODY[5:])
    return digests.mismatch()


FORMS = [
    ("content-md5", "{}", "md5"),
    ("digest", "SHA-256={}", "sha256"),
    ("digest", "sha-512={}", "sha512"),
    ("digest", "SHA={}", "sha1"),
    ("digest", "crc32c=x, md5={}", "md5"),
    ("content-digest", "sha-256=:{}:", "sha256"),
    ("content-digest", "unknown=:eA==:, sha-512=:{}:;p=1", "sha512"),
    ("repr-digest", "sha-256 = :{}:", "sha256"),
]


@pytest.mark.parametrize(("name", "form", "algorithm"), FORMS)
def test_a_digest_that_fits_and_one_that_does_not(name: str, form: str, algorithm: str) -> None:
    """In each of the four fields."""
    assert mismatch(name, form.format(encoded(algorithm))) is None
    wrong = mismatch(name, form.format(encoded(algorithm, b"another")))
    assert wrong is not None
    assert wrong.lower() == name


def test_hexadecimal_digits_are_read_too() -> None:
    """Some clients write MD5 as they see it elsewhere."""
    assert mismatch("content-md5", hashlib.md5(BODY).hexdigest()) is None
    assert mismatch("content-md5", hashlib.md5(b"x").hexdigest()) == "Content-MD5"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content-md5", ""),
        ("content-md5", "***"),
        ("content-md5", encoded("sha256")),
        ("content-md5", "\xe9" * 32),
        ("content-md5", "z" * 32),
        ("digest", "sha-256"),
        ("digest", "unixsum=30637"),
        ("content-digest", "sha-256=" + encoded("sha256", b"another")),
        ("content-digest", "sha-256=:"),
        ("repr-digest", ",,=,"),
    ],
)
def test_what_cannot_be_read_says_nothing(name: str, value: str) -> None:
    """Nobody can be refused for it."""
    assert mismatch(name, value) is None


def test_one_of_several_that_does_not_fit_is_enough() -> None:
    """The one that does not fit is named."""
    digests = Digests(
        [
            (b"content-digest", f"sha-256=:{encoded('sha256')}:".encode()),
            (b"digest", f"md5={encoded('md5')}, sha-512={encoded('sha512', b'x')}".encode()),
        ]
    )
    digests.update(BODY)
    assert digests.mismatch() == "Digest"
