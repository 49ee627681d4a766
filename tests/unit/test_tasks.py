"""A background task that dies is seen, and begun anew."""

from __future__ import annotations

import ast
import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy
from proxy.core import tasks
from proxy.core.tasks import Supervised, Tasks
from tests.jobs_kit import eventually

ROOT = Path(proxy.__file__).parent


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tasks]:
    """A registry of one's own, and pauses that are over at once."""
    monkeypatch.setattr(tasks, "PAUSE", (0.0001, 0.001))
    registry = Tasks()
    yield registry
    assert list(registry) == [], "whoever starts a task ends it"


class Loop:
    """Work that goes on until it is made to fail or to end."""

    def __init__(self) -> None:
        self.begun = 0
        self.fails: BaseException | None = None
        self.ends = False

    async def __call__(self) -> None:
        self.begun += 1
        while not self.ends:
            await asyncio.sleep(0.001)
            if self.fails is not None:
                error, self.fails = self.fails, None
                raise error


@pytest.mark.parametrize("error", [ValueError("oops"), asyncio.CancelledError()])
async def test_a_death_is_logged_counted_and_survived(
    error: BaseException, registry: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault, or a cancellation that nobody asked for: the work begins again."""
    loop = Loop()
    task = Supervised("a-loop", loop, registry).start()
    await eventually(lambda: loop.begun == 1, "begun")
    loop.fails = error
    await eventually(lambda: loop.begun == 2, "begun anew")
    report = task.report()
    assert (report.deaths, report.state, report.troubled) == (1, "running", False)
    assert type(error).__name__ in (report.error or "")
    assert registry.deaths["a-loop"] == 1
    (line,) = [one for one in caplog.records if one.message == "background task died"]
    assert line.levelno == logging.ERROR
    assert line.exc_info is not None
    await task.stop()


async def test_work_that_just_ends_has_died(registry: Tasks) -> None:
    """A loop that comes to an end is a fault like any other, unless it may."""
    loop = Loop()
    task = Supervised("a-loop", loop, registry).start()
    loop.ends = True
    await eventually(lambda: task.deaths > 3, "dies again and again")
    assert task.report().troubled
    loop.ends = False
    await task.stop()
    writer = Loop()
    ending = Supervised("a-writer", writer, registry, ends=True).start()
    writer.ends = True
    assert await ending.stop(patience=10)
    assert ending.report() == tasks.TaskReport("a-writer", "ended", 0, False, None)


async def test_a_stop_is_no_death(registry: Tasks) -> None:
    """Neither a stop nor a cancellation from outside begins it again."""
    loop = Loop()
    task = Supervised("a-loop", loop, registry).start()
    await eventually(lambda: loop.begun == 1, "begun")
    assert not await task.stop(patience=0.01), "it did not end by itself"
    assert task.report().deaths == 0
    assert loop.begun == 1
    assert await Supervised("never-started", loop, registry).stop()


async def test_a_writer_that_waits_writes_what_is_left(
    registry: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop in the pause after a death gives the work its last turn."""
    monkeypatch.setattr(tasks, "PAUSE", (3600.0, 3600.0))
    loop = Loop()
    task = Supervised("a-writer", loop, registry, ends=True).start()
    await eventually(lambda: loop.begun == 1, "begun")
    loop.fails = ValueError("oops")
    await eventually(lambda: task.state == "waiting", "it waits")
    loop.ends = True
    assert await task.stop(patience=10)
    assert loop.begun == 2


async def test_a_vital_task_takes_the_process_down(registry: Tasks) -> None:
    """One that cannot be kept alive, and without which nothing works."""
    fallen: list[str] = []
    registry.fatal = fallen.append
    loop = Loop()
    loop.ends = True
    task = Supervised("a-heart", loop, registry, vital=True).start()
    await eventually(lambda: bool(fallen), "the process is to end")
    assert fallen[0] == "a-heart"
    assert task.deaths >= tasks.FATAL[0]
    await task.stop()


async def test_pauses_grow_and_are_bounded(
    registry: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first to the longest, doubling, and spread."""
    monkeypatch.setattr(tasks, "PAUSE", (0.1, 30.0))
    waits: list[float] = []

    async def rest(stop: asyncio.Event, seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) >= 12 and await stop.wait()

    monkeypatch.setattr(tasks, "happened", rest)
    loop = Loop()
    loop.ends = True
    task = Supervised("a-loop", loop, registry).start()
    await eventually(lambda: len(waits) == 12, "twelve deaths")
    longest = [min(30.0, 0.1 * 2**number) for number in range(12)]
    for wait, limit in zip(waits, longest, strict=True):
        assert limit / 2 <= wait <= limit
    task.cancel()


#: Tasks and futures that end with what they were made for: a request, a connection, a question.
SHORT = {
    "proxy.admin.endpoints.probes",  # one page of metrics, for all who wait for it
    "proxy.app.hosted",  # one application, which ends with its host
    "proxy.app.hosted_targets",  # an application that leaves
    "proxy.idempotency.coordinator",  # the settling of one answer
    "proxy.jobs.redis.session",  # parts of one session, which ends with any of them and begins anew
    "proxy.jobs.redis.connection",  # the reader of one connection, which is lost with it
    "proxy.server.listener",  # the last connections of one that closes
    "proxy.forward.relay.request_body",  # the verdict on one upload
    "proxy.forward.fallbacks",  # one rescue
    "proxy.server.sockets",  # a listener that leaves
    "proxy.server.tls_accept",  # one handshake
    "proxy.forward.waiting",  # one decision about a request
    "proxy.app.process",  # the start, and the end
    "proxy.core.redis.client",  # one question to all Sentinels
    "proxy.core.sqlite.file",  # one check of a file
    "proxy.core.sqlite.readers",  # one query
    "proxy.routes.extensions.closing",  # the end of one stage
    "proxy.routes.jobs.patience",  # one read of the mirror
    "proxy.core.tasks",
    "proxy.http1.upstream.pool",  # one dial
}


def test_no_loop_runs_unsupervised() -> None:
    """Who makes a task of his own has a reason that stands here."""
    found = set()
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "demo":  # the stand-ins are no part of what runs in production
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future"):
                found.add(".".join(("proxy", *parts)))
    assert found == SHORT
