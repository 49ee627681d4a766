"""Resources of the real machine: directories, processes, and threads that end."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.app_telemetry.resources import sampler as sampler_module
from proxy.app_telemetry.resources.pace import Pace
from proxy.app_telemetry.resources.sampler import ResourceSampler
from proxy.app_telemetry.resources.walk import walk
from proxy.config.telemetry import Resources
from proxy.core.clock import SystemClock
from tests.http1 import PATIENCE


def unhurried() -> Pace:
    """A pace that never rests."""
    return Pace(1.0, threading.Event())


def du(path: Path) -> int:
    """What GNU du says, in bytes."""
    measured = subprocess.run(
        ["du", "--one-file-system", "--block-size=1", "--summarize", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(measured.stdout.split()[0])


def value(sampler: ResourceSampler, name: str, **labels: str) -> float | None:
    """One sample as exposed now; None if there is none."""
    for family in sampler.collect():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fails after 10 s."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


# --- walking ------------------------------------------------------------------------------------


def test_a_walk_measures_what_du_measures(tmp_path: Path) -> None:
    """Sparse files, several links, links elsewhere, strange names, and a deep tree."""
    (tmp_path / "clip.mp4").write_bytes(os.urandom(100_000))
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(10_000_000_000)
    os.link(tmp_path / "clip.mp4", tmp_path / "again.mp4")
    (tmp_path / "away").symlink_to("/usr")
    (tmp_path / "loop").symlink_to(tmp_path)
    deep = tmp_path
    for name in ("a\nb", "\udcff", "c"):
        deep = deep / name
        deep.mkdir()
        (deep / "file").write_bytes(b"x" * 5000)
    os.mkfifo(deep / "pipe")
    found = walk(tmp_path, 1000, unhurried())
    assert found.size == du(tmp_path)
    assert found.files == 9
    assert not found.errors
    assert not found.truncated


def test_a_walk_ends_at_its_limit(tmp_path: Path) -> None:
    """And says so; nothing is opened beyond it."""
    for number in range(50):
        (tmp_path / str(number)).touch()
    assert walk(tmp_path, 50, unhurried()).files == 50
    cut = walk(tmp_path, 49, unhurried())
    assert (cut.files, cut.truncated) == (49, True)


def test_a_walk_rests_after_every_hundred_files(tmp_path: Path) -> None:
    """So a directory of any size takes its share of a core only."""
    for number in range(250):
        (tmp_path / str(number)).touch()
    rests: list[int] = []

    class Counting(Pace):
        def rest(self) -> None:
            rests.append(1)

    assert walk(tmp_path, 1000, Counting(0.1, threading.Event())).files == 250
    assert len(rests) == 2


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    """A missing directory, a file instead of one, and one that vanishes during the walk."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        found = walk(path, 100, unhurried())
        assert found.errors == {"missing": 1}
        assert not found.there

    class Removing(Pace):
        def rest(self) -> None:
            shutil.rmtree(tmp_path / "doomed", ignore_errors=True)

    for number in range(150):
        (tmp_path / "doomed" / str(number)).mkdir(parents=True)
    assert not walk(tmp_path, 1000, Removing(0.1, threading.Event())).errors


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is counted as denied, and the rest is measured. Root may read all, so it is made up here."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "open").touch()
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("proxy.app_telemetry.resources.walk.os.scandir", refusing)
    found = walk(tmp_path, 100, unhurried())
    assert (found.errors, found.files, found.there) == ({"denied": 1}, 1, True)
    top = walk(tmp_path / "closed", 100, unhurried())
    assert (top.errors, top.there) == ({"denied": 1}, False)


# --- sampling -----------------------------------------------------------------------------------


@pytest.fixture
def ffmpeg(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that goes by that name, and waits."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, program)
    with subprocess.Popen([program, "60"]) as process:
        yield process
        process.kill()


def configured(**keys: Any) -> ResourceSampler:
    """A sampler that measures every second."""
    return ResourceSampler(Resources.model_validate({"every": "1s", **keys}), SystemClock())


async def test_everything_is_measured_in_threads(tmp_path: Path) -> None:
    """Disk, temporary files, processes; a directory that appears later is taken up."""
    for number in range(3):
        (tmp_path / "temp" / str(number)).mkdir(parents=True)
        (tmp_path / "temp" / str(number) / "clip.mp4").write_bytes(b"x" * 10_000)
    sampler = configured(
        directories={"temp": str(tmp_path / "temp"), "late": str(tmp_path / "late")},
        temp={"directories": [str(tmp_path / "temp"), str(tmp_path / "nowhere")]},
    )
    sampler.start()
    await until(lambda: value(sampler, "resource_temp_files_count") is not None)
    assert value(sampler, "resource_temp_files_count") == 3
    assert value(sampler, "resource_disk_usage_bytes", directory="temp") == du(tmp_path / "temp")
    space = os.statvfs(tmp_path)
    assert value(sampler, "resource_disk_size_bytes", directory="temp") == (
        space.f_blocks * space.f_frsize
    )
    assert value(sampler, "resource_disk_free_bytes", directory="temp")
    assert value(sampler, "resource_disk_usage_bytes", directory="late") is None
    assert value(sampler, "resource_disk_free_bytes", directory="late") is None
    assert value(sampler, "proxy_resources_errors_total", source="late", reason="missing")
    assert value(sampler, "proxy_resources_errors_total", source="temp", reason="missing")
    await until(lambda: value(sampler, "resource_processes", component="proxy") is not None)
    (tmp_path / "late").mkdir()
    late = {"directory": "late"}
    await until(lambda: value(sampler, "resource_disk_usage_bytes", **late) is not None)
    (tmp_path / "late").rmdir()
    await until(lambda: value(sampler, "resource_disk_usage_bytes", **late) is None)
    await sampler.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("resources-")]


def test_processes_of_this_machine(ffmpeg: subprocess.Popen[bytes]) -> None:
    """The process is counted while it runs, and we and our children are the proxy's part."""
    sampler = configured(processes={"ffmpeg": ["ffmpeg"]})
    sampler.sample("processes", unhurried())
    # A child of ours is ours, whatever its name.
    assert (value(sampler, "resource_processes", component="proxy") or 0) >= 2
    memory = value(sampler, "resource_memory_usage_bytes", component="proxy")
    assert memory is not None
    assert memory > 10_000_000
    ffmpeg.kill()
    ffmpeg.wait()
    before = value(sampler, "resource_processes", component="proxy")
    sampler.sample("processes", unhurried())
    assert value(sampler, "resource_processes", component="proxy") == (before or 0) - 1


async def test_stopping_does_not_wait_for_a_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk at one part in ten thousand would rest for minutes; `stop` ends it at once."""
    for number in range(2000):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr("proxy.app_telemetry.resources.sampler.SHARE", 0.0001)
    sampler = configured(directories={"large": str(tmp_path)})
    sampler.start()
    await until(
        lambda: any(thread.name == "resources-directories" for thread in threading.enumerate())
    )
    await sampler.stop()
    assert not [
        thread for thread in threading.enumerate() if thread.name == "resources-directories"
    ]
    assert value(sampler, "resource_disk_usage_bytes", directory="large") is None


async def test_a_thread_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a dead network filesystem: processes are measured all the same, and it is logged."""
    hanging = threading.Event()

    def stuck(*_: object) -> None:
        hanging.wait(30)

    monkeypatch.setattr(sampler_module, "walk", stuck)
    monkeypatch.setattr(sampler_module, "_STOP_LIMIT", 0.05)
    sampler = configured(directories={"dead": str(tmp_path)})
    sampler.start()
    await until(lambda: value(sampler, "resource_processes", component="total") is not None)
    await sampler.stop()
    assert [record.message for record in caplog.records] == ["resource thread left behind"]
    hanging.set()


def test_a_mistake_of_ours_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; it does not end the thread."""
    monkeypatch.setattr(sampler_module, "running", None)
    sampler = configured()
    sampler.sample("processes", unhurried())
    assert value(sampler, "proxy_resources_errors_total", source="processes", reason="fault") == 1
    assert caplog.records[0].exc_info
