"""The writer thread: no loss, no blocking, no harm from a broken output."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.telemetry.logs.outputs import FileOutput, StandardOutput
from proxy.telemetry.logs.writer import LogWriter
from tests.http1 import PATIENCE


class PipeOutput:
    """The writing end of a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def refresh(self, *, force: bool) -> bool:
        """Nothing to follow."""
        return False

    def outlasts(self, error: OSError) -> bool:
        return StandardOutput.outlasts(self, error)  # type: ignore[arg-type]

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's reading and writing end; the writer closes the latter."""
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        with suppress(OSError):  # the test or the writer may have closed it
            os.close(fd)


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Poll: the threads under test have nobody to tell."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def numbers(data: bytes) -> list[int]:
    """The numbered lines in `data`."""
    return [int(line) for line in data.splitlines()]


def test_a_hundred_thousand_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    """Nothing is lost, doubled or torn."""
    path = tmp_path / "log"
    writer = LogWriter(FileOutput(path), capacity=64 * 1024 * 1024)
    for number in range(100_000):
        writer.put(b"%0100d\n" % number)
    assert writer.close(PATIENCE)
    assert writer.dropped == 0
    assert numbers(path.read_bytes()) == list(range(100_000))


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    """Each line stays whole, and each thread's lines stay in order."""
    path = tmp_path / "log"
    writer = LogWriter(FileOutput(path), linger=0.001)

    def work(name: int) -> None:
        for number in range(2000):
            writer.put(b"%d %d\n" % (name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(PATIENCE)
    seen: dict[int, list[int]] = {name: [] for name in range(4)}
    for line in path.read_text().splitlines():
        name, number = line.split()
        seen[int(name)].append(int(number))
    assert all(found == list(range(2000)) for found in seen.values())


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_costs_lines_but_no_time(pipe: tuple[int, int], blocking: bool) -> None:
    """Nobody reads: the buffer fills, further lines are counted, `put` never waits; when somebody
    reads again, what was kept arrives whole and the gap is told."""
    reading, writing = pipe
    if not blocking:
        os.set_blocking(writing, False)
    gaps: list[int] = []
    writer = LogWriter(PipeOutput(writing), capacity=200_000, linger=0.001, on_gap=gaps.append)
    slowest = 0.0
    for number in range(10_000):
        before = time.perf_counter()
        writer.put(b"%0099d\n" % number)
        slowest = max(slowest, time.perf_counter() - before)
    assert slowest < 1.0
    assert writer.dropped >= 10_000 - 200_000 // 100 - 65_536 // 100 - 1

    received = bytearray()
    reader = threading.Thread(
        target=lambda: [
            received.extend(data) for data in iter(lambda: os.read(reading, 65536), b"")
        ]
    )
    reader.start()
    assert writer.flush(PATIENCE)
    wait_until(lambda: bool(gaps))
    assert writer.close(PATIENCE)
    reader.join(PATIENCE)
    found = numbers(bytes(received))
    assert len(found) + writer.dropped == 10_000
    assert found == sorted(set(found))
    assert gaps == [writer.dropped]


def test_a_pipe_without_reader_is_survived(pipe: tuple[int, int]) -> None:
    """EPIPE: lines are counted, nothing is raised, the end is quick."""
    reading, writing = pipe
    os.close(reading)
    writer = LogWriter(PipeOutput(writing), linger=0.001)
    for _ in range(10):
        writer.put(b"x\n")
    assert writer.close(PATIENCE)
    assert writer.dropped == 10


def test_nobody_reads_at_shutdown(pipe: tuple[int, int]) -> None:
    """A reader that never reads does not hold up the end; what it did not take is counted."""
    _, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    writer = LogWriter(PipeOutput(writing), linger=0.001)
    writer.put(b"x" * 10_000 + b"\n")
    assert not writer.close(0.1)
    assert writer.dropped == 1


def test_lines_after_the_end_are_counted(tmp_path: Path) -> None:
    """`put` after `close` neither raises nor pretends."""
    writer = LogWriter(FileOutput(tmp_path / "log"))
    assert writer.close(PATIENCE)
    writer.put(b"late\n")
    assert writer.dropped == 1


def test_a_full_disk_is_tried_again_and_a_torn_line_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC in the middle of a batch loses nothing once there is room again."""
    path = tmp_path / "log"
    failures = iter([5, OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full")])

    def limited(fd: int, data: memoryview) -> int:
        failure = next(failures, None)
        if isinstance(failure, OSError):
            raise failure
        return os.write(fd, data[:failure] if failure else data)

    monkeypatch.setattr("proxy.telemetry.logs.writer.write", limited)
    monkeypatch.setattr("proxy.telemetry.logs.writer._RETRY", 0.01)
    writer = LogWriter(FileOutput(path), linger=0.001)
    writer.put(b"first line\n")
    writer.put(b"second line\n")
    assert writer.close(PATIENCE)
    assert path.read_bytes() == b"first line\nsecond line\n"
    assert writer.dropped == 0


def test_a_line_torn_by_a_full_disk_is_whole_in_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full file is moved away in the middle of a line: the new one begins with that line."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    written: list[int] = []

    def limited(fd: int, data: memoryview) -> int:
        written.append(len(data))
        if len(written) == 1:
            return os.write(fd, data[:16])
        if len(written) == 2:
            path.rename(old)
            raise OSError(errno.ENOSPC, "full")
        return os.write(fd, data)

    monkeypatch.setattr("proxy.telemetry.logs.writer.write", limited)
    monkeypatch.setattr("proxy.telemetry.logs.writer._RETRY", 0.01)
    writer = LogWriter(FileOutput(path), linger=60.0)
    for line in (b"first line\n", b"second line\n", b"third line\n"):
        writer.put(line)
    assert writer.close(30)
    assert old.read_bytes() == b"first line\nsecon"
    assert path.read_bytes() == b"second line\nthird line\n"
    assert writer.dropped == 0


def test_after_a_torn_line_the_next_one_starts_anew(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the rest of a line is lost for good, it does not eat the line after it."""
    reading, writing = pipe
    steps: Iterator[int | OSError] = iter([8, OSError(errno.EIO, "gone")])

    def limited(fd: int, data: memoryview) -> int:
        step = next(steps, None)
        if isinstance(step, OSError):
            raise step
        return os.write(fd, data[:step] if step else data)

    monkeypatch.setattr("proxy.telemetry.logs.writer.write", limited)
    writer = LogWriter(PipeOutput(writing), linger=0.001)
    writer.put(b"one\n")
    writer.put(b"two of the first batch\n")
    writer.flush(PATIENCE)
    writer.put(b"three\n")
    assert writer.close(PATIENCE)
    assert os.read(reading, 1000) == b"one\ntwo \nthree\n"
    assert writer.dropped == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_stays_full_does_not_hold_up_the_end() -> None:
    """ENOSPC for ever: the end comes within its limit, and the lines are counted."""
    writer = LogWriter(FileOutput("/dev/full"), linger=0.001)
    writer.put(b"x\n")
    assert not writer.close(0.1)
    assert writer.dropped == 1


def test_a_file_moved_away_is_followed(tmp_path: Path) -> None:
    """After a rename, lines go to a new file of the old name; so after a removal."""
    path = tmp_path / "log"
    writer = LogWriter(FileOutput(path), linger=0.001)
    writer.put(b"one\n")
    assert writer.flush(PATIENCE)
    path.rename(tmp_path / "log.1")
    writer.put(b"two\n")
    assert writer.flush(PATIENCE)
    assert (tmp_path / "log.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"
    path.unlink()
    writer.put(b"three\n")
    assert writer.close(PATIENCE)
    assert path.read_bytes() == b"three\n"


def test_reopen_opens_the_file_even_without_a_line(tmp_path: Path) -> None:
    """SIGUSR1 after a rename makes the new file at once, as log rotation expects."""
    path = tmp_path / "log"
    writer = LogWriter(FileOutput(path))
    path.rename(tmp_path / "log.1")
    writer.reopen()
    wait_until(path.exists)
    assert writer.close(PATIENCE)


def test_a_file_that_cannot_be_opened_again_is_kept(tmp_path: Path) -> None:
    """The directory is gone: lines go on into the old file instead of nowhere."""
    directory = tmp_path / "logs"
    directory.mkdir()
    writer = LogWriter(FileOutput(directory / "log"), linger=0.001)
    directory.rename(tmp_path / "old")
    writer.reopen()
    writer.put(b"one\n")
    assert writer.close(PATIENCE)
    assert (tmp_path / "old" / "log").read_bytes() == b"one\n"


def test_a_file_that_cannot_be_opened_at_all_is_an_error(tmp_path: Path) -> None:
    """At the start it is the operator's mistake, and reported as such."""
    with pytest.raises(FileNotFoundError):
        FileOutput(tmp_path / "missing" / "log")


def test_standard_output_closed_from_the_start() -> None:
    """Descriptors 0 to 2 are filled before a socket can get their numbers; logging goes on."""
    program = (
        "import os, socket\n"
        "from proxy.telemetry.logs.outputs import StandardOutput, fill_standard_descriptors\n"
        "from proxy.telemetry.logs.writer import LogWriter\n"
        "fill_standard_descriptors()\n"
        "assert socket.socket().fileno() > 2\n"
        "writer = LogWriter(StandardOutput())\n"
        "writer.put(b'x\\n')\n"
        "assert writer.close(30)\n"
        "assert writer.dropped == 0\n"
        "os._exit(7)\n"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program], timeout=120
    )
    assert done.returncode == 7
