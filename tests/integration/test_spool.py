"""The spool against real files: order, bounds, disks that are full, gone or slow."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import resource
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.core.clock import SystemClock
from proxy.core.memory.budget import MemoryBudget
from proxy.spool import BodyReader, Spool, SpooledBody, SpooledQueue, SpoolError
from proxy.spool import file as spool_file
from tests.http1 import PATIENCE

KIB, MIB = 1024, 1024 * 1024


class Client:
    """Who has bodies in the spool."""

    held = 0

    def __init__(self, who: str) -> None:
        self.who = who


class Site:
    """A spool and what wakes its owner."""

    def __init__(self, directory: Path, max_size: int = 64 * MIB) -> None:
        self.budget = MemoryBudget()
        self.memory = self.budget.account("spool")
        self.clock = SystemClock()
        self.spool = Spool(directory, max_size, self.memory, self.clock)
        self.changed = asyncio.Event()

    def body(self, **options: bool | int) -> SpooledBody:
        return self.spool.body(self.changed.set, **options)  # type: ignore[arg-type]

    def queue(self) -> SpooledQueue:
        return self.spool.queue(self.changed.set)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for changes until `condition` holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def read(self, reader: BodyReader) -> bytes:
        """All that the reader can give."""
        out = []
        while not reader.caught_up:
            pieces = reader.take()
            if not pieces:
                self.changed.clear()
                async with asyncio.timeout(PATIENCE):
                    await self.changed.wait()
            out += pieces
        return b"".join(out)

    async def settled(self) -> None:
        """Everything has been given back."""
        async with asyncio.timeout(PATIENCE):
            while self.memory.used or self.spool.used or self.spool.files:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A spool of 64 MiB, which must be empty at the end."""
    site = Site(tmp_path)
    yield site
    await site.settled()
    assert os.listdir(tmp_path) == []


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes in which no two places are alike."""
    return random.Random(seed).randbytes(size)


async def test_a_small_body_stays_in_memory(site: Site) -> None:
    """No file is made for what fits, and every reader gets all of it."""
    body = site.body(sha256=True)
    body.append([b"one ", b"two"])
    body.end()
    assert (await site.read(body.reader()), await site.read(body.reader())) == (b"one two",) * 2
    assert (body.fd, site.spool.used, site.memory.used) == (None, 0, 7)
    assert body.digest() == hashlib.sha256(b"one two").digest()
    body.close()


@pytest.mark.parametrize("piece", [1, 999, 65536, 300_000])
async def test_a_large_body_is_read_as_it_was_written(site: Site, piece: int) -> None:
    """Whatever the pieces, content and digest are right, before and after the last write."""
    data = noise(piece * 4000 if piece == 1 else 3 * MIB)
    body = site.body(sha256=True)
    body.to_file()
    early = body.reader()
    for start in range(0, len(data), piece):
        body.append([data[start : start + piece]])
        if body.blocked:
            await site.until(lambda: not body.blocked)
    assert await site.read(early) == data
    body.end()
    await site.until(lambda: body.in_file)
    assert early.done
    assert await site.read(body.reader()) == data
    assert body.fd is not None
    assert os.pread(body.fd, len(data), 0) == data
    assert body.digest() == hashlib.sha256(data).digest()
    assert site.memory.used == 0
    body.close()


async def test_what_is_framed_is_read_but_not_in_the_file(site: Site) -> None:
    """A form's head and end stand around the file when it is read back, and count."""
    body = site.body()
    data = noise(MIB)
    body.append([data])
    body.end()
    body.frame([b"head"], [b"tail"])
    assert await site.read(body.reader()) == b"head" + data + b"tail"
    assert (body.length, body.size) == (MIB + 8, MIB)
    body.close()


async def test_other_bodies_may_stand_around_one(site: Site) -> None:
    """In the file or in memory, or empty; each reader reads all of them in their order."""
    body, large, small, empty = (site.body() for _ in range(4))
    body.append([noise(MIB, 1)])
    large.append([noise(MIB, 2)])
    small.append([b"small"])
    for one in (body, large, small, empty):
        one.end()
    body.frame([b"a", large, b"b", empty, small], [small, b"", b"c", large])
    whole = b"".join(
        (b"a", noise(MIB, 2), b"b", b"small", noise(MIB, 1), b"small", b"c", noise(MIB, 2))
    )
    assert body.length == len(whole)
    for _ in range(2):
        assert await site.read(body.reader()) == whole
    for one in (body, large, small, empty):
        one.close()


async def test_memory_is_bounded_by_the_disk_s_pace(site: Site) -> None:
    """An owner that heeds `blocked` never has more than a few MiB in memory."""
    body, peak = site.body(), 0
    for seed in range(160):
        body.append([noise(256 * KIB, seed)])
        peak = max(peak, site.memory.used)
        await site.until(lambda: not body.blocked)
    assert peak <= 3 * MIB
    body.close()


async def test_less_memory_for_each_when_it_is_short(site: Site) -> None:
    """With the budget nearly used up, a body of 40 KiB goes to the disk; its owner answers for what
    is in memory until then."""
    owner = Client("192.0.2.1")
    others = site.budget.account("others")
    others.reserve(site.budget.limit * 95 // 100)
    body = site.spool.body(site.changed.set, owner=owner)
    body.append([noise(40 * KIB)])
    assert owner.held == 40 * KIB
    await site.until(lambda: body.in_file)
    assert owner.held == 0
    others.release(others.used)
    body.close()


async def test_one_client_leaves_room_for_others(site: Site) -> None:
    """Its bodies get four fifths of the bound, and others get what is left. Its share is available
    again when it has been given back."""
    site.spool.max_size = 20 * MIB
    greedy = Client("greedy")
    bodies: list[SpooledBody] = []

    async def fill(who: Client) -> int:
        """Bodies of 1 MiB until one does not fit; how many did."""
        for count in range(100):
            body = site.spool.body(site.changed.set, owner=who)
            bodies.append(body)
            body.append([noise(MIB)])
            body.to_file()
            await site.until(lambda body=body: body.full or body.in_file)  # type: ignore[misc]
            if body.full is not None:
                assert body.full == "client_share"
                return count
        return 100

    assert await fill(greedy) == 16
    assert site.spool.full is None, "others have room"
    assert not site.spool.admits(MIB, greedy)
    assert site.spool.admits(MIB, Client("other"))
    assert site.spool.refused["client_share"] == 2
    assert await fill(Client("neighbour")) == 2
    assert site.spool.admits(MIB, Client("third"))
    assert site.spool.admits(MIB, None), "over a unix socket nobody has an address"
    for body in bodies:
        body.close()
    await site.settled()
    bodies.clear()
    assert await fill(greedy) == 16
    for body in bodies:
        body.close()


async def test_slow_downloads_of_one_client_are_one_share(site: Site) -> None:
    """However many queues it has, they leave to others what one of them would."""
    site.spool.max_size = 20 * MIB
    greedy = Client("greedy")
    queues = [site.spool.queue(site.changed.set, owner=greedy) for _ in range(8)]
    for _ in range(40):
        for queue in queues:
            if not queue.blocked:
                queue.put([noise(256 * KIB)])
        await site.until(lambda: not any(queue._writing for queue in queues))
    assert all(queue.blocked for queue in queues)
    assert site.spool.used <= 16 * MIB
    assert site.spool.admits(2 * MIB, Client("neighbour"))
    for queue in queues:
        queue.close()


async def test_a_body_over_the_bound_stays_readable(site: Site) -> None:
    """What the spool does not take remains in memory, and others are served again afterwards."""
    site.spool.max_size = 2 * MIB
    data = noise(4 * MIB)
    body, appended = site.body(), 0
    while body.full is None:
        body.append([data[appended : appended + 256 * KIB]])
        appended += 256 * KIB
        await asyncio.sleep(0)
    assert body.full == "max_size" == site.spool.full
    assert site.spool.refused["max_size"] == 1
    assert await site.read(body.reader()) == data[:appended]
    body.close()
    await site.settled()
    assert site.spool.full is None
    other = site.body()
    other.append([data[: 1 * MIB]])
    await site.until(lambda: other.in_file)
    other.close()


async def test_a_full_disk_loses_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A real short write (RLIMIT_FSIZE): what was written and what was not are both read back."""
    data = noise(3 * MIB)
    body, appended = site.body(sha256=True), 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 123, hard))
    try:
        while body.full is None:
            body.append([data[appended : appended + 200_000]])
            appended += 200_000
            await site.until(lambda: not body._writing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert body.full == "no_space"
    assert body.written == MIB + 123
    body.end()
    assert await site.read(body.reader()) == data[:appended]
    assert body.digest() == hashlib.sha256(data[:appended]).digest()
    assert [r.message for r in caplog.records].count(
        "spool full: bodies are passed on as they come"
    ) == 1
    body.close()


@pytest.mark.parametrize("why", ["max_size", "no_space", "no_directory", "some_written", "later"])
async def test_what_must_be_a_file_is_one_in_memory(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Where the disk takes nothing of it, or no more: it can be read, hashed and handed over as any
    other, counts in the memory budget, and leaves nothing."""
    content = random.Random(3).randbytes(2 * MIB)
    if why == "max_size":
        assert site.spool.reserve(64 * MIB - 100) is None
    elif why == "no_directory":
        site.spool.configure(tmp_path / "gone", 64 * MIB)
    else:
        real = spool_file._write

        def fails(
            fd: int | None, directory: Path, blocks: list[bytes], offset: int
        ) -> tuple[int | None, int, OSError | None]:
            full = OSError(errno.ENOSPC, "No space left on device")
            written = 0
            if why == "later" and offset < MIB:
                return real(fd, directory, blocks, offset)
            if why == "some_written":
                fd, written, _ = real(fd, directory, [b"".join(blocks)[:1000]], offset)
            return fd, written, full

        disk = threading.main_thread()
        monkeypatch.setattr(
            spool_file,
            "_write",
            lambda *given: (real if threading.current_thread() is disk else fails)(*given),
        )
    body = site.body(keep=True, sha256=True)
    other = site.body(sha256=True)
    for at in range(0, len(content), 50_000):
        body.append([content[at : at + 50_000]])
        other.append([content[at : at + 50_000]])
        await asyncio.sleep(0)
        if why == "later":  # or else one write may be all of it
            await site.until(lambda: not (body.writing or other.writing))
    body.to_file()
    await site.until(lambda: body.in_file and other.full)
    body.end()
    assert body.full is None
    assert body.fd is not None
    assert os.pread(body.fd, 3 * MIB, 0) == content
    assert await site.read(body.reader()) == content
    assert body.digest() == hashlib.sha256(content).digest()
    assert site.budget.memory_files.used == len(content)
    for one in (body, other):
        one.close()
    if why == "max_size":
        site.spool.release(64 * MIB - 100)
    async with asyncio.timeout(PATIENCE):
        while site.budget.used or site.spool.files:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm")
async def test_a_file_system_in_memory_is_read_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say what is at hand, as everything is: no thread is asked for it."""
    site.spool.configure(Path("/dev/shm"), 64 * MIB)
    content = random.Random(5).randbytes(2 * MIB)
    body = site.body()
    body.append([content])
    body.end()
    await site.until(lambda: body.in_file)
    assert body.fd is not None
    assert spool_file.in_memory(body.fd)
    other = os.open("/proc/self/cmdline", os.O_RDONLY)
    assert not spool_file.in_memory(other)
    os.close(other)
    monkeypatch.setattr(site.spool.disk, "submit", None)
    assert await site.read(body.reader()) == content
    monkeypatch.undo()
    body.close()


async def test_a_file_in_memory_has_a_share_of_what_is_left(site: Site) -> None:
    """Beyond that it is full as any other, and can still be read."""
    site.spool.configure(site.spool.directory, 1)
    site.budget.resize(16 * MIB)
    body = site.body(keep=True)
    for _ in range(64):
        body.append([bytes(64 * KIB)])
        await asyncio.sleep(0)
        if body.full is not None:
            break
    assert body.full == "max_size"
    assert MIB < body.size < 4 * MIB
    assert len(await site.read(body.reader())) == body.size
    site.budget.memory_files.reserve(12 * MIB)
    short = site.body(keep=True)
    short.append([b"x" * 1000])
    short.to_file()
    assert short.full == "max_size"
    site.budget.memory_files.release(12 * MIB)
    for one in (body, short):
        one.close()


async def test_a_disk_that_fails_is_left_alone_for_a_moment(site: Site, tmp_path: Path) -> None:
    """A directory that is gone refuses at once; when it is back, so is the spool."""
    gone = tmp_path / "gone"
    site.spool.directory = gone
    body = site.body()
    body.append([noise(MIB)])
    await site.until(lambda: body.full)
    assert body.full == "no_directory"
    other = site.body()
    other.append([noise(MIB)])
    assert other.full == "no_directory", "the disk was asked again"
    assert site.spool.refused["no_directory"] == 2
    gone.mkdir()
    site.spool._retry_at = 0.0
    third = site.body()
    third.append([noise(MIB)])
    await site.until(lambda: third.in_file)
    assert site.spool.full is None
    for each in (body, other, third):
        each.close()
    gone.rmdir()


async def test_a_file_system_without_nameless_files(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is made with a name and loses it at once."""
    monkeypatch.setattr(spool_file, "_O_TMPFILE", None)
    body = site.body()
    body.append([noise(MIB)])
    await site.until(lambda: body.in_file)
    assert list(site.spool.directory.iterdir()) == []
    assert os.fstat(body.fd or -1).st_mode & 0o777 == 0o600
    body.close()


@pytest.mark.parametrize("nowait", [True, False])
async def test_a_disk_that_cannot_be_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, nowait: bool
) -> None:
    """A read error is raised to who reads, and reaches nobody else."""
    body = site.body()
    body.append([noise(MIB)])
    body.end()
    await site.until(lambda: body.in_file)
    if not nowait:
        monkeypatch.setattr(spool_file, "_NOWAIT", None)
        assert await site.read(body.reader()) == noise(MIB)

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(SpoolError, match="Input/output"):
        await site.read(body.reader())
    body.close()


async def test_a_disk_that_hangs_holds_up_nobody_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop goes on, the body pauses its sender, and resumes it when the disk is back."""
    gate, real = threading.Event(), os.pwritev

    def hanging(fd: int, blocks: list[memoryview], offset: int) -> int:
        gate.wait(PATIENCE)
        return real(fd, blocks, offset)

    monkeypatch.setattr(os, "pwritev", hanging)
    body = site.body()
    data = noise(4 * MIB)
    put = 0
    while not body.blocked:
        body.append([data[put : put + 256 * KIB]])
        put += 256 * KIB
        await asyncio.sleep(0)
    assert put < 2 * MIB
    small = site.body()
    small.append([b"small"])
    small.end()
    assert await site.read(small.reader()) == b"small"
    assert body.reader().take() == [data[: 256 * KIB]], "what is being written can be read"
    gate.set()
    await site.until(lambda: body.in_file)
    assert await site.read(body.reader()) == data[:put]
    small.close()
    body.close()


async def test_a_spool_that_fills_again_and_again_is_logged_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Every refusal is counted, not every one logged."""
    site.spool.max_size = MIB
    for _ in range(5):
        body = site.body()
        while body.full is None:
            body.append([bytes(300 * KIB)])
            await site.until(lambda: not body._writing)  # noqa: B023 (asked at once)
        body.close()
        await site.settled()
    assert site.spool.refused["max_size"] == 5
    assert sum(r.message.startswith("spool full") for r in caplog.records) == 1


async def test_closing_while_the_disk_works_gives_all_back(site: Site) -> None:
    """A client that leaves in the middle of a write leaves nothing behind."""
    for seed in range(20):
        body = site.body()
        body.append([noise(400 * KIB, seed)])
        body.append([noise(400 * KIB, seed)])
        body.close()
        body.append([b"too late"])
        body.close()


# --- queues ---


async def drain(site: Site, queue: SpooledQueue, size: int) -> bytes:
    """The next `size` bytes or a few more."""
    out: list[bytes] = []
    while sum(map(len, out)) < size:
        pieces = queue.take()
        if not pieces:
            site.changed.clear()
            async with asyncio.timeout(PATIENCE):
                await site.changed.wait()
        out += pieces
    return b"".join(out)


@pytest.mark.parametrize("seed", range(30))
async def test_a_queue_keeps_the_order_whatever_the_paces(site: Site, seed: int) -> None:
    """Random pieces and random takes, with and without a disk that has enough room."""
    dice = random.Random(seed)
    site.spool.max_size = dice.choice([MIB, 3 * MIB, 64 * MIB])
    data = noise(6 * MIB, seed)
    queue, put, got = site.queue(), 0, b""
    while len(got) < len(data):
        for _ in range(dice.randrange(8)):
            if put < len(data) and not queue.blocked:
                size = dice.choice([1, 100, 5000, 70_000, 262_144])
                queue.put([data[put : put + size]])
                put += size
        if dice.random() < 0.3:
            await asyncio.sleep(0)
        for _ in range(dice.randrange(4)):
            got += b"".join(queue.take())
    assert got == data
    assert queue.size == 0
    queue.close()


async def test_a_queue_that_is_read_in_time_never_touches_the_disk(site: Site) -> None:
    """A reader that keeps up costs no file."""
    queue = site.queue()
    for seed in range(100):
        queue.put([noise(100 * KIB, seed)])
        assert await drain(site, queue, 100 * KIB) == noise(100 * KIB, seed)
    assert (site.spool.spooled, site.memory.used) == (0, 0)
    queue.close()


async def test_one_queue_leaves_room_for_others(site: Site) -> None:
    """One slow reader gets half of the spool at most, the next one half of the rest."""
    for left in (32, 16, 8):
        queue = site.queue()
        while not queue.blocked:
            queue.put([bytes(256 * KIB)])
            await site.until(lambda: not queue._writing)  # noqa: B023 (asked at once)
        free = site.spool.max_size - site.spool.used
        assert abs(free - left * MIB) <= MIB
        site.queues = [*getattr(site, "queues", []), queue]  # type: ignore[attr-defined]
    assert site.spool.full is None
    for queue in site.queues:  # type: ignore[attr-defined]
        queue.close()


async def test_a_queue_longer_than_the_spool(site: Site) -> None:
    """When the reader has caught up with the file, it begins anew."""
    site.spool.max_size = 4 * MIB
    queue, total = site.queue(), 0
    for _ in range(10):
        while not queue.blocked:
            queue.put([bytes(256 * KIB)])
            await site.until(lambda: not queue._writing)
        total += queue.size
        await drain(site, queue, queue.size)
    assert total > 20 * MIB
    queue.close()


async def test_a_queue_on_a_broken_disk_is_held_in_memory(site: Site, tmp_path: Path) -> None:
    """Without a directory it blocks its sender early, and gives all that it was given."""
    site.spool.directory = tmp_path / "gone"
    queue = site.queue()
    data = noise(MIB)
    put = 0
    while not queue.blocked:
        queue.put([data[put : put + 100_000]])
        put += 100_000
        await site.until(lambda: not queue._writing)
    assert put < MIB
    assert await drain(site, queue, put) == data[:put]
    queue.close()
