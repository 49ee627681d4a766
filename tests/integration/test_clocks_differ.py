"""Other machines' clocks are wrong: it is shown, and nothing new is buried by it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from proxy.demo.redis_server import RedisServer
from proxy.jobs.mirror import Mirror
from proxy.jobs.store import sql
from proxy.jobs.store.migrations import APPLICATION_ID, MIGRATIONS
from proxy.jobs.store.store import JobStore
from tests.http1.message import Request
from tests.http1.process import wait_until
from tests.http1.site import get
from tests.http1.upstream import Connection, Upstream, respond
from tests.jobs_kit import connected, eventually, followed, holds, job, running, write
from tests.jobs_site import JobSite
from tests.unit.test_jobs_store import NOW, opened


def dated(job_id: str, moment: float, status: str = "queued") -> bytes:
    """A document that says it was made then."""
    return job(job_id, status, created_at=datetime.fromtimestamp(moment, UTC).isoformat())


# --- lists --------------------------------------------------------------------------------------


async def are_listed(mirror: Mirror, wanted: list[str], status: str | None = None) -> None:
    """Wait until the IDs are so, as `jobs list` and the page have them."""

    async def check() -> bool:
        rows = await mirror.inspection.jobs(status, 10, False)
        newest = (await mirror.inspection.overview(10)).recent
        return [row["job_id"] for row in rows] == wanted and (
            status is not None or [row.job_id for row in newest] == wanted
        )

    await eventually(check, str(wanted))


@pytest.mark.parametrize("skew", [-900.0, 900.0])
async def test_new_jobs_come_first_whatever_the_app_says(
    skew: float, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Also of one status, also those that came while the mirror was away; a change moves none."""
    path = tmp_path / "jobs.db"
    async with connected(redis_server) as app:
        async with running(redis_server, path) as mirror:
            await followed(mirror)
            for job_id, off in (("mv_1", 0.0), ("mv_2", skew), ("mv_3", 0.0), ("mv_4", -skew)):
                raw = await write(app, job_id, dated(job_id, time.time() + off))
                await eventually(holds(mirror, job_id, raw), "captured")
            await are_listed(mirror, ["mv_4", "mv_3", "mv_2", "mv_1"])
            raw = await write(app, "mv_2", dated("mv_2", time.time() + skew, "failed"))
            await eventually(holds(mirror, "mv_2", raw), "captured")
            await are_listed(mirror, ["mv_4", "mv_3", "mv_2", "mv_1"])
            await are_listed(mirror, ["mv_4", "mv_3", "mv_1"], "queued")
        await write(app, "mv_5", dated("mv_5", time.time() + skew))
        async with running(redis_server, path) as mirror:
            await followed(mirror)
            await are_listed(mirror, [f"mv_{n}" for n in (5, 4, 3, 2, 1)])
            raw = await write(app, "mv_6", dated("mv_6", time.time() + skew))
            await eventually(holds(mirror, "mv_6", raw), "captured")
            await are_listed(mirror, [f"mv_{n}" for n in (6, 5, 4, 3, 2, 1)])


async def test_jobs_from_before_the_mirror_keep_their_order(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A first comparison sees all at once: there the documents' own times decide."""
    async with connected(redis_server) as app:
        for number in (2, 3, 1):
            await write(app, f"mv_{number}", dated(f"mv_{number}", NOW + number))
        async with running(redis_server, tmp_path / "jobs.db") as mirror:
            await followed(mirror)
            await are_listed(mirror, ["mv_3", "mv_2", "mv_1"])


async def test_an_older_file_learns_when_its_jobs_came(tmp_path: Path) -> None:
    """By the first version that is kept; a job that says it is older than that is believed."""
    path = tmp_path / "jobs.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for group in MIGRATIONS[:6]:
            for statement in group:
                db.execute(statement)
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute("PRAGMA user_version=6")
        made = [
            ("mv_ahead", "2027-01-01 00:00:00", NOW),
            ("mv_old", "2026-11-20 00:00:00", NOW + 9),
        ]
        for job_id, created, seen in made:
            row = (job_id, "queued", 0.0, "{}", created, created, seen + 100, b"d")
            db.execute(
                """INSERT INTO jobs (job_id, status, progress, data, created_at, updated_at,
                   captured_at, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
                row,
            )
            db.execute(
                "INSERT INTO versions VALUES (?, 1, ?, 'queued', 0, x'00', x'00')", (job_id, seen)
            )
    db.close()
    async with opened(path) as store:
        first = {row.job_id: row.first_seen for row in await store.listing(None, NOW, 10)}
        assert first["mv_ahead"] == NOW
        assert first["mv_old"] == pytest.approx(1795132800.0)


async def test_lists_need_no_sorting(tmp_path: Path) -> None:
    """Their order is an index's, for all jobs and for those of one status."""
    async with opened(tmp_path / "jobs.db") as store:
        assert isinstance(store, JobStore)
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as db:
        params = {"longest": 0, "now": 9, "most": 1, "status": "failed"}
        for statement in (sql.LIST, sql.LIST_STATUS):
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", params)]
            assert not [step for step in plan if "TEMP B-TREE" in step], plan
    db.close()


# --- what is shown ------------------------------------------------------------------------------


@contextmanager
def other_clock(server: RedisServer, ahead: float) -> Iterator[str]:
    """The address of that Redis on a machine whose clock is so many seconds ahead."""
    target = re.fullmatch(r"redis://([\d.]+):(\d+)/\d+", server.url)
    assert target is not None
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = [listener]

    def later(found: re.Match[bytes]) -> bytes:
        return b"%s%d" % (found[1], int(found[2]) + int(ahead * 1e6))

    def pump(source: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                if answers:
                    data = re.sub(rb"(server_time_usec:)(\d{16})", later, data)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                there = socket.create_connection((target[1], int(target[2])))
                open_sockets.extend((client, there))
                for source, sink, answers in ((client, there, False), (there, client, True)):
                    threading.Thread(
                        target=pump, args=(source, sink), kwargs={"answers": answers}, daemon=True
                    ).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    finally:
        for one in open_sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_other_clocks_are_shown(redis_server: RedisServer, tmp_path: Path) -> None:
    """An app a quarter of an hour behind by its `Date`, a Redis ten minutes ahead by its own word:
    on the metrics and on the page."""
    upstream = Upstream()

    def late(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.send(
            respond(b"{}", "200 OK", f"Date: {formatdate(time.time() - 900, usegmt=True)}")
        )

    upstream.handler = late
    try:
        with other_clock(redis_server, 600.0) as url:
            server = cast(RedisServer, SimpleNamespace(url=url))
            with JobSite(tmp_path, server, upstream.url) as site:
                assert site.ask(get("/jobs")).status == 200
                name = "proxy_clock_skew_seconds"

                def shown() -> bool:
                    found = [site.proxy.metric(name, source=source) for source in ("app", "redis")]
                    return None not in found

                wait_until(shown, "both clocks")
                assert site.proxy.metric(name, source="app") == pytest.approx(-900, abs=60)
                assert site.proxy.metric(name, source="redis") == pytest.approx(600, abs=60)
                findings = json.loads(site.proxy.admin("/api/status")[1])["health"]["findings"]
                skews = {f["about"]: f["summary"] for f in findings if f["kind"] == "clock_skew"}
                assert re.fullmatch(
                    r"The clock of app is [\d,]+ s behind ours", skews["upstream:app"]
                )
                assert re.fullmatch(r"The clock of Redis is \d+ s ahead of ours", skews["redis"])
    finally:
        upstream.stop()
