"""The proxy's side of the probe processes: one parent kept alive, one process per upload.

Rules:
1. Why a process per upload, and not a few that take turns: a slow sender then holds nothing but its
   own process (asleep in a read, 5 MB), and a crash, a hang or a balloon ends one upload only. A
   fork of the warm parent takes three milliseconds, and is made one upload ahead.
2. A process is asked for when the head of a file is whole (64 KiB or its end): who dribbles less
   holds no process. At most `processes` run at a time; who comes later waits, and its client with
   it, up to `session.QUEUE_TIMEOUT`.
3. The parent is started again when it dies. Uploads in progress do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import proxy
from proxy.upload.holding import Total
from proxy.upload.session import Job, ProbeSession

START_TIMEOUT = 20.0
_RESTART_DELAYS = (0.0, 0.2, 1.0, 5.0)  # seconds, the last one again and again

log = logging.getLogger("proxy.upload")


class ProbePool:
    """Start it once per proxy process; sessions are made for each upload.

    `processes`: how many uploads may be examined at the same time; each costs about 5 MB.
    """

    def __init__(self, *, processes: int = 64) -> None:
        self._limit = processes
        self._running: set[ProbeSession] = set()
        self._waiting: deque[ProbeSession] = deque()
        self._control: socket.socket | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._next_id = 0
        self.held = Total()  # of the uploads that are examined here; theirs to count

    @property
    def ready(self) -> bool:
        """Whether an upload that comes now can be examined."""
        return self._control is not None and not self._stopping

    @property
    def running(self) -> int:
        """Uploads that hold a process now."""
        return len(self._running)

    async def start(self) -> None:
        """Start the parent; returns when it is ready. Raises `RuntimeError` where it does not get
        so far in 20 s: FFmpeg or libmagic cannot be loaded."""
        process = await self._spawn()
        self._keeper = asyncio.create_task(self._keep(process), name="upload-probe-keeper")

    async def stop(self) -> None:
        """End the parent and every process. Sessions still open are told that they are lost."""
        self._stopping = True
        for session in [*self._running, *self._waiting]:
            session.lose("stopped")
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    def session(self, job: Job, listener: Callable[[], None]) -> ProbeSession:
        """A session for one file. `listener` is called, from the event loop, whenever there is
        something new: an answer, or room to write. Costs nothing before `open`."""
        return ProbeSession(self, job, listener)

    # --- the parent --------------------------------------------------------------------------

    async def _spawn(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        root = str(Path(proxy.__file__).parent.parent)
        keep = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "MAGIC", "VIRTUAL_ENV")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        inherited = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else root
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - a fork of a few ms, our own module
                [sys.executable, "-m", "proxy.upload.probe", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                ready = await loop.sock_recv(ours, 1)
        except BaseException:
            ours.close()
            process.kill()
            await asyncio.shield(loop.run_in_executor(None, process.wait))
            raise
        if ready != b"R":
            ours.close()
            code = await loop.run_in_executor(None, process.wait)
            raise RuntimeError(f"the upload probe does not start (exit code {code})")
        self._control = ours
        self._admit()
        return process

    async def _keep(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                assert self._control is not None
                with contextlib.suppress(OSError):
                    await loop.sock_recv(self._control, 1)  # it never speaks again: this is its end
                self._control.close()
                self._control = None
                process.kill()
                await loop.run_in_executor(None, process.wait)
                log.warning("upload probe died, starting it again")
                process = await self._respawn()
        finally:
            if self._control is not None:
                self._control.close()
                self._control = None
            process.kill()
            process.wait()

    async def _respawn(self) -> subprocess.Popen[bytes]:
        failures = 0
        while True:
            await asyncio.sleep(_RESTART_DELAYS[min(failures, len(_RESTART_DELAYS) - 1)])
            try:
                return await self._spawn()
            except (OSError, RuntimeError, TimeoutError):
                failures += 1
                log.exception("upload probe does not start")

    # --- the sessions' side --------------------------------------------------------------------

    def enqueue(self, session: ProbeSession) -> None:
        """Give `session` a process now or when its turn comes."""
        self._waiting.append(session)
        self._admit()

    def leave(self, session: ProbeSession, *, kill: bool) -> None:
        """`session` is done; its process is ended unless it has given its verdict."""
        if session in self._running:
            self._running.discard(session)
            if kill:
                self._command(b"K" + session.name)
            self._admit()
        else:
            with contextlib.suppress(ValueError):
                self._waiting.remove(session)

    def _admit(self) -> None:
        while self._waiting and self.ready and len(self._running) < self._limit:
            session = self._waiting.popleft()
            self._next_id += 1
            session.name = self._next_id.to_bytes(8, "big")
            ours, theirs = socket.socketpair()
            with theirs:
                if not self._command(b"S" + session.name, theirs.fileno()):
                    ours.close()
                    self._waiting.appendleft(session)
                    return
            self._running.add(session)
            session.attach(ours)

    def _command(self, command: bytes, fd: int | None = None) -> bool:
        """False when the parent does not take it: it is dead, or a thousand commands behind."""
        if self._control is None:
            return False
        try:
            if fd is None:
                self._control.send(command)
            else:
                socket.send_fds(self._control, [command], [fd])
        except OSError:
            return False
        return True
