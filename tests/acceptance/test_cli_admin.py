"""`jobs`, `breakers` and `healthcheck` against an admin API, a strange server, and nobody."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.cli.admin_output import fitting
from proxy.demo.redis_server import free_port

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]

JOB = {"job_id": "mv_1", "mirror": "make_video", "status": "failed", "error": "bad\x1b[31m\nline"}


@dataclass
class Admin:
    """An admin API of canned answers that remembers what it was asked."""

    url: str = ""
    asked: list[tuple[str, str, object, str | None]] = field(default_factory=list)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def answer(self, path: str, document: object, status: int = 200) -> None:
        """Give `document` as JSON whenever `path` is asked for."""
        self.answers[path] = (status, json.dumps(document).encode())


@pytest.fixture
def admin() -> Iterator[Admin]:
    """A listening stand-in for the admin API."""
    api = Admin()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            api.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
            status, answer = api.answers.get(self.path, (404, b"404: Not Found"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    yield api
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADMIN_TOKEN", raising=False)


def test_jobs_list_asks_with_filters_and_prints_rows(admin: Admin, capsys: Capture) -> None:
    """Filters travel as query; rows are tab-separated and cleaned of control characters."""
    admin.answer("/api/jobs?status=failed&limit=5", {"jobs": [JOB], "total": 1})
    assert main.main(["jobs", "list", "--status=failed", "--limit=5", "--admin", admin.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "total: 1",
        "job_id\tmirror\tstatus\terror",
        "mv_1\tmake_video\tfailed\tbad\\x1b[31m\\nline",
    ]


def test_jobs_list_warns_of_a_mirror_that_is_not_well(admin: Admin, capsys: Capture) -> None:
    """On stderr, in one line; the jobs are listed as ever."""
    ill = {"mirror": "m", "redis": "down", "reason": "refused", "sqlite": "ok"}
    admin.answer("/api/jobs?stranded=true", {"mirrors": [ill], "jobs": [JOB]})
    assert main.main(["jobs", "list", "--stranded", "--admin", admin.url]) == 0
    printed = capsys.readouterr()
    assert printed.err == "reliability-proxy: mirror m: redis down: refused\n"
    assert printed.out.startswith("job_id")


def test_json_is_the_answer_as_it_came(admin: Admin, capsys: Capture) -> None:
    """With `--json` nothing is left out and nothing renamed."""
    admin.answer("/api/jobs", [JOB])
    assert main.main(["jobs", "list", "--json", "--admin", admin.url]) == 0
    assert json.loads(capsys.readouterr().out) == [JOB]


def test_jobs_show_finds_the_only_mirror(admin: Admin, capsys: Capture) -> None:
    """Where there is one mirror, its name need not be given; ids are escaped."""
    admin.answer("/api/config", {"mirrors": {"make_video": {}}})
    admin.answer("/api/jobs/make_video/a%2Fb", {"job": JOB, "versions": [{"status": "queued"}]})
    assert main.main(["jobs", "show", "a/b", "--admin", admin.url]) == 0
    assert "queued" in capsys.readouterr().out
    admin.answer("/api/config", {"mirrors": {"a": {}, "b": {}}})
    assert main.main(["jobs", "show", "x", "--admin", admin.url]) == 1
    assert "give --mirror NAME; this proxy's mirrors: a, b" in capsys.readouterr().err


def test_changes_are_posts_with_reason_and_token(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators' reasons and durations reach the API; the token comes from either place."""
    for path in ("/api/breakers/yt/open", "/api/breakers/yt/reset", "/api/jobs/sync"):
        admin.answer(path, {"ok": True})
    admin.answer("/api/jobs/m/mv%2F1/requeue", {"ok": True})
    to = ["--admin", admin.url]
    assert main.main(["breakers", "open", "yt", "--reason=q", "--for=5m", "--token=t", *to]) == 0
    monkeypatch.setenv("ADMIN_TOKEN", "secret")
    assert main.main(["breakers", "reset", "yt", *to]) == 0
    assert main.main(["jobs", "sync", "--mirror=m", *to]) == 0
    assert main.main(["jobs", "requeue", "mv/1", "--mirror=m", "--reason=lost", *to]) == 0
    assert main.main(["jobs", "requeue", "mv/1", "--mirror=m", "--force", *to]) == 0
    requeue = ("POST", "/api/jobs/m/mv%2F1/requeue")
    assert admin.asked == [
        ("POST", "/api/breakers/yt/open", {"reason": "q", "for": "5m"}, "Bearer t"),
        ("POST", "/api/breakers/yt/reset", {"reason": "by hand"}, "Bearer secret"),
        ("POST", "/api/jobs/sync", {"mirror": "m"}, "Bearer secret"),
        (*requeue, {"reason": "lost", "force": False}, "Bearer secret"),
        (*requeue, {"reason": "by hand", "force": True}, "Bearer secret"),
    ]


@pytest.mark.parametrize(
    ("status", "body", "printed"),
    [
        (404, b'{"detail": "no breaker named yt"}', "no breaker named yt"),
        (404, b"404: Not Found", "/api/breakers is not there (404)"),
        (401, b"{}", "give --token or set ADMIN_TOKEN"),
        (500, b"\x1b[2Joops", "answers 500: \\x1b[2Joops"),
        (200, b"<html>", "answers 200: <html>"),
    ],
)
def test_refusals_are_one_line(
    admin: Admin, capsys: Capture, status: int, body: bytes, printed: str
) -> None:
    """Whatever the API answers, the user gets one line on stderr and 1."""
    admin.answers["/api/breakers"] = (status, body)
    assert main.main(["breakers", "list", "--admin", admin.url]) == 1
    shown = capsys.readouterr()
    assert printed in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_a_wrong_token_is_called_wrong(admin: Admin, capsys: Capture) -> None:
    """Whoever has given a token is not asked for one."""
    admin.answers["/api/breakers"] = (401, b"{}")
    assert main.main(["breakers", "list", "--token", "old", "--admin", admin.url]) == 1
    assert "does not know this token" in capsys.readouterr().err


def test_no_mirror_is_not_no_jobs(admin: Admin, capsys: Capture) -> None:
    """Where no mirror is configured, an empty list would be misleading."""
    admin.answer("/api/jobs", {"jobs": [], "mirrors": []})
    assert main.main(["jobs", "list", "--admin", admin.url]) == 1
    assert "this proxy has no mirror" in capsys.readouterr().err


def test_an_open_breaker_counts_no_failures(admin: Admin, capsys: Capture) -> None:
    """The window is empty once the circuit is open: a 0 would look like health."""
    admin.answer("/api/breakers", {"breakers": [{"name": "yt", "state": "open", "failures": 0}]})
    assert main.main(["breakers", "list", "--admin", admin.url]) == 0
    assert capsys.readouterr().out.splitlines()[1].split("\t") == ["yt", "open", "-"]


def test_nobody_listens(capsys: Capture) -> None:
    """A refused connection is an error with the address and what to do."""
    url = f"http://user:hunter2@127.0.0.1:{free_port()}"
    assert main.main(["jobs", "list", "--admin", url]) == 1
    printed = capsys.readouterr().err
    assert "(connection refused); is the proxy running?" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:9901", "http://", "http://x:99999"])
def test_a_bad_address_is_bad_usage(url: str, capsys: Capture) -> None:
    """What is no URL ends with 2."""
    assert main.main(["jobs", "list", "--admin", url]) == 2
    assert "expected a URL such as http://127.0.0.1:9901" in capsys.readouterr().err


def test_an_empty_list_says_so(admin: Admin, capsys: Capture) -> None:
    """An empty list is a sentence."""
    admin.answer("/api/breakers", {"breakers": []})
    assert main.main(["breakers", "list", "--admin", admin.url]) == 0
    assert capsys.readouterr().out == "no breakers\n"


def test_a_terminal_gets_a_table(admin: Admin) -> None:
    """On a terminal the rows come in a drawn table."""
    admin.answer("/api/breakers", {"breakers": [{"name": "youtube-search", "state": "open"}]})
    ours, theirs = pty.openpty()
    ended = subprocess.run(
        [sys.executable, "-m", "proxy", "breakers", "list", "--admin", admin.url],
        cwd=ROOT,
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0
    assert "youtube-search" in shown
    assert "━" in shown


WIDTHS = {"job_id": 13, "mirror": 10, "status": 9, "progress": 8, "created_at": 19, "error": 90}


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (200, ["job_id", "mirror", "status", "progress", "created_at", "error"]),
        (90, ["job_id", "mirror", "status", "created_at", "error"]),
        (70, ["job_id", "mirror", "status", "error"]),
        (48, ["job_id", "status", "error"]),
        (30, ["job_id", "status"]),
        (10, ["job_id", "status"]),
    ],
)
def test_a_narrow_terminal_shows_fewer_columns(width: int, shown: list[str]) -> None:
    """IDs and states stay whole; what says least gives way first."""
    assert fitting(WIDTHS, width) == shown


def test_a_sync_prints_what_it_did(admin: Admin, capsys: Capture) -> None:
    """How many keys there are, how many were copied, how many are gone."""
    row = {"mirror": "m", "last_sync": "2026-11-30T19:00:00.000Z", "keys": 7, "copied": 2}
    admin.answer(
        "/api/jobs/sync", {"synced": [{**row, "deleted": 1, "missing": 1, "seconds": 0.1}]}
    )
    assert main.main(["jobs", "sync", "--admin", admin.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mirror\tlast_sync\tkeys\tcopied\tmissing\tdeleted\tseconds",
        "m\t2026-11-30T19:00:00.000Z\t7\t2\t1\t1\t0.1",
    ]


def config_at(tmp_path: Path, section: str, port: str) -> str:
    """A config whose admin or metrics door has the given port."""
    file = tmp_path / "c.yaml"
    file.write_text(
        "listeners: {a: {bind: ':0', routes: [{name: all, path: /, upstream: u}]}}\n"
        f"upstreams: {{u: {{targets: [http://a]}}}}\n{section}: {{bind: '0.0.0.0:{port}'"
        + (", token: t}\n" if section == "admin" else "}\n")
    )
    return str(file)


@pytest.mark.parametrize(("section", "token"), [("admin", "Bearer t"), ("metrics", None)])
def test_healthcheck(
    admin: Admin, tmp_path: Path, capsys: Capture, section: str, token: str | None
) -> None:
    """0 while the proxy says that it is alive, 1 once it does not."""
    file = config_at(tmp_path, section, admin.url.rpartition(":")[2])
    admin.answer("/livez", {})
    admin.answer("/readyz", {"draining": True}, 503)
    assert main.main(["healthcheck", "--config", file]) == 0
    assert admin.asked == [("GET", "/livez", None, token)]
    assert main.main(["healthcheck", "--ready", "--config", file]) == 1
    assert "/readyz answers 503" in capsys.readouterr().err


def test_healthcheck_without_a_proxy(tmp_path: Path, capsys: Capture) -> None:
    """Nobody there, a port that cannot be known and a bad config are all 1, the container's no."""
    file = config_at(tmp_path, "metrics", str(free_port()))
    assert main.main(["healthcheck", "--config", file]) == 1
    assert main.main(["healthcheck", "--config", config_at(tmp_path, "metrics", "0")]) == 1
    assert main.main(["healthcheck", "--config", str(tmp_path / "gone")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


TIMELINE = {
    "id": "mv_1",
    "kind": "job",
    "job_ids": ["mv_1"],
    "correlation_ids": [f"c-{n}" for n in range(8)],
    "suspected_cause": {"summary": "yt \x1b[31mfell", "kind": "x", "at": "…", "event": 3},
    "note": "something may be missing",
    "events": [
        {"at": f"2026-11-23T16:19:1{n}.250Z", "source": "exchange", "kind": "read",
         "severity": "ok", "summary": "GET /jobs/mv_1: 200", "duration_ms": 1.5, "facts": {}}
        for n in range(3)
    ] + [
        {"at": "2026-11-23T16:19:14.500Z", "source": "exchange", "kind": "call",
         "severity": "error", "summary": "call of yt: 502", "duration_ms": 130_000,
         "facts": {"inferred": True}, "correlation_id": "c-9"},
    ],
}  # fmt: skip


def test_trace_prints_a_timeline(admin: Admin, capsys: Capture) -> None:
    """The suspected cause first, polls joined, the event that shows it marked, nothing that acts
    on a terminal."""
    admin.answer("/api/trace/mv_1", TIMELINE)
    assert main.main(["trace", "mv_1", "--admin", admin.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job mv_1",
        "correlation IDs: c-0, c-1, c-2, c-3, c-4 and 3 more",
        "note: something may be missing",
        "suspected cause: yt \\x1b[31mfell",
        "on 2026-11-23 (UTC)",
        "16:19:10.250\t \texchange\t1.5ms\tGET /jobs/mv_1: 200 (3 times until 16:19:12.250)",
        "16:19:14.500\t>\texchange\t2.2min\tcall of yt: 502 (inferred)",
    ]
    assert main.main(["trace", "mv_1", "--json", "--admin", admin.url]) == 0
    assert json.loads(capsys.readouterr().out) == TIMELINE


def test_trace_with_a_severity(admin: Admin, capsys: Capture) -> None:
    """With an ID it leaves out what is less severe, and the suspected cause stays marked."""
    admin.answer("/api/trace/mv_1", TIMELINE)
    assert main.main(["trace", "mv_1", "--severity", "error", "--admin", admin.url]) == 0
    assert capsys.readouterr().out.splitlines()[4:] == [
        "on 2026-11-23 (UTC)",
        "16:19:14.500\t>\texchange\t2.2min\tcall of yt: 502 (inferred)",
    ]


def test_trace_of_nothing_known(admin: Admin, capsys: Capture) -> None:
    """Exit code 1, the API's own words, and where to look next."""
    admin.answer("/api/trace/a%2Fb", {"detail": "Nothing is known of this ID."}, 404)
    assert main.main(["trace", "a/b", "--admin", admin.url]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("reliability-proxy: a/b: Nothing is known of this ID.\n- ")
    assert """jq -c 'select(.correlation_id == "a/b")' proxy.log""" in printed.err
    assert main.main(["trace", "x", "--admin", admin.url]) == 1
    assert "of an older release?" in capsys.readouterr().err


def test_trace_without_an_id(admin: Admin, capsys: Capture) -> None:
    """The latest trouble, each with the ID to go on with; or that there is none."""
    admin.answer("/api/trace?severity=error&limit=3", {"events": TIMELINE["events"][3:]})  # type: ignore[index]
    admin.answer("/api/trace?severity=warning&limit=20", {"events": []})
    options = ["--severity=error", "--limit=3"]
    assert main.main(["trace", *options, "--admin", admin.url]) == 0
    assert capsys.readouterr().out == (
        "2026-11-23T16:19:14.500\tE\texchange\t2.2min\tcall of yt: 502 (inferred)\tc-9\n"
    )
    assert main.main(["trace", "--admin", admin.url]) == 0
    assert capsys.readouterr().out == "nothing of that kind is recorded\n"


def test_trace_on_a_terminal(admin: Admin) -> None:
    """A frame around the suspected cause, and columns."""
    admin.answer("/api/trace/mv_1", TIMELINE)
    ours, theirs = pty.openpty()
    ended = subprocess.run(
        [sys.executable, "-m", "proxy", "trace", "mv_1", "--admin", admin.url],
        cwd=ROOT,
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0, ended.stderr
    assert "╭" in shown
    assert "suspected cause: yt \\x1b" in shown
    assert "16:19:14.500" in shown
