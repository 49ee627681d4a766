"""Strict multipart reading, header values, safe names."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.uploads.form import values
from proxy.uploads.form.reader import PART_END, FormError, FormReader, Part
from proxy.uploads.formats.families import MP4, MPEG
from tests.uploads.drive import BOUNDARY, form, part


def read(body: bytes, chunk: int = 1 << 20) -> list[tuple[Part, bytes]]:
    """All parts of `body`, fed in pieces."""
    reader = FormReader(BOUNDARY)
    found: list[tuple[Part, bytes]] = []
    for at in range(0, len(body), chunk):
        for event in reader.feed(body[at : at + chunk]):
            if isinstance(event, Part):
                found.append((event, b""))
            elif event is not PART_END:
                assert isinstance(event, bytes)
                found[-1] = (found[-1][0], found[-1][1] + event)
    reader.close()
    return found


GOOD = form(part(b"5", b"max_shorts", None), part(b"\r\n--almost\r\n-", b"audio_file"))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("before", [b"", b"\r\n", b"This is a form.\r\n--no\r\n"])
@pytest.mark.parametrize("behind", [b"", b"\r\n", b"\n", b"\r\n\r\n", b"\r\nThat was it.\r\n--"])
def test_a_form_reads_the_same_in_pieces_of_any_size(
    chunk: int, before: bytes, behind: bytes
) -> None:
    """Down to one byte, and whatever RFC 2046 allows before and behind."""
    body = before + GOOD.removesuffix(b"\r\n") + behind
    assert read(body, chunk) == [
        (Part("max_shorts", None, b"max_shorts"), b"5"),
        (Part("audio_file", "song.mp3", b"audio_file"), b"\r\n--almost\r\n-"),
    ]


END = b"--" + BOUNDARY + b"--"
BAD = {
    "long preamble": b"j" * 4095 + b"\r\n" + GOOD,
    "endless preamble": b"\r\n" * 100_000,
    "boundary within a line": b"junk" + GOOD,
    "only at the start of a later line": b"--" + BOUNDARY[:9] + GOOD[2:] + GOOD,
    "longer first boundary": GOOD.replace(b"\r\n", b"x\r\n", 1),
    "long epilogue": GOOD + b"j" * 4096,
    "last boundary goes on": GOOD.removesuffix(b"\r\n") + b"junk",
    "last boundary twice": GOOD + b"x\r\n" + END + b"\r\n",
    "second form": GOOD + GOOD,
    "cut in the data": GOOD[:-60],
    "cut in the last boundary": GOOD[:-5],
    "cut in a header": GOOD[:40],
    "line feeds only": GOOD.replace(b"\r\n", b"\n"),
    "another boundary": GOOD.replace(BOUNDARY, b"other"),
    "no disposition": form(part(b"x").replace(b"Content-Disposition", b"Content-Description")),
    "two dispositions": form(part(b"x", b"a", None, b'Content-Disposition: form-data; name="b"')),
    "two types": form(part(b"x", b"a", b"b", b"Content-Type: a/b", b"Content-Type: c/d")),
    "two forms of a type": form(
        part(b"x", b"a", b"b", b"Content-Type: a/b; c=d", b"Content-Type: a/b")
    ),
    "name that may end twice": form(part(b"x", rb"a\"; filename=\"b", None)),
    "name that ends in a backslash": form(part(b"x", rb"a\\", None)),
    "name with a backslash": form(part(b"x", rb"a\b", None)),
    "extended name": form(part(b"x").replace(b"name=", b"name*=utf-8''x; name=")),
    "file name in pieces": form(part(b"x").replace(b"filename=", b"filename*0=")),
    "name with blanks, unquoted": form(part(b"x").replace(b'"audio_file"', b"audio file")),
    "quote in a name": form(part(b"x", b'a"b', None)),
    "name with a blank around it": form(part(b"x", b" audio_file", None)),
    "name with a no-break space behind it": form(part(b"x", b"audio_file\xa0", None)),
    "data that begin with the boundary": form(part(b"--" + BOUNDARY + b"\r\n")),
    "data that begin with the last boundary": form(part(END + b"x\r\n\r\n"), part(b"x", b"b")),
    "header that begins like the last boundary": form(part(b"x", b"a", None, END + b": x")),
    "name with a byte order mark": form(part(b"x", b"\xef\xbb\xbfaudio_file", None)),
    "no name": form(part(b"x").replace(b'name="audio_file"; ', b"")),
    "empty name": form(part(b"x", b"")),
    "name twice": form(part(b"x", b'a"; name="b')),
    "filename twice": form(part(b"x", b"a", b'b"; filename="c')),
    "attachment": form(part(b"x").replace(b"form-data", b"attachment")),
    "base64": form(part(b"x", b"a", b"b", b"Content-Transfer-Encoding: base64")),
    "quoted-printable": form(part(b"x", b"a", b"b", b"content-transfer-encoding:Quoted-Printable")),
    "unknown encoding": form(part(b"x", b"a", b"b", b"Content-Transfer-Encoding: binary, gzip")),
    "two encodings": form(
        part(
            b"x",
            b"a",
            b"b",
            b"Content-Transfer-Encoding: 8bit",
            b"Content-Transfer-Encoding: x-uuencode",
        )
    ),
    "nested": form(part(b"x", b"a", b"b", b"Content-Type: Multipart/mixed; boundary=q")),
    "folded header": form(part(b"x", b"a", b"b", b"Content-Type: text/plain;\r\n charset=utf-8")),
    "null in a header": form(part(b"x", b"a\0b")),
    "header without colon": form(part(b"x", b"a", b"b", b"nonsense")),
    "too many headers": form(part(b"x", b"a", b"b", *(b"X-%d: 1" % n for n in range(40)))),
    "header too long": form(part(b"x", b"a", b"b", b"X-Long: " + b"y" * 20_000)),
    "too many parts": form(*(part(b"x", b"a", None) for _ in range(300))),
    "boundary inside a header block": b"--" + BOUNDARY + b"\r\n" + END,
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_what_two_parsers_could_read_in_two_ways_is_refused(name: str, chunk: int) -> None:
    """However it is cut into pieces."""
    with pytest.raises(FormError):
        read(BAD[name], chunk)


@given(st.binary(max_size=3000), st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_any_payload_comes_out_as_it_went_in(payload: bytes, chunk: int) -> None:
    """As long as it does not hold the boundary itself."""
    assert read(form(part(payload)), chunk) == [
        (Part("audio_file", "song.mp3", b"audio_file"), payload)
    ]


@given(
    st.lists(st.sampled_from([GOOD, END, BOUNDARY, b"--", b"\r\n", b"\n", b"\0", b"a: b", b'"']))
)
@settings(max_examples=200, deadline=None)
def test_no_body_does_more_than_be_refused(pieces: list[bytes]) -> None:
    """Whatever is put together from a form's pieces is read or a `FormError`."""
    with contextlib.suppress(FormError):
        read(b"".join(pieces), 37)


@pytest.mark.parametrize(
    ("value", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b:c"', b"a b:c"),
        ("multipart/form-data;boundary=" + "x" * 70, b"x" * 70),
        ("multipart/form-data; boundary=abc;", b"abc"),
        ("multipart/form-data;boundary=*****", b"*****"),
        ("multipart/form-data; boundary====1700000000000===", b"===1700000000000==="),
        ("multipart/form-data; boundary=----=_Part_1_2.3; charset=x", b"----=_Part_1_2.3"),
        ("multipart/form-data; boundary=__X_{PAW}[1]~|^!#$%&@", b"__X_{PAW}[1]~|^!#$%&@"),
        ('multipart/form-data; boundary="a,b (c)<d>"', b"a,b (c)<d>"),
        ("multipart/form-data; boundary=" + "x" * 200, b"x" * 200),
    ],
)
def test_boundaries_as_servers_take_them(value: str, boundary: bytes) -> None:
    """Token or quoted or neither, in any case; they frame a form that is read."""
    assert values.parse_form_type(value).boundary == boundary
    reader = FormReader(boundary)
    events = list(reader.feed(form(part(b"x")).replace(BOUNDARY, boundary)))
    assert [event for event in events if isinstance(event, bytes)] == [b"x"]
    reader.close()


@pytest.mark.parametrize(
    ("charset", "kept"),
    [
        ("UTF-8", "UTF-8"),
        ('"iso-8859-1"', "iso-8859-1"),
        ("windows-1252", "windows-1252"),
        ("utf-16", None),
        ("utf-7", None),
        ("shift_jis", None),
        ("x", None),
    ],
)
def test_the_charset_of_a_form_stays_where_it_frames_nothing(
    charset: str, kept: str | None
) -> None:
    """In UTF-7 and UTF-16 a name may be another than ours, in Shift JIS a quote may end later."""
    value = f"multipart/form-data; charset={charset}; boundary=x"
    assert values.parse_form_type(value).charset == kept


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize("behind", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_form_may_have_no_parts(chunk: int, behind: bytes) -> None:
    """As browsers send it where nothing is filled in."""
    assert read(END + behind, chunk) == []


@pytest.mark.parametrize("value", [b"binary", b"8bit", b"7bit", b"BINARY ", b"8Bit"])
def test_the_encodings_that_are_none(value: bytes) -> None:
    """RFC 2045 §6.2; Apache HttpClient 4, Retrofit, Dart and many more send them."""
    ((found, data),) = read(form(part(b"x=3D", b"a", b"b", b"Content-Transfer-Encoding: " + value)))
    assert (found.filename, data) == ("b", b"x=3D")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"text/plain; charset=ISO-8859-1", b"text/plain; charset=ISO-8859-1"),
        (b'TEXT/plain;charset="utf-8"', b"text/plain; charset=utf-8"),
        (b"application/json", b"application/json"),
        (b"application/vnd.api+json; name=x; profile=y", b"application/vnd.api+json"),
        (b'text/csv; charset="a b"', b"text/csv"),
        (b"application/octet-stream", None),
        (b"audio/mpeg", None),
        (b"text", None),
        (b"", None),
        (b"text/plain; charset", None),
    ],
)
def test_text_parts_keep_a_type_of_text(sent: bytes, kept: bytes | None) -> None:
    """Nothing that makes a file of them at some parser."""
    body = form(part(b"x", b"a", None, b"Content-Type: " + sent, b"content-type:" + sent))
    assert read(body)[0][0].text_type == kept


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (rb"a\"b", 'a"b'),
        (b"a%22b", "a%22b"),
        ("ação".encode(), "ação"),
        ("ação".encode("latin-1"), "ação"),
        (b"tags[]", "tags[]"),
        (b"a; b=c", "a; b=c"),
    ],
)
def test_field_names_stay_as_they_came(raw: bytes, name: str) -> None:
    """Whichever escape is used is between client and app."""
    found = read(form(part(b"x", raw, None)))[0][0]
    assert (found.raw_name, found.name, found.filename) == (raw, name, None)
    line = values.write_disposition(raw)
    assert line == b'Content-Disposition: form-data; name="' + raw + b'"\r\n'


@pytest.mark.parametrize(
    "value",
    [
        "",
        "application/json",
        "multipart/mixed; boundary=a",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a boundary=b",
        "multipart/form-data; boundary=a, multipart/form-data; boundary=b",
        'multipart/form-data; boundary="a ',
        'multipart/form-data; boundary="a "',
        'multipart/form-data; boundary="a;b"',
        r'multipart/form-data; boundary="a\"b"',
        'multipart/form-data; boundary=a"b',
        "multipart/form-data; boundary=a\tb",
        "multipart/form-data; boundary=" + "x" * 201,
        "multipart/form-data; boundary=a\u00e9",
        "multipart/form-data; boundary*=utf-8''a",
    ],
)
def test_doubtful_boundaries_are_refused(value: str) -> None:
    """Two, none, too long, or of characters outside the set."""
    with pytest.raises(ValueError, match=r"\w"):
        values.parse_form_type(value)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (rb'filename="a.mp3"', "a.mp3"),
        (rb"filename=a.mp3", "a.mp3"),
        (rb'filename="a\"b.mp3"', 'a"b.mp3'),
        (rb'filename="C:\music\a.mp3"', r"C:\music\a.mp3"),
        ('filename="música.mp3"'.encode(), "música.mp3"),
        ('filename="música.mp3"'.encode("latin-1"), "música.mp3"),
        (b"filename*=UTF-8''m%C3%BAsica.mp3", "música.mp3"),
        (b"filename=\"x.mp3\"; filename*=utf-8''m%C3%BAsica.mp3", "música.mp3"),
        (b"filename*=iso-8859-1'pt'm%FAsica.mp3", "música.mp3"),
        (b'filename=""', ""),
        (b"filename=", ""),
        (b"filename=my song (1).mp3", "my song (1).mp3"),
        (b'filename="my "best" song.mp3"', 'my "best" song.mp3'),
        (b'filename="C:\\m\xfasica\\a.mp3"', "C:\\m\xfasica\\a.mp3"),
        ("filename=m\xfasica.mp3".encode(), "m\xfasica.mp3"),
        (b"filename*=GBK''%B8%E8.mp3", "\u6b4c.mp3"),
        (b"filename*=windows-1252''m%FAsica.mp3", "m\xfasica.mp3"),
        (b"filename*=Shift_JIS'ja'%89%CC.mp3", "\u6b4c.mp3"),
        (b"filename*=\"utf-8''a%20b.mp3\"", "a b.mp3"),
        (b"filename=x.mp3; filename*=utf-7''a", "x.mp3"),
        (b"filename*=unicode_escape''a", ""),
        (b"filename*=a.mp3", ""),
    ],
)
def test_file_names_as_clients_write_them(header: bytes, name: str) -> None:
    """Quoted, escaped or neither, with a path, in UTF-8, Latin-1 and RFC 8187."""
    body = form(part(b"x").replace(b'filename="song.mp3"', header))
    assert read(body)[0][0].filename == name


@pytest.mark.parametrize(
    ("given_name", "safe"),
    [
        ("song.mp3", "song.mp3"),
        ("SONG.MP3", "SONG.mp3"),
        ("song.m4a", "song.mp3"),
        ("song", "song.mp3"),
        ("Música (ao vivo) 2.mp3", "Música (ao vivo) 2.mp3"),
        ("../../etc/passwd", "passwd.mp3"),
        (r"C:\temp\a.mp3", "a.mp3"),
        ('a"; rm -rf "b.mp3', "a__ rm -rf _b.mp3"),
        ("evil.php\0.mp3", "evil.php.mp3"),
        ("a\r\nX-Header: 1.mp3", "a__X-Header_ 1.mp3"),
        (".mp3", "audio.mp3"),
        ("", "audio.mp3"),
        ("....", "audio.mp3"),
        ("-rf.mp3", "rf.mp3"),
        ("a\u202egnp.mp3", "a_gnp.mp3"),
        ("x" * 5000 + ".mp3", "x" * 100 + ".mp3"),
    ],
)
def test_safe_names(given_name: str, safe: str) -> None:
    """Letters of any script stay; paths, quotes, control and direction marks do not."""
    assert values.safe_file_name(given_name, MPEG.extensions) == safe


@given(st.text(max_size=300))
def test_safe_names_are_safe(given_name: str) -> None:
    """Whatever the client calls its file."""
    name = values.safe_file_name(given_name, MP4.extensions)
    assert not set(name) & set('/\\"\0\r\n\t;%<>|&$`')
    assert name[0] not in ".-"
    assert name.endswith(MP4.extensions)
    assert len(name.encode()) < 500
