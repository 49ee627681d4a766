"""`demo` shows what it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.http1 import PATIENCE

COMMAND = (sys.executable, "-m", "proxy", "demo")

# What only the app knows: its worker's reports, its own page, what it takes of the machine.
APP_FAMILIES = (
    "ocr_frames_processed_total",
    "ocr_processing_duration_seconds_count",
    "ocr_confidence_score_sum",
    "video_processing_duration_seconds_sum",
    "makevideo_jobs_completed",
    "makevideo_disk_free_gb",
    "resource_disk_usage_bytes",
    "resource_disk_free_bytes",
    "resource_memory_usage_bytes",
    "resource_temp_files_count",
)

pytestmark = pytest.mark.slow


class Demo:
    """One run of the demo, whose temporary files are all below `folder`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.lines: list[str] = []

    @classmethod
    async def start(cls, folder: Path, *arguments: str) -> Demo:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        )
        return cls(process, folder)

    async def read_until(self, wanted: str) -> None:
        """Read lines until one holds `wanted`; fails at the end of the output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(120):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line.rstrip())
                if wanted in line:
                    return
        pytest.fail("ended without {!r}:\n{}".format(wanted, "\n".join(self.lines)))

    def processes(self) -> list[psutil.Process]:
        """All processes below the demo."""
        return psutil.Process(self.process.pid).children(recursive=True)

    async def leaves_nothing(self, processes: list[psutil.Process]) -> None:
        """None of these processes lives on, and no file is left."""
        await until(lambda: not any(_alive(process) for process in processes))
        await until(lambda: not list(self.folder.iterdir()))


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fails after 10 s."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def until_shown(page: str, families: tuple[str, ...]) -> None:
    """Return once each family has a sample above zero; fails after 20 s."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    async with aiohttp.ClientSession() as http:
        missing = set(families)
        while missing:
            assert asyncio.get_running_loop().time() < deadline, missing
            async with http.get(page) as answer:
                for line in (await answer.text()).splitlines():
                    name, _, value = line.rpartition(" ")
                    if not line.startswith("#") and float(value) > 0:
                        missing.discard(name.partition("{")[0])
            await asyncio.sleep(0.1)


async def test_once(tmp_path: Path) -> None:
    """`demo --once` gives the whole tour, exits with 0 and leaves nothing."""
    demo = await Demo.start(tmp_path, "--once")
    await demo.read_until("[1/")
    processes = demo.processes()
    assert len(processes) >= 7
    await demo.read_until("Every step did what it should.")
    assert await demo.process.wait() == 0
    output = "\n".join(demo.lines)
    assert "FAILED" not in output
    assert "Audio file type not accepted: a PDF document" in output
    assert "Audio file too large: 57.3MB (max: 50MB)" in output
    assert "Audio file too long: over 10min (max: 10min)" in output
    assert "completed, all 8 stages" in output
    assert "suspected cause: The circuit of youtube-search was open since" in output
    assert "with picture and sound" in output
    assert "listener=ingress method=POST path=/make-video status=202" in output
    assert '"code":"method_not_allowed"' in output.replace(": ", ":")
    await demo.leaves_nothing(processes)


async def test_stays_up_and_its_curl_lines_work(tmp_path: Path) -> None:
    """Without --once it stays up; the lines to try work as printed; SIGTERM ends it with 0."""
    demo = await Demo.start(tmp_path)
    await demo.read_until("Ctrl-C ends everything")
    lines = [line.strip() for line in demo.lines if line.startswith("  curl ")]
    assert len(lines) == 3
    outputs = []
    for line in lines:
        shell = await asyncio.create_subprocess_shell(line, stdout=asyncio.subprocess.PIPE)
        output, _ = await shell.communicate()
        assert shell.returncode == 0
        outputs.append(output.decode())
    assert outputs[0].startswith("HTTP/1.1 202")
    assert '"status":"success"' in outputs[1]
    assert 'endpoint="create-video"' in outputs[2]
    (page,) = (line.split()[-1] for line in demo.lines if line.startswith("metrics "))
    await until_shown(page, APP_FAMILIES)
    (page,) = [line.split()[2] for line in demo.lines if line.startswith("status page")]
    async with aiohttp.ClientSession() as session, session.get(page) as reply:
        assert (reply.status, reply.content_type) == (200, "text/html")
    processes = demo.processes()
    demo.process.send_signal(signal.SIGTERM)
    assert await demo.process.wait() == 0
    await demo.leaves_nothing(processes)


async def test_killed_demo_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 of the demo ends every child and removes every file all the same."""
    demo = await Demo.start(tmp_path)
    await demo.read_until("[1/")
    processes = demo.processes()
    demo.process.kill()
    await demo.process.wait()
    await demo.leaves_nothing(processes)
