"""Forms as HTTP clients write them: what each does differently from the others. They are
reconstructed from the clients' sources and documentation, not captured from the wire; the clients
that are at hand run themselves (test_upload_clients.py).

Each has the field `max_shorts` with 5 and the file song.mp3 in `audio_file`, where `<AUDIO>`
stands, unless it says otherwise. Line ends are CRLF; `<LENGTH>` is the number of the audio's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

FIELDS = (("max_shorts", "5"),)


@dataclass(frozen=True)
class Client:
    """`boundary` as the `Content-Type` of the request writes it, and what comes `more` behind it;
    `form` as the body. What the app reads: `fields`, the name of the file, and what the client
    itself puts `behind` the audio."""

    name: str
    boundary: str
    form: str
    fields: tuple[tuple[str, str], ...] = FIELDS
    filename: str = "song.mp3"
    more: str = ""
    behind: bytes = b""
    charset: str = "utf-8"

    @property
    def content_type(self) -> str:
        """Of the request."""
        return f"multipart/form-data; boundary={self.boundary}{self.more}"

    def body(self, audio: bytes) -> bytes:
        """Of the request."""
        text = self.form.replace("<LENGTH>", str(len(audio))).replace("\n", "\r\n")
        return text.encode(self.charset).replace(b"<AUDIO>", audio)


CLIENTS = [
    Client("Chrome, with an input left empty", "----WebKitFormBoundary7MA4YWxkTrZu0gW", """\
------WebKitFormBoundary7MA4YWxkTrZu0gW
Content-Disposition: form-data; name="max_shorts"

5
------WebKitFormBoundary7MA4YWxkTrZu0gW
Content-Disposition: form-data; name="audio_file"; filename="say %22hi%22.mp3"
Content-Type: audio/mpeg

<AUDIO>
------WebKitFormBoundary7MA4YWxkTrZu0gW
Content-Disposition: form-data; name="cover"; filename=""
Content-Type: application/octet-stream


------WebKitFormBoundary7MA4YWxkTrZu0gW--
""", filename="say _hi.mp3"),
    Client("Firefox", "---------------------------735323031399963166993862150", """\
-----------------------------735323031399963166993862150
Content-Disposition: form-data; name="max_shorts"

5
-----------------------------735323031399963166993862150
Content-Disposition: form-data; name="audio_file"; filename="música.mp3"
Content-Type: audio/mpeg

<AUDIO>
-----------------------------735323031399963166993862150--
""", filename="música.mp3"),
    Client("Apache HttpClient 4, strict", "iKpV8bYkW2ZqXc7hT3nJmR5sL9dF", """\
--iKpV8bYkW2ZqXc7hT3nJmR5sL9dF
Content-Disposition: form-data; name="max_shorts"
Content-Type: text/plain; charset=ISO-8859-1
Content-Transfer-Encoding: 8bit

5
--iKpV8bYkW2ZqXc7hT3nJmR5sL9dF
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: application/octet-stream
Content-Transfer-Encoding: binary

<AUDIO>
--iKpV8bYkW2ZqXc7hT3nJmR5sL9dF--
""", more="; charset=ISO-8859-1"),
    Client("Retrofit on OkHttp 3", "6e1ac7a1-4a3f-4f4f-9d5c-0b8f7c9f6d10", """\
--6e1ac7a1-4a3f-4f4f-9d5c-0b8f7c9f6d10
Content-Disposition: form-data; name="max_shorts"
Content-Transfer-Encoding: binary
Content-Type: text/plain; charset=utf-8
Content-Length: 1

5
--6e1ac7a1-4a3f-4f4f-9d5c-0b8f7c9f6d10
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/*
Content-Length: <LENGTH>

<AUDIO>
--6e1ac7a1-4a3f-4f4f-9d5c-0b8f7c9f6d10--
"""),
    Client("dio", "--dio-boundary-3788753558", """\
----dio-boundary-3788753558
content-disposition: form-data; name="max_shorts"

5
----dio-boundary-3788753558
content-disposition: form-data; name="note"
content-type: text/plain; charset=utf-8
content-transfer-encoding: binary

olá
----dio-boundary-3788753558
content-disposition: form-data; name="audio_file"; filename="song.mp3"
content-type: application/octet-stream

<AUDIO>
----dio-boundary-3788753558--
""", (*FIELDS, ("note", "olá"))),
    Client("Dart http", "dart-http-boundary-w2qQ.RkV_8+aXfLZ0p'n2sKx4YtQo1vC3hU5mJ7", """\
--dart-http-boundary-w2qQ.RkV_8+aXfLZ0p'n2sKx4YtQo1vC3hU5mJ7
content-disposition: form-data; name="max_shorts"

5
--dart-http-boundary-w2qQ.RkV_8+aXfLZ0p'n2sKx4YtQo1vC3hU5mJ7
content-type: application/octet-stream
content-transfer-encoding: binary
content-disposition: form-data; name="audio_file"; filename="song.mp3"

<AUDIO>
--dart-http-boundary-w2qQ.RkV_8+aXfLZ0p'n2sKx4YtQo1vC3hU5mJ7--
"""),
    Client("needle", "--------------------NODENEEDLEHTTPCLIENT", """\
----------------------NODENEEDLEHTTPCLIENT
Content-Disposition: form-data; name="max_shorts"

5
----------------------NODENEEDLEHTTPCLIENT
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Transfer-Encoding: binary
Content-Type: audio/mpeg

<AUDIO>
----------------------NODENEEDLEHTTPCLIENT--"""),
    Client("Node's form-data, quotes", "--------------------------515890814546601021194782", """\
----------------------------515890814546601021194782
Content-Disposition: form-data; name="max_shorts"

5
----------------------------515890814546601021194782
Content-Disposition: form-data; name="audio_file"; filename="my "best" song.mp3"
Content-Type: audio/mpeg

<AUDIO>
----------------------------515890814546601021194782--
""", filename="my _best_ song.mp3"),
    Client("Faraday with multipart-post", "-----------RubyMultipartPost-3f4d5be0c0a1e7d2", """\
-------------RubyMultipartPost-3f4d5be0c0a1e7d2
Content-Disposition: form-data; name="max_shorts"

5
-------------RubyMultipartPost-3f4d5be0c0a1e7d2
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Length: <LENGTH>
Content-Type: audio/mpeg
Content-Transfer-Encoding: binary

<AUDIO>
-------------RubyMultipartPost-3f4d5be0c0a1e7d2--

"""),
    Client("Mechanize for Ruby", "KWUHBTIRZMDNQXVYAOCJ", """\
--KWUHBTIRZMDNQXVYAOCJ
Content-Disposition: form-data; name="max_shorts"

5
--KWUHBTIRZMDNQXVYAOCJ
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Transfer-Encoding: binary
Content-Type: audio/mpeg

<AUDIO>
--KWUHBTIRZMDNQXVYAOCJ--
"""),
    Client("Ruby's httpclient, a line more", "boundary_ip41VtXhRnpe8QSJ7A2qGtzgmRxyzA", """\
--boundary_ip41VtXhRnpe8QSJ7A2qGtzgmRxyzA
Content-Disposition: form-data; name="max_shorts"

5
--boundary_ip41VtXhRnpe8QSJ7A2qGtzgmRxyzA
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg

<AUDIO>
--boundary_ip41VtXhRnpe8QSJ7A2qGtzgmRxyzA--


"""),
    Client("Symfony Mime", "_=_symfony_1700000000_8f14e45fceea167a_=_", """\
--_=_symfony_1700000000_8f14e45fceea167a_=_
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit
Content-Disposition: form-data; name="max_shorts"

5
--_=_symfony_1700000000_8f14e45fceea167a_=_
Content-Type: audio/mpeg
Content-Transfer-Encoding: 8bit
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"

<AUDIO>
--_=_symfony_1700000000_8f14e45fceea167a_=_--
"""),
    Client("Guzzle", "b3a5e0a5ad1d8a7ec4b1c4e6d7f0a9b8c7d6e5f4", """\
--b3a5e0a5ad1d8a7ec4b1c4e6d7f0a9b8c7d6e5f4
Content-Disposition: form-data; name="max_shorts"
Content-Length: 1

5
--b3a5e0a5ad1d8a7ec4b1c4e6d7f0a9b8c7d6e5f4
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Length: <LENGTH>
Content-Type: audio/mpeg

<AUDIO>
--b3a5e0a5ad1d8a7ec4b1c4e6d7f0a9b8c7d6e5f4--
"""),
    Client("JMeter", "xH8XDQmbX4Z9LHhSuzjk-rZpZ3cYx0W8Nw", """\
--xH8XDQmbX4Z9LHhSuzjk-rZpZ3cYx0W8Nw
Content-Disposition: form-data; name="max_shorts"
Content-Type: text/plain; charset=US-ASCII
Content-Transfer-Encoding: 8bit

5
--xH8XDQmbX4Z9LHhSuzjk-rZpZ3cYx0W8Nw
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg
Content-Transfer-Encoding: binary

<AUDIO>
--xH8XDQmbX4Z9LHhSuzjk-rZpZ3cYx0W8Nw--
"""),
    Client("the classic snippet for Android", "*****", """\
--*****
Content-Disposition: form-data; name="max_shorts"

5
--*****
Content-Disposition: form-data; name="audio_file";filename="song.mp3"

<AUDIO>
--*****--
"""),
    Client("the classic snippet for Java", "===1700000000000===", """\
--===1700000000000===
Content-Disposition: form-data; name="max_shorts"
Content-Type: text/plain; charset=UTF-8

5
--===1700000000000===
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg
Content-Transfer-Encoding: binary

<AUDIO>

--===1700000000000===--
""", behind=b"\r\n"),
    Client("Spring's RestTemplate, with a JSON part", "Qx7fUVVfuAjK8wYHn0Zq1OQd3ySDkL", """\
--Qx7fUVVfuAjK8wYHn0Zq1OQd3ySDkL
Content-Disposition: form-data; name="meta"
Content-Type: application/json

{"title": "olá"}
--Qx7fUVVfuAjK8wYHn0Zq1OQd3ySDkL
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg
Content-Length: <LENGTH>

<AUDIO>
--Qx7fUVVfuAjK8wYHn0Zq1OQd3ySDkL--
""", (("meta", '{"title": "olá"}'),)),
    Client(".NET HttpClient", '"0f8fad5b-d9cb-469f-a165-70867728950e"', """\
--0f8fad5b-d9cb-469f-a165-70867728950e
Content-Type: text/plain; charset=utf-8
Content-Disposition: form-data; name=max_shorts

5
--0f8fad5b-d9cb-469f-a165-70867728950e
Content-Disposition: form-data; name=audio_file; filename="x"; filename*=utf-8''m%C3%BA%201.mp3

<AUDIO>
--0f8fad5b-d9cb-469f-a165-70867728950e--
""", filename="mú 1.mp3"),
    Client("Go's mime/multipart", "5b8d1c9c0e2f4a6b8c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e", """\
--5b8d1c9c0e2f4a6b8c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e
Content-Disposition: form-data; name="max_shorts"

5
--5b8d1c9c0e2f4a6b8c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e
Content-Disposition: form-data; name="audio_file"; filename="a\\"b.mp3"
Content-Type: application/octet-stream

<AUDIO>
--5b8d1c9c0e2f4a6b8c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e--
""", filename="a_b.mp3"),
    Client("Alamofire", "alamofire.boundary.9b8c7d6e5f4a3b2c", """\
--alamofire.boundary.9b8c7d6e5f4a3b2c
Content-Disposition: form-data; name="max_shorts"

5
--alamofire.boundary.9b8c7d6e5f4a3b2c
Content-Disposition: form-data; name="audio_file"; filename="song.m4a"
Content-Type: audio/mp4

<AUDIO>
--alamofire.boundary.9b8c7d6e5f4a3b2c--
"""),
    Client("Perl's LWP", "xYzZY", """\
--xYzZY
Content-Disposition: form-data; name="max_shorts"

5
--xYzZY
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg

<AUDIO>
--xYzZY--
"""),
    Client("JavaMail, with a preamble", '"----=_Part_0_1234567.1700000000000"', """\
This is a multi-part message in MIME format.

------=_Part_0_1234567.1700000000000
Content-Type: text/plain; charset=us-ascii
Content-Transfer-Encoding: 7bit
Content-Disposition: form-data; name="max_shorts"

5
------=_Part_0_1234567.1700000000000
Content-Type: audio/mpeg; name=song.mp3
Content-Transfer-Encoding: binary
Content-Disposition: form-data; filename=song.mp3; name=audio_file

<AUDIO>
------=_Part_0_1234567.1700000000000--
"""),
    Client("Netty's encoder, in Vert.x and Micronaut", "6e3f0a1b2c4d5e6f", """\
--6e3f0a1b2c4d5e6f
content-disposition: form-data; name="max_shorts"
content-length: 1
content-type: text/plain; charset=UTF-8

5
--6e3f0a1b2c4d5e6f
content-disposition: form-data; name="audio_file"; filename="song.mp3"
content-length: <LENGTH>
content-type: audio/mpeg
content-transfer-encoding: binary

<AUDIO>
--6e3f0a1b2c4d5e6f--
"""),
    Client("hackney for Erlang", "---------------------------abcdefghijklmnop", """\
-----------------------------abcdefghijklmnop
Content-Length: 1
Content-Disposition: form-data; name="max_shorts"
Content-Type: application/octet-stream

5
-----------------------------abcdefghijklmnop
Content-Length: <LENGTH>
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg

<AUDIO>
-----------------------------abcdefghijklmnop--
"""),
    Client("Unity's WWWForm", '"Jc7sAFXoBGTsl9xYHn2QmR3dUkPwZe5bV1tCqLiK"', """\

--Jc7sAFXoBGTsl9xYHn2QmR3dUkPwZe5bV1tCqLiK
Content-Type: text/plain; charset="utf-8"
Content-disposition: form-data; name="max_shorts"

5
--Jc7sAFXoBGTsl9xYHn2QmR3dUkPwZe5bV1tCqLiK
Content-Type: audio/mpeg
Content-disposition: form-data; name="audio_file"; filename="song.mp3"

<AUDIO>
--Jc7sAFXoBGTsl9xYHn2QmR3dUkPwZe5bV1tCqLiK--
"""),
    Client("Qt's QHttpMultiPart", '"boundary_.oOo._MTgyMzA0NDU2Nw/+NzE5OTA="', """\
--boundary_.oOo._MTgyMzA0NDU2Nw/+NzE5OTA=
Content-Disposition: form-data; name="max_shorts"

5
--boundary_.oOo._MTgyMzA0NDU2Nw/+NzE5OTA=
Content-Type: audio/mpeg
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"

<AUDIO>
--boundary_.oOo._MTgyMzA0NDU2Nw/+NzE5OTA=--
"""),
    Client("Cordova's file transfer", "+++++", """\
--+++++
Content-Disposition: form-data; name="max_shorts"

5
--+++++
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg

<AUDIO>
--+++++--
"""),
    Client("AFNetworking", "Boundary+4A5B6C7D8E9F0A1B", """\
--Boundary+4A5B6C7D8E9F0A1B
Content-Disposition: form-data; name="max_shorts"

5
--Boundary+4A5B6C7D8E9F0A1B
Content-Disposition: form-data; name="audio_file"; filename="song.m4a"
Content-Type: audio/x-m4a

<AUDIO>
--Boundary+4A5B6C7D8E9F0A1B--
"""),
    Client("Apache HttpClient 5, extended", "httpclient_boundary_4b8f3c1e-7d2a", """\
--httpclient_boundary_4b8f3c1e-7d2a
Content-Disposition: form-data; name="max_shorts"
Content-Type: text/plain; charset=UTF-8

5
--httpclient_boundary_4b8f3c1e-7d2a
Content-Disposition: form-data; name="audio_file"; filename="m.mp3"; filename*="UTF-8''m%C3%BA.mp3"
Content-Type: audio/mpeg

<AUDIO>
--httpclient_boundary_4b8f3c1e-7d2a--
""", filename="mú.mp3", more="; charset=UTF-8"),
    Client("reqwest for Rust", "8f14e45fceea167a-5a36dedd4bea2543", """\
--8f14e45fceea167a-5a36dedd4bea2543
Content-Disposition: form-data; name="max_shorts"

5
--8f14e45fceea167a-5a36dedd4bea2543
Content-Disposition: form-data; name="audio_file"; filename="song.mp3"
Content-Type: audio/mpeg

<AUDIO>
--8f14e45fceea167a-5a36dedd4bea2543--
"""),
    Client("a snippet for Swift", "Boundary-E0A1B2C3-D4E5-F607", """\
--Boundary-E0A1B2C3-D4E5-F607
Content-Disposition:form-data; name="max_shorts"

5
--Boundary-E0A1B2C3-D4E5-F607
Content-Disposition:form-data; name="audio_file"; filename="song.m4a"
Content-Type: audio/m4a

<AUDIO>
--Boundary-E0A1B2C3-D4E5-F607--"""),
    Client("Windows code page, path and all", "---------------------------7d44e178b0434", """\
-----------------------------7d44e178b0434
Content-Disposition: form-data; name="max_shorts"

5
-----------------------------7d44e178b0434
Content-Disposition: form-data; name="audio_file"; filename="C:\\Música\\canção.mp3"
Content-Type: audio/x-mp3

<AUDIO>
-----------------------------7d44e178b0434--
""", filename="canção.mp3", charset="cp1252"),
]  # fmt: skip
