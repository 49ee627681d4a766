"""A deletion that the app missed: what is asked of it, for any ID that a file may hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.config.units import parse_target
from proxy.core.process.shortage import Shortages
from proxy.routes.jobs.late_deletes import LateDeletes


@asynccontextmanager
async def app() -> AsyncIterator[tuple[int, list[str]]]:
    """An app that answers 404 to all; its port, and the request lines that it got."""
    lines: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0].decode())
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], lines


@pytest.mark.parametrize(
    ("path", "job_id", "line"),
    [
        ("/jobs/{id}", "mv_1", "DELETE /jobs/mv_1 HTTP/1.1"),
        ("/jobs/{id}", "a:b.c", "DELETE /jobs/a%3Ab.c HTTP/1.1"),
        ("/größe/a b/{id}/x", "mv_1", "DELETE /gr%C3%B6%C3%9Fe/a%20b/mv_1/x HTTP/1.1"),
        *(
            ("/jobs/{id}", bad, None)
            for bad in ("..", ".", "", "a/b", "../x", "a\r\nX: y", "a?b", "a#b", "%2e%2e", "é")
        ),
    ],
)
async def test_an_id_stays_one_segment(path: str, job_id: str, line: str | None) -> None:
    """What can be no job ID is not asked for, and is not asked for again."""
    async with app() as (port, lines):
        late = LateDeletes(
            parse_target(f"http://127.0.0.1:{port}"), None, path, "id", None, Shortages()
        )
        assert await late(job_id)
        assert lines == ([] if line is None else [line])
