"""The demo's child processes: start, watch, restart and stop them; log their output."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import aiohttp

from proxy.demo.guard import Guard

_START_LIMIT, _STOP_LIMIT = 20.0, 8.0


class ChildFailed(RuntimeError):
    """A child did not start, or exited unexpectedly."""


class Child:
    """One process. With `restart_after` it is restarted that many seconds after it exits by itself,
    like a container. Its output is appended to `log`."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        guard: Guard,
        *,
        environment: Mapping[str, str],
        ready_url: str | None = None,
        restart_after: float | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._guard = guard
        self._environment = {**os.environ, **environment}
        self._ready_url = ready_url
        self._restart_after = restart_after
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start, and wait up to 20 s until `ready_url` answers 200. Raises `ChildFailed`."""
        await self._spawn()
        if self._restart_after is not None:
            self._watcher = asyncio.create_task(self._keep_alive(), name=f"watch-{self.name}")
        if self._ready_url is None:
            return
        try:
            async with asyncio.timeout(_START_LIMIT), aiohttp.ClientSession() as http:
                while not await _answers(http, self._ready_url):
                    if self._process is None or self._process.returncode is not None:
                        raise ChildFailed(f"{self.name} ended at once:\n{self.tail()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            waited = f"{self.name} did not answer {self._ready_url} within {_START_LIMIT:g} s"
            raise ChildFailed(f"{waited}:\n{self.tail()}") from None

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after 8 s. Does nothing if not running."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Send SIGKILL, with no restart until `start`. Does nothing if not running."""
        await self._end(signal.SIGKILL)

    def tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _spawn(self) -> None:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches only the demo, which then stops its children.
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._guard.watch(self._process.pid)

    async def _keep_alive(self) -> None:
        assert self._restart_after is not None
        while self._process is not None:
            await self._process.wait()
            self._guard.forget(self._process.pid)
            await asyncio.sleep(self._restart_after)
            await self._spawn()

    async def _end(self, number: signal.Signals) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
            try:
                await asyncio.wait_for(process.wait(), _STOP_LIMIT)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._guard.forget(process.pid)


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
