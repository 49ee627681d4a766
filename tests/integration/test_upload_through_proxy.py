"""Uploads through the real proxy: what the app gets of them, and what the client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from multipart import PushMultipartParser

from tests.data.audio.generate import path_of
from tests.http1 import (
    Connection,
    Request,
    Site,
    Truncated,
    assert_problem,
    get,
    respond,
    wait_until,
)
from tests.http1.process import free_port
from tests.uploads.audio import wav_header
from tests.uploads.drive import CONTENT_TYPE, form, part
from tests.uploads.site import SMALL, UploadSite, answered, chunked, head

MIB = 2**20
MP3 = path_of("mp3").read_bytes()
GOOD = form(part(b"5", b"max_shorts", None), part(MP3))
PDF = b"%PDF-1.7\n1 0 obj\n" + b"secret of the PDF\n" * 20_000


@pytest.fixture(scope="module")
def site_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadSite]:
    """One proxy for the whole file."""
    with UploadSite(tmp_path_factory.mktemp("uploads")) as site:
        yield site


@pytest.fixture
def site(site_of_module: UploadSite) -> Iterator[UploadSite]:
    """Nothing recorded yet; nothing malformed upstream and no defect in the log afterwards."""
    site_of_module.fresh()
    yield site_of_module
    site_of_module.check()


def files(arrival_type: str, body: bytes) -> list[tuple[str, str | None, bytes]]:
    """(field, file name, data) of every part that the app got."""
    boundary = arrival_type.partition("boundary=")[2]
    found: list[tuple[str, str | None, bytes]] = []
    with PushMultipartParser(boundary, strict=True) as parser:
        for event in parser.parse(body):
            if isinstance(event, (bytes, bytearray)):
                name, filename, data = found[-1]
                found[-1] = (name, filename, data + bytes(event))
            elif event is not None:
                found.append((event.name, event.filename, b""))
    return found


# --- good ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked", "chunks of one byte"])
def test_a_good_upload_arrives(site: UploadSite, framing: str) -> None:
    """However the client frames it; the app gets fields in order, the file byte for byte."""
    if framing == "length":
        raw = head(len(GOOD)) + GOOD
    else:
        raw = head(None) + chunked(GOOD, 1 if "one" in framing else 1000)
    assert site.ask(raw).status == 202
    arrival = site.only_arrival()
    kind = arrival.request.get("Content-Type") or ""
    assert files(kind, arrival.body) == [
        ("max_shorts", None, b"5"),
        ("audio_file", "song.mp3", MP3),
    ]
    assert arrival.request.get("Content-Length") == str(len(arrival.body))


@pytest.mark.parametrize("path", ["/raw", "/plain"])
def test_a_hundred_thousand_chunks(site: UploadSite, path: str) -> None:
    """More of them than one turn of the event loop takes: none is lost, checked or not."""
    audio = wav_header(100_000) + bytes(range(250)) * 400
    raw = head(None, "Content-Type: audio/wav", path=path) + chunked(audio, 1)
    assert site.ask(raw).status == 202
    assert site.only_arrival().body == audio


def test_segments_of_one_byte(site: UploadSite) -> None:
    """A client whose every byte travels alone, head and boundaries included."""
    body = form(part(MP3[: len(MP3) // 2]))
    with site.connect() as client:
        for byte in head(len(body)) + body:
            client.send(bytes((byte,)))
        assert client.response().status == 202
    assert site.only_arrival().complete


def test_a_slow_sender_holds_nothing_until_its_file_is_there(site: UploadSite) -> None:
    """Half a file, a pause, the rest: neither a process nor a connection to the app waits with it,
    and the upload is accepted."""
    with site.connect() as client:
        client.send(head(len(GOOD)) + GOOD[:1500])
        assert site.ask(get("/other")).status == 202  # the half has been read by then
        assert site.probes() == []
        assert [arrived.request.method for arrived in site.app.arrived] == ["GET"]
        client.send(GOOD[1500:])
        assert client.response().status == 202
    assert site.app.arrived[1].complete


@pytest.mark.parametrize("kept", [0, 70_000, 900_000])
def test_slow_senders_leave_the_app_to_others(tmp_path: Path, kept: int) -> None:
    """An app that takes one connection: twenty uploads stand still, their type known or not, and
    the one that does not is accepted; so is one of the others in the end."""
    body = form(part(b"5", b"max_shorts", None), part(wav_header(2 * MIB) + bytes(2 * MIB)))
    with (
        UploadSite(tmp_path, app={"pool": {"max_connections": 1}}) as site,
        contextlib.ExitStack() as clients,
    ):
        slow = [clients.enter_context(site.connect()) for _ in range(20)]
        for client in slow:
            client.send(head(len(body)) + body[:kept])
        probed = len(slow) if kept else 0
        wait_until(lambda: len(site.probes()) == probed, "their probes")
        assert site.ask(head(len(GOOD)) + GOOD).status == 202
        slow[7].send(body[kept:])
        assert slow[7].response().status == 202
        for client in slow:
            client.close()
        site.check()


def test_fields_before_the_file_may_be_large(site: UploadSite) -> None:
    """They are held back as long as it takes, a MiB at most."""
    note = b"n" * 900_000
    body = form(part(note, b"note", None), part(MP3))
    assert site.ask(head(len(body)) + body).status == 202
    arrival = site.only_arrival()
    kind = arrival.request.get("Content-Type") or ""
    assert files(kind, arrival.body) == [("note", None, note), ("audio_file", "song.mp3", MP3)]


def test_two_uploads_on_one_connection(site: UploadSite) -> None:
    """The connection stays usable after an accepted upload, pipelined ones included."""
    with site.connect() as client:
        client.send((head(len(GOOD)) + GOOD) * 2)
        assert [client.response().status, client.response().status] == [202, 202]


def test_continue_comes_for_what_may_be_good(site: UploadSite) -> None:
    """100, then the body, then the answer."""
    with site.connect() as client:
        client.send(head(len(GOOD), "Expect: 100-continue"))
        assert client.read_response_head().status == 100
        client.send(GOOD)
        assert client.response().status == 202


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_raw_bodies(site: UploadSite, size: int) -> None:
    """`field: null`: the body is the file, unchanged, with its length where it had one."""
    raw = head(None, "Content-Type: audio/mpeg", path="/raw") + chunked(MP3, size)
    assert site.ask(raw).status == 202
    arrival = site.only_arrival()
    assert (arrival.body, arrival.request.get("Content-Type")) == (MP3, "audio/mpeg")
    site.fresh()
    assert site.ask(head(len(MP3), "Content-Type: audio/mpeg", path="/raw") + MP3).status == 202
    assert site.only_arrival().request.get("Content-Length") == str(len(MP3))


def test_methods_without_a_body_pass(site: UploadSite) -> None:
    """A GET on a route with `upload:` is no upload."""
    assert site.ask(get("/small")).status == 202


MD5 = base64.b64encode(hashlib.md5(GOOD).digest()).decode()
SHA256 = base64.b64encode(hashlib.sha256(GOOD).digest()).decode()


def test_digests_of_a_form_are_checked_and_dropped(site: UploadSite) -> None:
    """The app gets other bytes than those; also where they come in a trailer."""
    fields = (
        f"Content-MD5: {MD5}",
        f"Digest: SHA-256={SHA256}",
        f"repr-digest: sha-256=:{SHA256}:",
    )
    assert site.ask(head(len(GOOD), *fields) + GOOD).status == 202
    trailer = f"Content-Digest: sha-256=:{SHA256}:\r\nX-Kept: 1\r\n\r\n".encode()
    raw = head(None, "Trailer: X-Kept") + chunked(GOOD).removesuffix(b"\r\n") + trailer
    assert site.ask(raw).status == 202
    for arrived in site.app.arrived:
        names = {name.lower() for name, _ in arrived.request.fields}
        assert not names & {b"content-md5", b"digest", b"repr-digest", b"content-digest"}
    assert len(site.app.arrived) == 2


@pytest.mark.parametrize("field", ["Content-MD5: {}", "Digest: md5={}", "Content-Digest: md5=:{}:"])
def test_a_form_that_its_digest_does_not_fit_is_refused(site: UploadSite, field: str) -> None:
    """It came damaged; the message names the field."""
    other = base64.b64encode(hashlib.md5(GOOD + b"x").digest()).decode()
    answer = site.ask(head(len(GOOD), field.format(other)) + GOOD)
    problem = assert_problem(answer, 400, "upload_malformed")
    assert field.partition(":")[0] in problem["detail"]
    site.assert_nothing_arrived()


def test_content_type_may_come_twice_if_it_is_the_same(site: UploadSite) -> None:
    """The app gets one."""
    line = f"Content-Type: {CONTENT_TYPE.decode()}"
    assert site.ask(head(len(GOOD), line, line) + GOOD).status == 202
    kinds = [v for n, v in site.only_arrival().request.fields if n.lower() == b"content-type"]
    assert len(kinds) == 1


# --- bad ones -----------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, str]] = {
    "a PDF called song.mp3": (form(part(PDF)), "upload_type_rejected"),
    "empty": (form(part(b"")), "upload_empty"),
    "no file": (form(part(b"x", b"other", None)), "upload_missing"),
    "twice": (form(part(MP3), part(MP3)), "upload_malformed"),
    "junk behind": (GOOD + b"junk" * 2000, "upload_malformed"),
    "cut in the form": (GOOD[:-6], "upload_malformed"),
    "cut in the audio": (form(part(path_of("m4a-last").read_bytes()[:4000])),
                         "upload_duration_unknown"),
    "eleven minutes": (form(part(wav_header(10_560_000) + bytes(10_560_000))), "upload_too_long"),
}  # fmt: skip


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("name", BAD)
def test_the_app_sees_nothing_of_a_bad_upload(site: UploadSite, name: str, framing: str) -> None:
    """A client that sends everything before it reads gets a readable 400; the app no request."""
    body, code = BAD[name]
    length = len(body) if framing == "length" else None
    raw = head(length) + (chunked(body) if length is None else body)
    problem = assert_problem(site.ask(raw), 400, code)
    site.assert_nothing_arrived()
    line = site.proxy.access_line(problem["correlation_id"])
    assert (line["code"], line["upload_verdict"], line["upload_mode"]) == (code, code, "enforce")


@pytest.mark.parametrize(
    "path",
    [
        *("//make-video", "/make-video/", "/MAKE-video", "/make-video;x", "/make%2Dvideo%2f"),
        *("/\\make-video", "/make%252dvideo", "//host/make-video", "http://app/make-video/"),
    ],
)
def test_no_spelling_gets_a_bad_upload_past(site: UploadSite, path: str) -> None:
    """In any spelling that some framework takes for the route's, the check is the route's."""
    body, code = BAD["a PDF called song.mp3"]
    assert_problem(site.ask(head(len(body), path=path) + body), 400, code)
    site.assert_nothing_arrived()


@pytest.mark.parametrize("path", ["/make-video%0a", "/x/../make-video", "/x/%2e%2e/make-video"])
def test_what_has_no_meaning_of_its_own_reaches_nobody(site: UploadSite, path: str) -> None:
    """Control characters and dot segments are refused, and the app sees nothing of the request."""
    assert_problem(site.ask(head(len(GOOD), path=path) + GOOD), 400, "bad_request")
    site.settle()
    assert site.app.arrived == []


def test_a_spelled_upload_goes_on_as_it_came(site: UploadSite) -> None:
    """The app gets the path as the client wrote it."""
    assert site.ask(head(len(GOOD), path="//make-video;x/") + GOOD).status == 202
    assert site.only_arrival().request.target == "//make-video;x/"


def test_the_eleven_minutes_end_with_their_facts(site: UploadSite) -> None:
    """The problem has limit, measure and field; the log the type and what was seen."""
    body = BAD["eleven minutes"][0]
    problem = assert_problem(site.ask(head(len(body)) + body), 400, "upload_too_long")
    assert problem["detail"] == "Audio file too long: over 10min (max: 10min)"
    assert (problem["limit"], problem["field"]) == (600, "audio_file")
    assert problem["measured"] > 600
    line = site.proxy.access_line(problem["correlation_id"])
    assert line["upload_type"] == "audio/wav"
    assert line["upload_duration"] > 600


@pytest.mark.parametrize("expect", [True, False])
def test_a_length_that_cannot_fit_is_refused_unread(site: UploadSite, expect: bool) -> None:
    """No 100 (Continue), no upstream connection, and the document's words."""
    fields = ("Expect: 100-continue",) if expect else ()
    with site.connect() as client:
        client.send(head(int(61.2 * MIB), *fields))
        problem = assert_problem(client.response(), 400, "upload_too_large")
        assert client.interim == []
    assert problem["detail"] == "Audio file too large: 61.2MB (max: 50MB)"
    site.settle()
    assert site.upstream.requests == []
    line = site.proxy.access_line(problem["correlation_id"])
    assert (line["upload_verdict"], line["bytes_in"]) == ("upload_too_large", 0)


def test_a_large_body_sent_all_the_same(site: UploadSite) -> None:
    """A client that does not look before 60 MB are out can still read why it was refused."""
    body = form(part(wav_header(60 * MIB) + bytes(60 * MIB)))
    problem = assert_problem(site.ask(head(len(body)) + body), 400, "upload_too_large")
    assert problem["detail"].startswith("Audio file too large: 60.1MB")


def test_chunked_bodies_are_counted(site: UploadSite) -> None:
    """No length to look at: the file's bytes are counted."""
    body = form(part(wav_header(2 * SMALL) + bytes(2 * SMALL)))
    response = site.ask(head(None, path="/small") + chunked(body, 1000))
    problem = assert_problem(response, 400, "upload_too_large")
    assert problem["detail"] == "Audio file too large: over 97.7KB (max: 97.7KB)"
    site.assert_nothing_arrived()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (("Content-Encoding: gzip",), "upload_malformed"),
        (("Content-Type: application/json",), "upload_malformed"),
        (("Content-Type: multipart/form-data",), "upload_malformed"),
        (("Content-Type: audio/mpeg",) * 2, "upload_malformed"),
    ],
)
def test_heads_that_lead_nowhere(site: UploadSite, fields: tuple[str, ...], code: str) -> None:
    """Refused before the body, 100 (Continue) and upstream."""
    with site.connect() as client:
        client.send(head(len(GOOD), *fields, "Expect: 100-continue"))
        assert_problem(client.response(), 400, code)
        assert client.interim == []
    site.settle()
    assert site.upstream.requests == []


def test_a_post_without_a_body(site: UploadSite) -> None:
    """Neither a form nor a file."""
    raw = get("/make-video", "Content-Length: 0", method="POST")
    assert_problem(site.ask(raw), 400, "upload_missing")


def test_a_bad_raw_body(site: UploadSite) -> None:
    """It is the file itself that is too long."""
    audio = wav_header(11 * 60 * 16_000) + bytes(11 * 60 * 16_000)
    raw = head(len(audio), "Content-Type: audio/wav", path="/raw") + audio
    assert_problem(site.ask(raw), 400, "upload_too_long")
    site.assert_nothing_arrived()


def test_three_hours_are_refused_after_ten_minutes(site: UploadSite) -> None:
    """The answer comes although four fifths of the body are never sent."""
    second = path_of("mp3-bare").read_bytes()
    opening = part(second).removesuffix(b"\r\n")
    length = len(opening) + 10_799 * len(second) + len(form()) + 2
    with site.connect() as client:
        client.send(head(length) + opening)
        sent = 1
        while not answered(client) and sent < 2_000:
            client.send(second * 20)
            sent += 20
        problem = assert_problem(client.response(), 400, "upload_too_long")
    assert 600 <= problem["measured"] < 700
    site.assert_nothing_arrived()


def test_a_client_that_leaves(site: UploadSite) -> None:
    """499, and the app has not been asked."""
    correlation = "left-in-the-middle"
    audio = wav_header(10**6) + bytes(200_000)
    with site.connect() as client:
        client.send(head(10**6, f"X-Correlation-ID: {correlation}") + part(audio)[:-2])
        wait_until(lambda: len(site.probes()) == 1, "a probe at work")
    line = site.proxy.access_line(correlation)
    assert (line["status"], line["code"]) == (499, "client_left")
    assert line["upload_verdict"] == "unfinished"
    site.assert_nothing_arrived()
    wait_until(lambda: not site.probes(), "the end of the probe")


def test_an_app_that_answers_early(site: UploadSite) -> None:
    """Its answer is passed on, the upload is not finished behind its back."""
    body = form(part(wav_header(4 * MIB) + bytes(4 * MIB)))

    def no(connection: Connection, request: Request) -> None:
        connection.send(respond(b"no", "401 Unauthorized", "Connection: close"))
        connection.close()

    site.upstream.handler = no
    with site.connect() as client:
        client.send(head(len(body)) + body)
        response = client.response()
    assert (response.status, response.body) == (401, b"no")


# --- report mode, metrics -----------------------------------------------------------------------

REPORTED = {
    "accepted": GOOD,
    "upload_type_rejected": form(part(PDF[:SMALL])),
    "upload_too_large": form(part(wav_header(2 * SMALL) + bytes(2 * SMALL))),
    "upload_malformed": b"not a form",
    "upload_missing": form(),
}


#: The access line's `detail` (how it begins), `upload_type` and `upload_label`.
LOGGED = {
    "accepted": ("None", "audio/mpeg", "audio/mpeg"),
    "upload_type_rejected": (
        "Audio file type not accepted: a PDF document (application/pdf) (accepted: MP3, WAV,",
        None,
        "application/pdf",
    ),
    "upload_too_large": ("Audio file too large: ", None, None),
    "upload_malformed": ("Upload malformed: the body ends before the last boundary", None, None),
    "upload_missing": ("Audio file missing: no file in field audio_file", None, None),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("verdict", REPORTED)
def test_report_mode(site: UploadSite, verdict: str, framing: str) -> None:
    """The app gets the very bytes with the client's own framing; the result is counted."""
    body = REPORTED[verdict]
    before = site.metric("proxy_uploads_total", endpoint="report", verdict=verdict)
    refused = site.metric("proxy_uploads_rejected_total", endpoint="report", code=verdict)
    correlation = f"report-{verdict}-{framing}"
    given = f"X-Correlation-ID: {correlation}"
    if framing == "length":
        raw = head(len(body), given, path="/report") + body
    else:
        raw = head(None, given, path="/report") + chunked(body)
    assert site.ask(raw).status == 202
    arrival = site.only_arrival()
    assert arrival.body == body
    assert arrival.request.framing == framing
    line = site.proxy.access_line(correlation)
    assert (line["upload_verdict"], line["upload_mode"]) == (verdict, "report")
    detail, kind, label = LOGGED[verdict]
    assert (line.get("upload_type"), line.get("upload_label")) == (kind, label)
    assert str(line.get("detail")).startswith(detail)
    after = site.metric("proxy_uploads_total", endpoint="report", verdict=verdict)
    assert after == before + 1
    more = site.metric("proxy_uploads_rejected_total", endpoint="report", code=verdict) - refused
    assert more == (verdict != "accepted")


def test_metrics_and_access_line_of_an_accepted_upload(site: UploadSite) -> None:
    """Result, bytes, duration and the delay of the result."""

    def measured(name: str) -> float:
        return site.metric(name, endpoint="create-video")

    names = (
        "proxy_upload_bytes_total",
        "proxy_upload_validation_seconds_count",
        "proxy_upload_audio_seconds_count",
        "proxy_upload_audio_seconds_sum",
    )
    before = {name: measured(name) for name in names}
    site.ask(head(len(GOOD), "X-Correlation-ID: facts-of-a-good-one") + GOOD)
    line = site.proxy.access_line("facts-of-a-good-one")
    assert line["upload_verdict"] == "accepted"
    assert line["upload_type"] == "audio/mpeg"
    assert line["upload_label"]
    assert line["upload_size"] == len(MP3)
    assert line["upload_duration"] == pytest.approx(1.0, abs=0.2)
    assert line["upload_validation_ms"] >= 0
    gained = [measured(name) - before[name] for name in names]
    assert gained == [len(MP3), 1, 1, pytest.approx(line["upload_duration"])]


# --- trouble ------------------------------------------------------------------------------------


def test_a_probe_that_is_killed(site: UploadSite) -> None:
    """That says nothing of the file, which is examined again: the client notices nothing."""
    audio = wav_header(400_000) + bytes(400_000)
    body = form(part(audio))
    with site.connect() as client:
        client.send(head(len(body)) + body[:300_000])
        wait_until(lambda: len(site.probes()) == 1, "a probe at work")
        site.probes()[0].kill()
        wait_until(lambda: not site.probes(), "its end")
        client.send(body[300_000:])
        assert client.response().status == 202
    assert site.only_arrival().complete


def test_no_room_for_uploads(tmp_path: Path) -> None:
    """Without a disk an upload is examined in memory. Where that has no room either: 503 with
    `Retry-After`, in enforce mode only; the log says why."""
    nowhere = tmp_path / "gone"
    nowhere.mkdir()
    large = form(part(wav_header(4_000_000) + bytes(4_000_000)))
    with UploadSite(tmp_path, spool={"dir": str(nowhere)}, limits={"memory": "16MiB"}) as site:
        nowhere.rmdir()
        assert site.ask(head(len(GOOD)) + GOOD).status == 202
        assert site.only_arrival().complete
        site.fresh()
        answer = site.ask(head(len(large)) + large)
        assert_problem(answer, 503, "overloaded")
        assert int(answer.get("Retry-After") or 0) > 0
        site.assert_nothing_arrived()
        wait_until(
            lambda: any(line.get("cause") == "spool: no_directory" for line in site.proxy.log()),
            "the log line",
        )
        assert site.ask(head(len(GOOD), path="/report") + GOOD).status == 202


def test_an_upstream_that_takes_nothing_delays_no_refusal(site: UploadSite) -> None:
    """Its buffers are full and it reads no more: the answer reaches the client all the same."""
    stuck = threading.Event()

    def stall(connection: Connection, request: Request) -> None:
        stuck.wait(20)
        raise Truncated("a test")

    site.upstream.handler = stall
    body = form(part(path_of("mp3-bare").read_bytes() * 10_800))
    try:
        with site.connect() as client, client.sending(head(len(body)) + body):
            assert_problem(client.response(), 400, "upload_too_long")
    finally:
        stuck.set()


def test_a_reload_adds_and_removes_the_check(tmp_path: Path) -> None:
    """From the next request on; the probe's parent is started when the first route needs it."""
    plain = [{"name": "create-video", "path": "/{rest:*}", "upstream": "app"}]
    checked = [{**plain[0], "upload": {}}]
    body = form(part(PDF))
    raw = head(len(body)) + body
    with Site(tmp_path, {"front": {"routes": plain}}) as site:

        def reload(routes: list[dict[str, object]], count: int) -> None:
            config = json.loads(site.proxy.file.read_text())
            config["listeners"]["front"]["routes"] = routes
            site.proxy.write(config)
            site.proxy.signal(signal.SIGHUP)
            wait_until(
                lambda: (
                    f'proxy_config_reloads_total{{result="ok"}} {count}.0'
                    in site.proxy.admin("/metrics")[1]
                ),
                "a reload",
            )

        assert site.ask(raw).status == 200
        reload(checked, 1)
        assert_problem(site.ask(raw), 400, "upload_type_rejected")
        reload(plain, 2)
        assert site.ask(raw).status == 200
        reload(checked, 3)
        assert_problem(site.ask(raw), 400, "upload_type_rejected")
        site.check()


def test_a_target_that_refuses_is_tried_again_with_the_upload(tmp_path: Path) -> None:
    """What was gathered has not been sent: a retry still has all of it. The circuit that opens over
    it refuses the next upload before its body is asked for."""
    settings = {
        "targets": [f"http://127.0.0.1:{free_port()}"],
        "connect_patience": "0s",
        "retry": {"attempts": 3, "on": ["connect"], "backoff": "1ms", "max_backoff": "2ms"},
        "breaker": {"failure_threshold": 3, "open_for": "60s"},
    }
    with UploadSite(tmp_path, app=settings) as site:
        problem = assert_problem(site.ask(head(len(GOOD)) + GOOD), 502, "upstream_unreachable")
        line = site.proxy.access_line(problem["correlation_id"])
        assert (line["attempts"], line["upload_verdict"]) == (3, "accepted")
        with site.connect() as client:
            client.send(head(len(GOOD), "Expect: 100-continue"))
            assert_problem(client.response(), 503, "circuit_open")
            assert client.interim == []
