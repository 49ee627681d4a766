"""Probe processes that crash, hang, balloon or are not there: one upload suffers, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import psutil
import pytest
import uvloop
from av.audio.stream import AudioStream

from proxy.config.listeners import Upload
from proxy.core.errors import Overloaded, UploadDurationUnknown
from proxy.uploads.check import UploadCheck
from proxy.uploads.probe import pool as pool_module
from proxy.uploads.probe import session as session_module
from proxy.uploads.probe.pool import ProbePool
from proxy.uploads.probe.session import ProbeSession
from proxy.uploads.probe.task import FIRST_MEMORY, ProbeTask
from proxy.uploads.rules import UploadRules
from tests.data.audio.generate import path_of
from tests.http1 import PATIENCE
from tests.uploads.audio import encode, wav_header
from tests.uploads.drive import CONTENT_TYPE, feed_until_refused, form, new_spool, part, upload
from tests.uploads.site import at_work

GOOD = form(part(path_of("mp3").read_bytes()))


@pytest.fixture
async def pool() -> AsyncIterator[ProbePool]:
    """Two processes at a time."""
    pool = ProbePool(memory=2 * FIRST_MEMORY)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
async def roomy() -> AsyncIterator[ProbePool]:
    """Two processes at a time that have all the memory which one may have."""
    pool = ProbePool(memory=2 * ProbeTask.memory)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
def validator(pool: ProbePool) -> UploadRules:
    """The default rules."""
    return UploadRules(Upload(), pool, new_spool())


def parent() -> psutil.Process:
    """Of all probe processes."""
    (found,) = (
        child
        for child in psutil.Process().children()
        if "proxy.uploads.probe.process" in child.cmdline()
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
            if alive and "proxy.uploads.probe.process" in process.cmdline():
                found.append(process)
    return found


async def until(condition: Callable[[], object]) -> None:
    """Wait for what other processes do; five seconds at most."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(0.01)


@contextmanager
def half_an_upload(validator: UploadRules) -> Iterator[UploadCheck]:
    """One whose process is at work and waits for more."""
    check = validator.begin(CONTENT_TYPE, None, None)
    try:
        check.feed(part(wav_header(10**6) + bytes(100_000)).removesuffix(b"\r\n"))
        yield check
    finally:
        check.close()


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (signal.SIGSEGV, "crashed"),
        (signal.SIGABRT, "crashed"),
        (signal.SIGSYS, "crashed"),
        (signal.SIGXCPU, "slow"),
    ],
)
async def test_a_crash_rejects_that_upload_only(
    pool: ProbePool, validator: UploadRules, ending: signal.Signals, reason: str
) -> None:
    """The next one is examined as ever."""
    with half_an_upload(validator) as check:
        await until(lambda: check.facts.get("type"))
        noticed = asyncio.Event()
        check.on_change = noticed.set
        probes()[0].send_signal(ending)
        await asyncio.wait_for(noticed.wait(), PATIENCE)
        with pytest.raises(UploadDurationUnknown):
            check.feed(b"more")
    assert check.facts["reason"] == reason
    assert (await upload(validator, GOOD)).code == "accepted"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
async def test_who_is_killed_is_examined_again(
    pool: ProbePool,
    validator: UploadRules,
    caplog: pytest.LogCaptureFixture,
    ending: signal.Signals,
) -> None:
    """Memory may be short, or an operator impatient: that says nothing of the file."""
    with half_an_upload(validator) as check:
        await until(lambda: check.facts.get("type"))
        probes()[0].send_signal(ending)
        await until(lambda: not pool.running)
        check.feed(b"\r\n" + form())
        await check.finish()
        assert check.facts["verdict"] == "accepted"
    (record,) = (record for record in caplog.records if record.message == "upload probe lost")
    assert record.__dict__["cause"] == f"killed by {ending.name}"


async def test_whoever_is_killed_each_time_is_asked_to_come_back(
    pool: ProbePool,
    validator: UploadRules,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """503 after two tries, and the log names the cause."""
    monkeypatch.setattr(session_module, "RETRY_DELAY", 0.01)
    attach = ProbeSession.attach

    def attach_without_a_job(session: ProbeSession, sock: socket.socket) -> None:
        # It waits for its job when the killer comes: a small file is examined faster than that.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(session_module.socket, "send_fds", lambda *_: 0)
            attach(session, sock)
        pool._command(b"K" + session.name)

    monkeypatch.setattr(ProbeSession, "attach", attach_without_a_job)
    outcome = await upload(validator, GOOD)
    assert isinstance(outcome.error, Overloaded)
    assert outcome.error.reason == "upload_probe"
    causes = [record.__dict__["cause"] for record in caplog.records if hasattr(record, "cause")]
    assert causes == ["killed by SIGKILL"] * 2


async def test_the_parent_is_started_again(pool: ProbePool, validator: UploadRules) -> None:
    """Uploads at work are examined anew, later ones wait for the new parent."""
    with half_an_upload(validator) as check:
        await until(lambda: len(probes()) == 1)
        (orphan,) = probes()
        parent().kill()
        await until(lambda: not pool.ready)
        await until(lambda: not orphan.is_running())
        assert (await upload(validator, GOOD)).code == "accepted"
        assert not check.blocked
        check.feed(b"\r\n" + form())
        await check.finish()
        assert check.facts["verdict"] == "accepted"


async def test_a_parent_that_hangs_is_replaced(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes commands and does not answer: whoever waits for it gets the next one."""
    monkeypatch.setattr(pool_module, "ANSWER_TIMEOUT", 0.2)
    stuck = parent()
    stuck.suspend()
    assert (await upload(validator, GOOD)).code == "accepted"
    assert not stuck.is_running()


async def test_a_hang_is_ended(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that neither answers nor waits for more is killed, and the file examined again."""
    monkeypatch.setattr(session_module, "PATIENCE", 0.05)
    with half_an_upload(validator) as check:
        await until(lambda: check.facts.get("type"))
        (stopped,) = probes()
        stopped.suspend()
        check.feed(b"\r\n" + form())
        await check.finish()
        assert check.facts["verdict"] == "accepted"
        assert stopped.pid not in [process.pid for process in probes()]


def balloon(samples: int) -> bytes:
    """An MP4 whose index FFmpeg builds from one line: 24 bytes for each sample, for which there is
    a byte of file."""
    data = encode("m4a-last", 2.0, 8000, silent=True)
    for box, offset, value in ((b"stsz", 4, 1), (b"stsz", 8, samples), (b"stsc", 12, samples)):
        at = data.index(box) + 4 + offset
        data = data[:at] + value.to_bytes(4, "big") + data[at + 4 :]
    return data + (samples + 8).to_bytes(4, "big") + b"free" + bytes(samples)


@pytest.mark.parametrize(
    ("memory", "samples", "reason"),
    [
        (None, 1_500_000, "undecodable"),  # 36 MB are there, and nothing behind them
        (None, 4_000_000, "no_audio"),  # 96 MB are not
        (None, 40_000_000, "no_audio"),  # nor are 960 MB
        (2**21, 4_000_000, "no_audio memory"),  # FFmpeg is refused it, or Python
    ],
)
async def test_a_balloon_is_refused(
    roomy: ProbePool, memory: int | None, samples: int, reason: str
) -> None:
    """Out of memory there is out of luck for that upload."""
    validator = UploadRules(Upload(), roomy, new_spool())
    if memory is not None:
        validator.task = replace(validator.task, memory=memory)
    outcome = await upload(validator, form(part(balloon(samples))))
    assert outcome.code == "upload_duration_unknown"
    assert outcome.facts["reason"] in reason.split()


async def test_many_balloons_share_one_budget(
    roomy: ProbePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight crafted indexes at once take what two processes may, whatever their number."""
    validator = UploadRules(Upload(), roomy, new_spool())
    monkeypatch.setattr(session_module, "QUEUE_TIMEOUT", PATIENCE)
    monkeypatch.setattr(pool_module, "TURN", PATIENCE)
    body = form(part(balloon(1_500_000)))
    peaks = [0]
    done = asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            peaks.append(sum(map(own_memory, descendants())))
            await asyncio.sleep(0.005)

    watcher = asyncio.create_task(watch(), name="watch")
    outcomes = await asyncio.gather(*(upload(validator, body) for _ in range(8)))
    done.set()
    await watcher
    assert {outcome.facts["reason"] for outcome in outcomes} == {"undecodable"}
    assert max(peaks) < 2 * ProbeTask.memory + 64 * 2**20  # the parent


def own_memory(process: psutil.Process) -> int:
    """Bytes that nobody else has; 0 once it has ended."""
    with contextlib.suppress(psutil.Error, OSError):
        return int(process.memory_full_info().uss)
    return 0


@contextmanager
def two_at_work(pool: ProbePool, validator: UploadRules) -> Iterator[UploadCheck]:
    """Both processes have an upload and do not wait for its client: they do not get so far."""
    stopped = parent()
    stopped.suspend()
    try:
        with half_an_upload(validator), half_an_upload(validator) as second:
            yield second
    finally:
        stopped.resume()


async def test_who_comes_too_late_waits(pool: ProbePool, validator: UploadRules) -> None:
    """With both processes taken, the third upload is held up, then examined."""
    with two_at_work(pool, validator) as second:
        await until(lambda: pool.running == 2)
        third = asyncio.create_task(upload(validator, GOOD), name="third")
        await until(lambda: pool.waiting)
        assert not third.done()
        second.close()
        parent().resume()
        assert (await third).code == "accepted"


async def test_whoever_waits_too_long_is_asked_to_come_back(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503: it is not the upload's fault."""
    monkeypatch.setattr(session_module, "QUEUE_TIMEOUT", 0.05)
    with two_at_work(pool, validator):
        await until(lambda: pool.running == 2)
        outcome = await upload(validator, GOOD)
    assert isinstance(outcome.error, Overloaded)
    assert outcome.facts["verdict"] == "overloaded"


async def test_who_stands_still_gives_way(pool: ProbePool, validator: UploadRules) -> None:
    """Sixty-four clients that stop in the middle hold up nobody, and each may still go on."""
    with contextlib.ExitStack() as stack:
        idlers = [stack.enter_context(half_an_upload(validator)) for _ in range(64)]
        await until(lambda: pool.running == 2)
        for _ in range(3):
            assert (await upload(validator, GOOD)).code == "accepted"
        for idler in (idlers[0], idlers[-1]):
            idler.feed(b"\r\n" + form())
            await idler.finish()
            assert idler.facts["verdict"] == "accepted"


async def test_whoever_computes_for_long_has_a_lower_priority(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first a process has the proxy's own: somebody waits for its result."""
    monkeypatch.setattr(pool_module, "YOUNG", 10 * PATIENCE)
    with half_an_upload(validator) as check:
        await until(lambda: check.facts.get("type") and not pool._young)  # it waits for its client
        (probe,) = probes()
        nice = psutil.Process().nice()
        assert probe.nice() == nice
        probe.suspend()
        monkeypatch.setattr(pool_module, "YOUNG", 0.01)
        check.feed(bytes(500_000))  # more than it has asked for
        await until(lambda: probe.nice() == min(19, nice + 10))
        probe.resume()


async def test_few_compute_at_a_time(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although there is memory for two, the second waits for the first."""
    monkeypatch.setattr(pool_module, "AT_A_TIME", 1)
    monkeypatch.setattr(pool_module, "YOUNG", 10 * PATIENCE)
    stopped = parent()
    stopped.suspend()
    try:
        with half_an_upload(validator) as first, half_an_upload(validator):
            await until(lambda: pool.running == 1 and pool.waiting == 1)
            first.close()
            stopped.resume()
            await until(lambda: pool.running == 1 and pool.waiting == 0)
    finally:
        stopped.resume()


def slow_to_read(comments: int, value: bytes = b"v") -> bytes:
    """A second of Opus whose comments cost FFmpeg time that grows with their square."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        container.metadata.update({f"k{number}": value.decode() for number in range(comments)})
        stream = container.add_stream("libopus", rate=48_000)
        assert isinstance(stream, AudioStream)
        frame = av.AudioFrame(format="s16", layout="mono", samples=48_000)
        frame.sample_rate = 48_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


async def test_slow_files_cost_their_own_time_only(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty of them keep both processes busy; one that is not slow does not wait for all
    of them, and they come to their ends."""
    monkeypatch.setattr(pool_module, "TURN", 0.01)
    monkeypatch.setattr(session_module, "QUEUE_TIMEOUT", PATIENCE)
    body = form(part(slow_to_read(4_000)))
    slow = [asyncio.create_task(upload(validator, body), name="slow") for _ in range(30)]
    await until(lambda: pool.running == 2 and pool.waiting > 20)
    assert (await upload(validator, GOOD)).code == "accepted"
    assert not all(task.done() for task in slow)
    assert {outcome.code for outcome in await asyncio.gather(*slow)} == {"accepted"}


async def test_a_spool_that_fills_in_the_middle_of_a_file(
    pool: ProbePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes on in memory, and is examined anew from there."""
    spool = new_spool(max_size=600_000)
    validator = UploadRules(Upload(), pool, spool)
    opened: list[bool] = []
    grew = ProbeSession.grew

    def note(session: ProbeSession, descriptor: int, received: int, *, whole: bool) -> None:
        opened.append(session._file != descriptor)
        grew(session, descriptor, received, whole=whole)

    monkeypatch.setattr(ProbeSession, "grew", note)
    body = form(part(wav_header(2_000_000) + bytes(2_000_000)))
    check = validator.begin(CONTENT_TYPE, None, None)
    try:
        for at in range(0, len(body), 50_000):
            check.feed(body[at : at + 50_000])
            await asyncio.sleep(0.002)
        await check.finish()
        assert check.facts["verdict"] == "accepted"
        assert True in opened
        assert spool.memory.sibling("memory_files").used > 2_000_000
    finally:
        check.close()
    await until(lambda: not spool.files)


async def test_a_full_spool_is_no_fault_of_the_file(
    pool: ProbePool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is examined in memory. Where that is short, too: 503, and the log names the cause; so it
    is with a directory that is gone."""
    gone = new_spool()
    gone.directory = Path("/nonexistent")
    for spool, cause in ((new_spool(max_size=1000), "max_size"), (gone, "no_directory")):
        validator = UploadRules(Upload(), pool, spool)
        assert (await upload(validator, GOOD)).code == "accepted"
        spool.memory.reserve(200 * 1024 * 1024)
        outcome = await upload(validator, GOOD)
        assert isinstance(outcome.error, Overloaded)
        assert outcome.error.reason == "upload_spool"
        assert f"spool: {cause}" in [getattr(record, "cause", "") for record in caplog.records]


async def test_a_probe_that_cannot_read_the_spool_is_no_fault_of_the_file(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that breaks between the writing and the reading: tried twice, then 503."""
    monkeypatch.setattr(session_module, "RETRY_DELAY", 0.01)
    monkeypatch.setattr(session_module, "_read_only", lambda _: os.open("/dev/null", os.O_RDONLY))
    outcome = await upload(validator, GOOD)
    assert isinstance(outcome.error, Overloaded)


HOSTILE = {
    "no line end": b"x" * 100_000,
    "no line end, in JSON": b'{"label": "' + b"x" * 100_000,
    "no JSON": b"hello\n",
    "deep JSON": b"[" * 15_000 + b"\n",
    "no answer": b'{"surprise": 1}\n',
    "wants too often": b'{"want": 9}\n' * 3,
    "wants no number": b'{"want": "all"}\n',
    "endless": b'{"label": "a", "type": "audio/mpeg"}\n{"duration": Infinity}\n',
    "not a number": b'{"label": "a", "type": "audio/mpeg"}\n{"duration": NaN}\n',
    "another type": b'{"label": "a", "type": "text/html"}\n{"duration": 1.0}\n',
    "no type": b'{"duration": 1.0}\n',
}


@pytest.mark.parametrize("complaint", HOSTILE)
async def test_a_probe_that_was_taken_over_is_not_believed(
    pool: ProbePool, validator: UploadRules, monkeypatch: pytest.MonkeyPatch, complaint: str
) -> None:
    """Whatever it sends is bounded, and refuses its own upload only."""
    ours, theirs = socket.socketpair()
    attach = ProbeSession.attach

    def attach_to_us(session: ProbeSession, sock: socket.socket) -> None:
        kept.enter_context(sock)  # its process waits for a job
        attach(session, theirs)

    with ours, contextlib.ExitStack() as kept, monkeypatch.context() as patched:
        ours.sendall(HOSTILE[complaint])
        patched.setattr(ProbeSession, "attach", attach_to_us)
        with half_an_upload(validator) as check:
            refusal = await feed_until_refused(check, bytes(1000), 10_000)
    assert isinstance(refusal, UploadDurationUnknown)
    assert (await upload(validator, GOOD)).code == "accepted"


async def test_last_words_count_where_the_end_is_known_first(
    pool: ProbePool,
    validator: UploadRules,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A process that found no duration in little memory has ended by itself: the next one has more,
    and nothing was lost."""
    ours, theirs = socket.socketpair()
    attach = ProbeSession.attach
    memory = []

    def attach_to_us(session: ProbeSession, sock: socket.socket) -> None:
        memory.append(session.memory)
        if len(memory) > 1:
            attach(session, sock)
            return
        kept.enter_context(sock)  # its process waits for a job
        attach(session, theirs)
        ours.sendall(b'{"refused": "unknown", "why": "memory"}\n')
        session.died(0)

    with ours, contextlib.ExitStack() as kept:
        monkeypatch.setattr(ProbeSession, "attach", attach_to_us)
        assert (await upload(validator, GOOD)).code == "accepted"
    assert memory == [FIRST_MEMORY, ProbeTask.memory]
    assert "upload probe lost" not in caplog.text


async def test_many_large_comments_share_one_budget(
    roomy: ProbePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of 20 MB at once, of which FFmpeg makes copies: they take what two processes may."""
    monkeypatch.setattr(session_module, "QUEUE_TIMEOUT", PATIENCE)
    monkeypatch.setattr(pool_module, "TURN", PATIENCE)
    validator = UploadRules(Upload(), roomy, new_spool())
    body = form(part(slow_to_read(1, b"v" * 20_000_000)))
    peaks = [0]
    done = asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            peaks.append(sum(map(own_memory, descendants())))
            await asyncio.sleep(0.01)

    watcher = asyncio.create_task(watch(), name="watch")
    outcomes = await asyncio.gather(*(upload(validator, body) for _ in range(8)))
    done.set()
    await watcher
    assert {o.facts.get("reason") for o in outcomes} <= {None, "memory"}
    assert 20 * 2**20 < max(peaks) < 2 * ProbeTask.memory + 64 * 2**20  # the parent


async def test_a_dribbling_client_holds_no_process(pool: ProbePool, validator: UploadRules) -> None:
    """Before 64 KiB of the file are there, none is asked for."""
    check = validator.begin(CONTENT_TYPE, None, None)
    check.feed(part(wav_header(10**6) + bytes(60_000)).removesuffix(b"\r\n"))
    await asyncio.sleep(0)
    assert pool.running == 0
    check.close()


async def test_stopping_ends_what_is_open(validator: UploadRules, pool: ProbePool) -> None:
    """Nothing is left behind, and the upload gets an answer."""
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


async def test_the_proxy_keeps_no_descriptors(pool: ProbePool, validator: UploadRules) -> None:
    """After any number of uploads, good and bad."""
    await upload(validator, GOOD)
    await until(lambda: not validator.spool.files)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await upload(validator, GOOD)
        await upload(validator, form(part(b"%PDF-1.7")))
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # threads close files


def test_it_works_on_uvloop() -> None:
    """The proxy's own event loop."""

    async def one() -> str:
        pool = ProbePool()
        await pool.start()
        try:
            return (await upload(UploadRules(Upload(), pool, new_spool()), GOOD, chunk=1000)).code
        finally:
            await pool.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(one()) == "accepted"
