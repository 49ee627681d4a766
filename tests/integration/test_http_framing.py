"""Requests whose length two readers could see differently: each is refused, none gets through.

RFC 9112 §6 and §7.1. The prize of every attack below is that the upstream sees a request to
`/smuggled`; the tests fail if it sees any complete request at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http1 import Site, assert_problem, get, post, wait_until

HEAD = b"POST /target HTTP/1.1\r\nHost: example.test\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example.test\r\n\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One proxy for all attacks: none of them may spoil it for the next."""
    with Site(tmp_path_factory.mktemp("proxy")) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> Iterator[None]:
    """Each attack starts with a well-behaved upstream and is checked for damage."""
    site.upstream.fresh()
    yield
    site.check()


def framed(fields: bytes, body: bytes = HELLO + SMUGGLED) -> bytes:
    """A POST with these framing fields and a body that hides a second request."""
    return HEAD + fields + b"\r\n" + body


def coded(value: bytes) -> bytes:
    """The same with one `Transfer-Encoding`."""
    return framed(b"Transfer-Encoding: " + value + b"\r\n")


def sized(value: bytes) -> bytes:
    """A POST of `hello` with one `Content-Length`."""
    return framed(b"Content-Length: " + value + b"\r\n", b"hello")


def chunks(body: bytes) -> bytes:
    """A chunked POST whose body is `body`."""
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body


TE = b"Transfer-Encoding: chunked\r\n"
FRAMING_ATTACKS = {
    # both framings at once (§6.1: the classic CL.TE and TE.CL)
    "cl.te": framed(b"Content-Length: 5\r\n" + TE),
    "te.cl": framed(TE + b"Content-Length: 5\r\n"),
    "cl.te zero": framed(b"Content-Length: 0\r\n" + TE),
    "cl with unknown te": framed(b"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n"),
    "cl with te identity": framed(b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n"),
    "cl with empty te": framed(b"Content-Length: 5\r\nTransfer-Encoding:\r\n"),
    # codings that are not exactly `chunked` (§6.1: chunked is the last and only once)
    "te chunked, identity": coded(b"chunked, identity"),
    "te identity, chunked": coded(b"identity, chunked"),
    "te gzip, chunked": coded(b"gzip, chunked"),
    "te chunked, chunked": coded(b"chunked, chunked"),
    "te identity": coded(b"identity"),
    "te gzip": coded(b"gzip"),
    "te xchunked": coded(b"xchunked"),
    "te chunkedx": coded(b"chunkedx"),
    "te chunk": coded(b"chunk"),
    "te two words": coded(b"x chunked"),
    "te double quoted": coded(b'"chunked"'),
    "te single quoted": coded(b"'chunked'"),
    "te with parameter": coded(b"chunked;q=1"),
    "te semicolon": coded(b"chunked;"),
    "te two colons": framed(b"Transfer-Encoding:: chunked\r\n"),
    "te equals": coded(b"=chunked"),
    "te empty": coded(b""),
    "te only a comma": coded(b","),
    "te comma before": coded(b",chunked"),
    "te comma behind": coded(b"chunked,"),
    "te no-break space": coded(b"chunked\xa0"),
    "te kelvin sign": coded(b"chun\xe2\x84\xaaed"),
    "te vertical tab before": coded(b"\x0bchunked"),
    "te form feed before": coded(b"\x0cchunked"),
    "te vertical tab behind": coded(b"chunked\x0b"),
    "te nul behind": coded(b"chunked\x00"),
    "te bare cr behind": coded(b"chunked\r"),
    # repeated fields
    "te twice": framed(TE + TE),
    "te chunked then identity": framed(TE + b"Transfer-Encoding: identity\r\n"),
    "te identity then chunked": framed(b"Transfer-Encoding: identity\r\n" + TE),
    "te chunked then unknown": framed(TE + b"Transfer-Encoding: cow\r\n"),
    "te chunked then empty": framed(TE + b"Transfer-Encoding:\r\n"),
    "te twice in other case": framed(TE.lower() + TE.upper()),
    # names and lines that some parsers mend
    "te space before colon": framed(b"Transfer-Encoding : chunked\r\n"),
    "te tab before colon": framed(b"Transfer-Encoding\t: chunked\r\n"),
    "te vertical tab before colon": framed(b"Transfer-Encoding\x0b: chunked\r\n"),
    "te space before name": framed(b"X: 1\r\n " + TE),
    "te tab before name": framed(b"X: 1\r\n\t" + TE),
    "te folded value": framed(b"Transfer-Encoding:\r\n chunked\r\n"),
    "te behind bare lf": framed(b"X: 1\n" + TE),
    "te behind bare cr": framed(b"X: 1\r" + TE),
    "te behind nul": framed(b"X: 1\x00" + TE),
    "te behind lf cr": framed(b"X: 1\n\r" + TE),
    "te behind a line feed alone": framed(b"\n" + TE),
    "te name with nul": framed(b"Transfer-Encoding\x00: chunked\r\n"),
    "te name with 8 bit": framed(b"Transfer-Encoding\xff: chunked\r\n"),
    # Content-Length that is not 1*DIGIT (§6.2)
    "cl plus": sized(b"+5"),
    "cl minus": sized(b"-5"),
    "cl minus zero": sized(b"-0"),
    "cl inner space": sized(b"5 5"),
    "cl hexadecimal": sized(b"0x5"),
    "cl letter behind": sized(b"5a"),
    "cl exponent": sized(b"5e0"),
    "cl point": sized(b"5.0"),
    "cl underscore": sized(b"0_5"),
    "cl empty": sized(b""),
    "cl quoted": sized(b'"5"'),
    "cl arabic digit": sized(b"\xd9\xa5"),
    "cl superscript two": sized(b"\xb2"),
    "cl vertical tab": sized(b"5\x0b"),
    "cl nul": sized(b"5\x00"),
    "cl folded": sized(b"\r\n 5"),
    "cl space before colon": framed(b"Content-Length : 5\r\n", b"hello"),
    "cl over 64 bits": sized(b"18446744073709551621"),
    "cl over 128 bits": sized(b"9" * 40),
    # Content-Length several times (equal or not: several -> 400)
    "cl list equal": sized(b"5, 5"),
    "cl list unequal": sized(b"5, 6"),
    "cl list with nothing": sized(b"5,"),
    "cl twice equal": framed(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "cl twice unequal": framed(b"Content-Length: 5\r\nContent-Length: 51\r\n", b"hello"),
    "cl zero then more": framed(b"Content-Length: 0\r\ncontent-length: 47\r\n", SMUGGLED),
    "cl 5 then 05": framed(b"Content-Length: 5\r\nContent-Length: 05\r\n", b"hello"),
    # HTTP/1.0 knows no Transfer-Encoding (§6.1)
    "te in http/1.0": chunks(HELLO + SMUGGLED).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "te in http/1.0 keep-alive": framed(b"Connection: keep-alive\r\n" + TE).replace(
        b"HTTP/1.1", b"HTTP/1.0", 1
    ),
    # the same on a request that needs no body
    "get with both": framed(b"Content-Length: 47\r\n" + TE, b"0\r\n\r\n" + SMUGGLED).replace(
        b"POST", b"GET", 1
    ),
}


@pytest.mark.parametrize("raw", FRAMING_ATTACKS.values(), ids=FRAMING_ATTACKS.keys())
def test_ambiguous_framing_is_refused_and_nothing_reaches_the_upstream(
    site: Site, raw: bytes
) -> None:
    """400 in the contract's form, the connection closed, the upstream untouched."""
    with site.connect() as client:
        client.send_lenient(raw)
        response = client.response("POST")
        assert_problem(response, 400, "bad_request")
        assert not response.keeps_alive
        client.assert_closed()
    assert site.upstream.requests == []


CHUNK_ATTACKS = {
    "size negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "size plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "size 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "size empty": b"\r\nhello\r\n0\r\n\r\n",
    "size only extension": b";a=b\r\nhello\r\n0\r\n\r\n",
    "size not hexadecimal": b"G\r\nhello\r\n0\r\n\r\n",
    "size quoted": b'"5"\r\nhello\r\n0\r\n\r\n',
    "size space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "size tab before": b"\t5\r\nhello\r\n0\r\n\r\n",
    "size space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "size two numbers": b"5 5\r\nhello\r\n0\r\n\r\n",
    "size vertical tab": b"5\x0b\r\nhello\r\n0\r\n\r\n",
    "size nul": b"5\x00\r\nhello\r\n0\r\n\r\n",
    "size 8 bit": b"\xb5\r\nhello\r\n0\r\n\r\n",
    "size over 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "size very long": b"F" * 64 + b"\r\nhello\r\n0\r\n\r\n",
    "size endless zeros": b"0" * 100_000 + b"5\r\nhello\r\n0\r\n\r\n",
    "size line ended by lf": b"5\nhello\r\n0\r\n\r\n",
    "size line ended by cr": b"5\rhello\r\n0\r\n\r\n",
    "size line ended by cr cr lf": b"5\r\r\nhello\r\n0\r\n\r\n",
    "data without crlf": b"5\r\nhello0\r\n\r\n",
    "data ended by lf": b"5\r\nhello\n0\r\n\r\n",
    "data ended by cr": b"5\r\nhello\r0\r\n\r\n",
    "data ended by two other bytes": b"5\r\nhelloXX0\r\n\r\n",
    "data longer than size": b"3\r\nhello\r\n0\r\n\r\n",
    "extension with lf": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "extension with lf hiding a chunk": b"2;\nxx\r\n4c\r\nhello\r\n0\r\n\r\n",
    "extension with cr": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "extension with nul": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "extension too long": b"5;" + b"a" * 200_000 + b"\r\nhello\r\n0\r\n\r\n",
    "last chunk ended by lf": b"5\r\nhello\r\n0\n\r\n",
    "end ended by lf": b"5\r\nhello\r\n0\r\n\n",
    "last chunk with data": b"5\r\nhello\r\n0\r\nhello\r\n\r\n",
    "trailer without colon": b"5\r\nhello\r\n0\r\nX-Trailer\r\n\r\n",
    "trailer folded": b"5\r\nhello\r\n0\r\nX-T: a\r\n b\r\n\r\n",
    "trailer with nul": b"5\r\nhello\r\n0\r\nX-T: a\x00\r\n\r\n",
    "trailer with lf": b"5\r\nhello\r\n0\r\nX-T: a\nX-U: b\r\n\r\n",
    "trailer space before colon": b"5\r\nhello\r\n0\r\nX-T : a\r\n\r\n",
    "trailer name not a token": b"5\r\nhello\r\n0\r\nX(T): a\r\n\r\n",
}


@pytest.mark.parametrize("body", CHUNK_ATTACKS.values(), ids=CHUNK_ATTACKS.keys())
def test_broken_chunk_is_refused_and_never_completes_a_request(site: Site, body: bytes) -> None:
    """400, closed; an upstream that already had the head sees its connection cut (§7.1)."""
    with site.connect() as client:
        client.send_lenient(chunks(body) + SMUGGLED)
        response = client.response("POST")
        assert_problem(response, 400, "bad_request")
        assert not response.keeps_alive
        client.assert_closed()
    assert "/smuggled" not in site.upstream.targets
    assert not any(request.complete for request in site.upstream.requests)


@pytest.mark.parametrize(
    "trailers",
    [b"X-T: " + b"a" * 200_000 + b"\r\n", b"X-T: a\r\n" * 5000],
    ids=["one huge field", "thousands of fields"],
)
def test_trailer_section_has_limits_too(site: Site, trailers: bytes) -> None:
    """A trailer section over the header limits is refused, not collected (431 or 400)."""
    with site.connect() as client:
        client.send_lenient(chunks(b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n"))
        assert client.response("POST").status in (400, 431)
        client.assert_closed()
    assert not any(request.complete for request in site.upstream.requests)


VALID_BODIES = {
    "cl": sized(b"5"),
    "cl leading zeros": sized(b"0005"),
    "cl spaces around": sized(b"\t 5 \t"),
    "cl no space": framed(b"Content-Length:5\r\n", b"hello"),
    "cl lower case": framed(b"content-length: 5\r\n", b"hello"),
    "chunked": chunks(HELLO),
    "chunked mixed case": framed(b"tRANSFER-eNCODING: cHuNkEd\r\n", HELLO),
    "chunked spaces around": framed(b"Transfer-Encoding: \t chunked \t\r\n", HELLO),
    "two chunks": chunks(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    "size leading zeros": chunks(b"00005\r\nhello\r\n000\r\n\r\n"),
    "size upper case": chunks(b"A\r\nhellohello\r\n0\r\n\r\n"),
    "size lower case": chunks(b"a\r\nhellohello\r\n0\r\n\r\n"),
    "extension": chunks(b"5;name=value\r\nhello\r\n0;last\r\n\r\n"),
    "extension quoted": chunks(b'5;name="a b;c"\r\nhello\r\n0\r\n\r\n'),
    "lookalike fields": framed(
        b"Content_Length: 7\r\nX-Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"hello"
    ),
}


@pytest.mark.parametrize("raw", VALID_BODIES.values(), ids=VALID_BODIES.keys())
def test_valid_framing_is_remade(site: Site, raw: bytes) -> None:
    """What is valid passes with exactly its body, in framing of our own; keep-alive goes on."""
    expected = b"hellohello" if b"hellohello" in raw else b"hello"
    with site.connect() as client:
        client.send(raw.replace(b"/target", b"/valid", 1) + get("/next"))
        assert client.response("POST").status == 200
        assert client.response().body == b"GET /next 0"
    # the head of an attack that was cut off before may only arrive now
    first, second = (each for each in site.upstream.requests if each.target != "/target")
    assert first.body == expected
    assert second.target == "/next"


def test_post_without_framing_has_no_body(site: Site) -> None:
    """Without framing fields a request has no body: what follows is the next request (§6.3)."""
    with site.connect() as client:
        client.send(get("/first", method="POST") + get("/second"))
        assert client.response("POST").status == 200
        assert client.response().status == 200
    assert site.upstream.targets == ["/first", "/second"]
    assert site.upstream.requests[0].body == b""


def test_zero_length_body_keeps_its_content_length(site: Site) -> None:
    """`Content-Length: 0` on a POST goes on as such (RFC 9110 §8.6 wants it sent)."""
    assert site.ask(post(b"")).status == 200
    assert site.upstream.only.get("Content-Length") == "0"


def test_get_with_body_is_framed(site: Site) -> None:
    """A body on GET is unusual and legal; it arrives as a body, never as a request."""
    with site.connect() as client:
        client.send(post(SMUGGLED, "/outer", method="GET") + get("/next"))
        assert client.response().status == 200
        assert client.response().status == 200
    assert site.upstream.targets == ["/outer", "/next"]
    assert site.upstream.requests[0].body == SMUGGLED


@pytest.mark.parametrize("raw", [sized(b"10"), chunks(b"5\r\nhello\r\n")], ids=["cl", "chunked"])
def test_body_cut_off_by_the_client_never_looks_complete(site: Site, raw: bytes) -> None:
    """A client that ends inside its body: the upstream's connection is cut, too."""
    with site.connect() as client:
        client.send(raw)
        site.upstream.wait_requests(1)
    site.upstream.wait(lambda: site.upstream.concurrent == 0, "the cut connection")
    assert not site.upstream.only.complete


def test_dangerous_trailers_never_pass(site: Site) -> None:
    """Framing, routing and identity fields in trailers are dropped or refused (RFC 9110 §6.5.1)."""
    dangerous = (
        b"Content-Length: 3\r\nTransfer-Encoding: identity\r\nHost: evil.test\r\n"
        b"Connection: close\r\nX-Forwarded-For: 6.6.6.6\r\nX-Correlation-ID: evil\r\n"
    )
    with site.connect() as client:
        client.send(chunks(b"5\r\nhello\r\n0\r\nX-Checksum: abc\r\n" + dangerous + b"\r\n"))
        response = client.response("POST")
    assert response.status in (200, 400)
    if response.status == 200:
        assert [name.lower() for name, _ in site.upstream.only.trailers] == [b"x-checksum"]


def test_harmless_trailers_reach_the_upstream(site: Site) -> None:
    """Both values of a repeated trailer arrive in order, behind the whole body."""
    with site.connect() as client:
        client.send(chunks(b"5\r\nhello\r\n0\r\nX-Sum: abc\r\nX-Sum: def\r\n\r\n"))
        assert client.response("POST").status == 200
    request = site.upstream.only
    assert request.body == b"hello"
    assert request.trailers == [(b"X-Sum", b"abc"), (b"X-Sum", b"def")]


def test_body_byte_by_byte(site: Site) -> None:
    """A chunked request in segments of one byte, with another request behind, reads the same."""
    raw = chunks(b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: abc\r\n\r\n") + get("/next")
    with site.connect() as client:
        for at in range(len(raw)):
            client.send(raw[at : at + 1])
        assert client.response("POST").body == b"POST /target 6"
        assert client.response().body == b"GET /next 0"
    assert site.upstream.requests[0].trailers == [(b"X-Sum", b"abc")]


def test_refusals_leave_no_connection_behind(site: Site) -> None:
    """After a run of attacks the proxy holds no client connection open."""
    before = site.proxy.descriptors()
    for raw in list(FRAMING_ATTACKS.values())[:20]:
        site.ask(raw, method="POST")
    wait_until(lambda: site.proxy.descriptors() <= before + 1, "closed descriptors")
