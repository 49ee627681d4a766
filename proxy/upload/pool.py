"""The proxy's side of the probe processes: one parent kept alive, one process per upload.

Rules:
1. Why a process per upload, and not a few that take turns: a slow sender then holds nothing but its
   own process, and a crash, a hang or a balloon ends one upload only. A fork of the warm parent
   takes three milliseconds, and is made one upload ahead.
2. All of them together have `MEMORY`: as many run at a time as their limits allow.
3. A process is asked for when the head of a file is whole (64 KiB or its end). Files that are whole
   come first, and take the place of the upload that has been waiting longest for its client. So who
   stands still in the middle of an upload holds a process only while nobody needs it.
4. The parent is started again when it dies, and its processes die with it. Uploads in progress are
   examined anew.
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
from proxy.upload.session import Job, ProbeSession

START_TIMEOUT = 20.0
MEMORY = 512 * 1024 * 1024  # bytes beyond the parent's that all processes together may take
_DEATH = 13  # bytes of such a message
_RESTART_DELAYS = (0.0, 0.2, 1.0, 5.0)  # seconds, the last one again and again

log = logging.getLogger("proxy.upload")


def processes_within(allowed: int | None) -> int:
    """How many processes may run at a time; `allowed`: bytes that the cgroup lets all of us have,
    of which they get a quarter. Two at least, so that one large file does not stop all others."""
    memory = MEMORY if allowed is None else min(MEMORY, allowed // 4)
    return max(2, memory // Job.memory)


class ProbePool:
    """Start it once per proxy process; sessions are made for each upload.

    `processes`: how many uploads may be examined at the same time; each costs about 5 MB, and may
    cost `Job.memory`. `confined`: whether the system keeps them in a sandbox.
    """

    def __init__(self, *, processes: int = processes_within(None)) -> None:
        self._limit = processes
        self._running: dict[bytes, ProbeSession] = {}
        self._alive: set[bytes] = set()  # processes, also those that are being killed
        self._waiting: deque[ProbeSession] = deque()
        self._control: socket.socket | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._next_id = 0
        self._ended = asyncio.Event()  # of the parent; made anew with it
        self._heard = b""
        self.confined = False

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
        for session in [*self._running.values(), *self._waiting]:
            session.stop("stopped")
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
                ready = await loop.sock_recv(ours, 2)
        except BaseException:
            ours.close()
            process.kill()
            await asyncio.shield(loop.run_in_executor(None, process.wait))
            raise
        if ready[:1] != b"R":
            ours.close()
            code = await loop.run_in_executor(None, process.wait)
            raise RuntimeError(f"the upload probe does not start (exit code {code})")
        self.confined = ready[1:] == b"1"
        if not self.confined:
            log.warning("upload probes run without a sandbox: this system has no seccomp filters")
        self._control = ours
        self._heard = b""
        self._ended.clear()
        loop.add_reader(ours, self._hear)
        self._admit()
        return process

    async def _keep(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._ended.wait()
                self._close_control()
                process.kill()
                code = await loop.run_in_executor(None, process.wait)
                log.warning("upload probe died, starting it again", extra={"exit_code": code})
                self._alive.clear()  # they die with it
                for session in list(self._running.values()):
                    session.died(None)
                process = await self._respawn()
        finally:
            self._close_control()
            process.kill()
            process.wait()

    def _close_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    def _hear(self) -> None:
        """The parent says which processes have ended, and how."""
        assert self._control is not None
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._control)
            self._ended.set()
            return
        self._heard += data
        while len(self._heard) >= _DEATH:
            death, self._heard = self._heard[:_DEATH], self._heard[_DEATH:]
            session = self._running.get(death[1:9])
            self._alive.discard(death[1:9])
            if session is not None:
                session.died(int.from_bytes(death[9:], "big"))
        self._admit()

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
        if session not in self._waiting:
            self._waiting.append(session)
        self._admit()

    def leave(self, session: ProbeSession) -> None:
        """`session` needs its process or its place in the queue no more. Not even a process that
        has given its verdict is left to end by itself: it has read hostile bytes."""
        if self._running.get(session.name) is session:
            del self._running[session.name]
            self._command(b"K" + session.name)
        else:
            with contextlib.suppress(ValueError):
                self._waiting.remove(session)

    def idle(self, session: ProbeSession) -> None:
        """The process of `session` waits for its client."""
        if self._waiting and self._waiting_whole() is not None:
            self._admit()

    def _admit(self) -> None:
        while self.ready and (session := self._next()) is not None:
            self._next_id += 1
            session.name = self._next_id.to_bytes(8, "big")
            try:
                ours, theirs = socket.socketpair()
            except OSError:  # no descriptors: it waits, and is answered in time
                return
            with theirs:
                if not self._command(b"S" + session.name, theirs.fileno()):
                    ours.close()
                    return
            self._waiting.remove(session)
            self._running[session.name] = session
            self._alive.add(session.name)
            session.attach(ours)

    def _next(self) -> ProbeSession | None:
        """Who gets a process now (rule 3); None for nobody yet."""
        whole = self._waiting_whole()
        if len(self._alive) < self._limit:
            return whole or (self._waiting[0] if self._waiting else None)
        if whole is not None and len(self._alive) == len(self._running):  # nobody is on the way out
            idle = [session for session in self._running.values() if session.waits_since]
            if idle:
                min(idle, key=lambda session: session.waits_since or 0.0).give_way()
        return None

    def _waiting_whole(self) -> ProbeSession | None:
        return next((session for session in self._waiting if session.whole), None)

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
