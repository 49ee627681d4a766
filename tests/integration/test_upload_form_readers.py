"""Forms of odd pieces: what we find in one that passes, every app's parser finds in ours."""

from __future__ import annotations

import random

import pytest

from tests.uploads.form_readers import IN, check_form

NAMES = [
    b"a", b"a b", b"audio_file", rb"a\"b", b"a%22b", rb"a\"; filename=\"x", rb"a\\", rb"a\b",
    b"a;b", b"a=b", b"a; filename=x", b"a\tb", b" a", b"a\xa0", b"=?utf-8?q?a?=", b"a*", b"\xe7",
    "ç".encode(), b"a%0d%0ab", b"a\xe2\x80\xa8b", b"a\x85", b"utf-8''a", b'a"b', b"a,b", b"''",
    rb"\"a\"", rb"a\"=\"b", b"\xef\xbb\xbfa",
]  # fmt: skip
QUOTINGS = [b'name="%b"'] * 4 + [
    b"name=%b", b'NAME="%b"', b'name = "%b"', b'name="%b" ', b'name*="%b"', b"name='%b'",
]  # fmt: skip
FILENAMES = [
    b'filename=""', b'filename="x"', b"filename=x", b"filename*=utf-8''x", b'filename="a"b"',
    b"filename=", rb'filename="a\"b"', rb'filename="a\"', b"filename*0=x", b'FileName="q"',
    b"filename=a b", b'filename ="x"', b'filename="a;b"', b"x=y", b"", b"name=z", b'x="', b"name",
]  # fmt: skip
TYPES = [
    b"text/plain; charset=utf-8", b"application/octet-stream", b"application/json", b"",
    b"text/html; name=x", b'text/plain; filename="x"', b"multipart/mixed; boundary=q1w2",
    b'text/plain;charset="utf-8";boundary=zz', b"message/rfc822", b"audio/mpeg; name=x",
]  # fmt: skip
HEADERS = [
    b"Content-Transfer-Encoding: binary", b"Content-Transfer-Encoding: base64", b" folded",
    b"Content-Length: 1", b"Content-Type: text/plain", b'content-disposition: form-data; name="z"',
    b"--q1w2--: x", b"X-Y: z",
]  # fmt: skip
DATA = [
    b"", b"x", b"\r\n", b"\r\n--q1w", b"--q1w2", b"--q1w2--", b"\n--q1w2\n", b"\r\n--",
    b"a" * 70_000, b"%41+b", b"\r", b"\n",
    b'\r\n--zz\r\nContent-Disposition: form-data; name="evil"\r\n\r\nx',
]  # fmt: skip


def odd_form(chance: random.Random) -> bytes:
    """A form of one to three parts, most of them a little odd."""
    pick = chance.choice
    out = pick([b""] * 12 + [b"\r\n", b"before\r\n", b"before\n", b"--q1w\r\n", b"x"])
    for _ in range(chance.randrange(1, 4)):
        values = [b"form-data", pick(QUOTINGS) % pick(NAMES)]
        if chance.random() < 0.4:
            values.insert(pick([1, 2]), pick(FILENAMES))
        separator = pick([b"; ", b";", b";  ", b" ;", b";\t"])
        headers = [b"Content-Disposition:" + pick([b"", b" ", b"\t"]) + separator.join(values)]
        if chance.random() < 0.4:
            headers.insert(chance.randrange(2), b"Content-Type: " + pick(TYPES))
        if chance.random() < 0.15:
            headers.insert(chance.randrange(len(headers) + 1), pick(HEADERS))
        end = pick([b"\r\n"] * 20 + [b"\n", b" \r\n", b"--\r\n"])
        out += b"--" + IN + end + b"\r\n".join(headers) + b"\r\n\r\n" + pick(DATA)
        out += pick([b"\r\n"] * 20 + [b"\n", b""])
    out += b"--" + IN + pick([b"--\r\n"] * 8 + [b"--", b"--\n", b"--x", b"--\r\nbehind", b"\r\n"])
    if chance.random() < 0.15:
        at = chance.randrange(len(out))
        out = out[:at] + pick([b"\r\n", b'"', b"\\", b";", b"\0", b"\n", b"="]) + out[at + 1 :]
    return out


@pytest.mark.parametrize("seed", range(2))
def test_all_readers_find_the_same(seed: int) -> None:
    """All parsers find the same parts, and our reader finds them in pieces of any size."""
    chance = random.Random(seed)
    passed = [check_form(odd_form(chance), chance.choice([1, 3, 7, 50])) for _ in range(600)]
    assert sum(passed) > 10
