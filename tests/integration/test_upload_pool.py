"""Probe processes that crash, hang, balloon or are not there: one upload suffers, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import uvloop

from proxy.config.listeners import Upload
from proxy.errors import Overloaded, UploadDurationUnknown
from proxy.upload import pool as pool_module
from proxy.upload import session as session_module
from proxy.upload.check import UploadCheck, UploadValidator
from proxy.upload.pool import ProbePool
from proxy.upload.sandbox import forbid_system_calls
from proxy.upload.session import Job
from tests.data.audio.generate import path_of
from tests.http1 import PATIENCE
from tests.uploads.audio import encode, wav_header
from tests.uploads.drive import CONTENT_TYPE, feed_until_refused, form, part, upload
from tests.uploads.site import at_work

GOOD = form(part(path_of("mp3").read_bytes()))


@pytest.fixture
async def pool() -> AsyncIterator[ProbePool]:
    """Two processes at a time."""
    pool = ProbePool(processes=2)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
def validator(pool: ProbePool) -> UploadValidator:
    """The default rules."""
    return UploadValidator(Upload(), pool)


def parent() -> psutil.Process:
    """Of all probe processes."""
    (found,) = (
        child for child in psutil.Process().children() if "proxy.upload.probe" in child.cmdline()
    )
    return found


def probes() -> list[psutil.Process]:
    """The processes of uploads."""
    return at_work(psutil.Process())


def descendants() -> list[psutil.Process]:
    """All that the pool has started, and that has not ended."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended since it was listed
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and "proxy.upload.probe" in process.cmdline():
                found.append(process)
    return found


async def until(condition: Callable[[], object]) -> None:
    """Wait for what other processes do; five seconds at most."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(0.01)


@contextmanager
def half_an_upload(validator: UploadValidator) -> Iterator[UploadCheck]:
    """One whose process is at work and waits for more."""
    check = validator.begin(CONTENT_TYPE, None, None)
    try:
        check.feed(part(wav_header(10**6) + bytes(100_000)).removesuffix(b"\r\n"))
        yield check
    finally:
        check.close()


async def test_a_crash_rejects_that_upload_only(
    pool: ProbePool, validator: UploadValidator
) -> None:
    """The next one is examined as ever."""
    with half_an_upload(validator) as check:
        await until(lambda: check.facts.get("type"))
        told = asyncio.Event()
        check.on_change = told.set
        probes()[0].send_signal(signal.SIGSEGV)
        await asyncio.wait_for(told.wait(), PATIENCE)
        with pytest.raises(UploadDurationUnknown):
            check.feed(b"more")
    assert check.facts["reason"] == "crashed"
    assert (await upload(validator, GOOD)).code == "accepted"


async def test_the_parent_is_started_again(pool: ProbePool, validator: UploadValidator) -> None:
    """Uploads at work do not notice, later ones wait for the new parent."""
    with half_an_upload(validator) as check:
        await until(lambda: len(probes()) == 1)
        parent().kill()
        await until(lambda: not pool.ready)
        assert (await upload(validator, GOOD)).code == "accepted"
        assert not check.blocked
        check.feed(b"\r\n" + form())
        assert await check.finish()


async def test_the_process_that_waits_may_die(pool: ProbePool, validator: UploadValidator) -> None:
    """One is always ready ahead; without it, the next upload is examined all the same."""
    for _ in range(3):
        await until(lambda: len(descendants()) == 2)
        (waiting,) = (child for child in descendants() if child != parent())
        waiting.kill()
        await until(lambda waiting=waiting: not psutil.pid_exists(waiting.pid))
        assert (await upload(validator, GOOD)).code == "accepted"


async def test_a_hang_is_ended(
    pool: ProbePool, validator: UploadValidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that takes nothing more is killed when its time is over."""
    monkeypatch.setattr(session_module, "STALL_TIMEOUT", 0.2)
    monkeypatch.setattr(session_module, "VERDICT_TIMEOUT", 0.2)
    with half_an_upload(validator) as check:
        await until(lambda: len(probes()) == 1)
        stopped = probes()[0]
        stopped.suspend()
        refusal = await feed_until_refused(check, bytes(65_536), 1000)
        assert isinstance(refusal, UploadDurationUnknown)
        assert refusal.reason == "stalled"
    await until(lambda: stopped not in probes())


def balloon(samples: int) -> bytes:
    """A kilobyte of MP4 whose index FFmpeg builds from one line: 24 bytes for each sample."""
    data = encode("m4a-last", 2.0, 8000, silent=True)
    for box, offset, value in ((b"stsz", 4, 1), (b"stsz", 8, samples), (b"stsc", 12, samples)):
        at = data.index(box) + 4 + offset
        data = data[:at] + value.to_bytes(4, "big") + data[at + 4 :]
    return data


@pytest.mark.parametrize(
    ("memory", "samples", "reason"),
    [
        (None, 4_000_000, "undecodable"),  # 96 MB are there, and nothing behind them
        (None, 50_000_000, "no_audio"),  # 1.2 GB are not
        (0, 4_000_000, "no_audio memory"),  # FFmpeg is refused it, or Python
        (-(2**24), 4_000_000, "no_audio memory"),
    ],
)
async def test_a_balloon_is_refused(
    pool: ProbePool, memory: int | None, samples: int, reason: str
) -> None:
    """Out of memory there is out of luck for that upload."""
    validator = UploadValidator(Upload(), pool)
    if memory is not None:
        validator.job = replace(validator.job, memory=memory)
    outcome = await upload(validator, form(part(balloon(samples))))
    assert outcome.code == "upload_duration_unknown"
    assert outcome.facts["reason"] in reason.split()


async def test_who_comes_too_late_waits(pool: ProbePool, validator: UploadValidator) -> None:
    """With both processes taken, the third upload is held up, then examined."""
    with half_an_upload(validator), half_an_upload(validator) as second:
        third = asyncio.create_task(upload(validator, GOOD), name="third")
        await until(lambda: bool(pool._waiting))
        assert not third.done()
        second.close()
        assert (await third).code == "accepted"


async def test_who_waits_too_long_is_told_to_come_back(
    pool: ProbePool, validator: UploadValidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503: it is not the upload's fault."""
    monkeypatch.setattr(session_module, "QUEUE_TIMEOUT", 0.05)
    with half_an_upload(validator), half_an_upload(validator):
        outcome = await upload(validator, GOOD)
    assert isinstance(outcome.error, Overloaded)
    assert outcome.facts["verdict"] == "overloaded"


async def test_a_dribbling_client_holds_no_process(
    pool: ProbePool, validator: UploadValidator
) -> None:
    """Before 64 KiB of the file are there, none is asked for."""
    check = validator.begin(CONTENT_TYPE, None, None)
    check.feed(part(wav_header(10**6) + bytes(60_000)).removesuffix(b"\r\n"))
    assert pool.running == 0
    check.close()


async def test_stopping_ends_what_is_open(validator: UploadValidator, pool: ProbePool) -> None:
    """Nothing is left behind, and the upload is told."""
    with half_an_upload(validator) as check:
        await until(lambda: len(probes()) == 1)
        await pool.stop()
        with pytest.raises(Overloaded):
            check.feed(b"more")
    await until(lambda: not descendants())


async def test_a_probe_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """At start-up, not at the first upload."""
    monkeypatch.setattr(pool_module.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="does not start"):
        await ProbePool().start()
    assert not descendants()


async def test_the_proxy_keeps_no_descriptors(pool: ProbePool, validator: UploadValidator) -> None:
    """After any number of uploads, good and bad."""
    await upload(validator, GOOD)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await upload(validator, GOOD)
        await upload(validator, form(part(b"%PDF-1.7")))
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_works_on_uvloop() -> None:
    """The proxy's own event loop."""

    async def one() -> str:
        pool = ProbePool()
        await pool.start()
        try:
            return (await upload(UploadValidator(Upload(), pool), GOOD, chunk=1000)).code
        finally:
            await pool.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(one()) == "accepted"


def test_the_sandbox_refuses_files_sockets_and_programs(tmp_path: Path) -> None:
    """Tried in a process of its own, which reports what it could still do."""
    report = tmp_path / "report"
    pid = os.fork()
    if pid == 0:
        fd = os.open(report, os.O_CREAT | os.O_WRONLY)
        if not forbid_system_calls():
            os.write(fd, b"unsupported")
            os._exit(0)
        tries: list[Callable[[], object]] = [
            lambda: os.open("/etc/passwd", os.O_RDONLY),
            lambda: __import__("_socket").socket(),
            lambda: os.execv("/bin/true", ["true"]),
            os.fork,
            lambda: os.kill(os.getppid(), 0),
        ]
        for attempt in tries:
            try:
                attempt()
                os.write(fd, b"allowed ")
            except PermissionError:
                os.write(fd, b"refused ")
        os._exit(0)
    os.waitpid(pid, 0)
    assert report.read_text() in ("refused " * 5, "unsupported")


def test_a_job_is_framed_by_its_length() -> None:
    """Four bytes, then JSON."""
    encoded = Job(("audio/mpeg",), 1, None).encode()
    assert int.from_bytes(encoded[:4], "big") == len(encoded) - 4
