"""The proxy's side of the probe processes: one parent kept alive, one process per upload.

Rules:
1. Why a process per upload, and not a few that take turns: a slow sender then holds nothing but its
   own process, and a crash, a hang or a balloon ends one upload only. A fork of the warm parent
   takes three milliseconds, and is made one upload ahead.
2. All of them together have `MEMORY`: as many run at a time as their limits allow.
3. A process is asked for when the head of a file is whole (64 KiB or its end). Files that are whole
   come first, and take the place of the upload that has been waiting longest for its client. So who
   stands still in the middle of an upload holds a process only while nobody needs it.
4. An examination takes a tenth of a second. One that takes more than `TURN` goes to the end of the
   queue when others wait, and begins anew: files made to be slow cost their own time only.
5. The parent is started again when it dies, and its processes die with it. Uploads in progress are
   examined anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import proxy
from proxy.core.tasks import Supervised, Tasks
from proxy.uploads.probe.session import ProbeSession
from proxy.uploads.probe.task import ProbeTask

START_TIMEOUT = 20.0
MEMORY = 512 * 1024 * 1024  # bytes beyond the parent's that all processes together may take
TURN = 1.0  # seconds
ANSWER_TIMEOUT = 10.0  # seconds that the parent may take for a command
_MESSAGE = 13  # bytes of the parent's
_RESTART_DELAYS = (0.0, 0.2, 1.0, 5.0)  # seconds, the last one again and again

log = logging.getLogger("proxy.uploads")


def memory_within(allowed: int | None) -> int:
    """Bytes for all processes together; `allowed`: what the cgroup lets all of us have, of which
    they get a quarter. Room for two at least, so that one file does not stop all others."""
    return MEMORY if allowed is None else max(2 * ProbeTask.memory, min(MEMORY, allowed // 4))


class ProbePool:
    """Start it once per proxy process; sessions are made for each upload.

    `memory`: bytes that the limits of all processes together may add up to. `confined`: whether the
    system keeps them in a sandbox.
    """

    def __init__(self, tasks: Tasks | None = None, *, memory: int = MEMORY) -> None:
        self._memory = memory
        self._running: dict[bytes, ProbeSession] = {}
        self._alive: dict[bytes, int] = {}  # what processes may take, also those being killed
        # Who waits for one, in order: whole files, those that have had a turn, those that grow.
        self._queues: tuple[dict[ProbeSession, None], ...] = ({}, {}, {})
        self._look_again: asyncio.TimerHandle | None = None
        self._control: socket.socket | None = None
        self._keeping = Supervised("upload-probes", self._keep, tasks or Tasks())
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._next_id = 0
        self._ended = asyncio.Event()  # of the parent
        self._heard = b""
        self._unanswered = 0  # commands
        self._overdue: asyncio.TimerHandle | None = None
        self.confined = False

    @property
    def ready(self) -> bool:
        """Whether an upload that comes now can be examined."""
        return self._control is not None and not self._stopping

    @property
    def running(self) -> int:
        """Uploads that hold a process now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Uploads that wait for a process."""
        return sum(map(len, self._queues))

    async def start(self) -> None:
        """Start the parent; returns when it is ready. Raises `RuntimeError` where it does not get
        so far in 20 s: FFmpeg or libmagic cannot be loaded."""
        self._process = await self._spawn()
        self._keeping.start()

    async def stop(self) -> None:
        """End the parent and every process. Sessions still open are told that they are lost."""
        self._stopping = True
        if self._look_again is not None:
            self._look_again.cancel()
        for session in [*self._running.values(), *chain(*self._queues)]:
            session.give_up("stopped")
        await self._keeping.stop()

    def session(self, job: ProbeTask, listener: Callable[[], None]) -> ProbeSession:
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
                [sys.executable, "-m", "proxy.uploads.probe.process", str(theirs.fileno())],
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
        except BaseException as error:
            ours.close()
            process.kill()
            await asyncio.shield(loop.run_in_executor(None, process.wait))
            if isinstance(error, TimeoutError):
                raise RuntimeError(
                    f"the upload probe is not ready after {START_TIMEOUT:g} s: loading FFmpeg or"
                    " libmagic hangs, or this machine is too busy"
                ) from None
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
        self.admit()
        return process

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        process = self._process or await self._respawn()
        self._process = None
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
        self._unanswered = 0
        self._watch_parent()
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    def _watch_parent(self) -> None:
        """It answers each command at once. One that is stopped or stuck would hold up all."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if self._unanswered:
            loop = asyncio.get_running_loop()
            self._overdue = loop.call_later(ANSWER_TIMEOUT, self._ended.set)

    def _hear(self) -> None:
        """The parent has taken a command, or says which process has ended, and how."""
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
        while len(self._heard) >= _MESSAGE:
            message, self._heard = self._heard[:_MESSAGE], self._heard[_MESSAGE:]
            name = message[1:9]
            if message[:1] == b"A":
                self._unanswered -= 1
                self._watch_parent()
                continue
            self._alive.pop(name, None)
            if (session := self._running.get(name)) is not None:
                session.died(int.from_bytes(message[9:], "big"))
        self.admit()

    async def _respawn(self) -> subprocess.Popen[bytes]:
        failures = 0
        while True:
            await asyncio.sleep(_RESTART_DELAYS[min(failures, len(_RESTART_DELAYS) - 1)])
            try:
                return await self._spawn()
            except (OSError, RuntimeError):
                failures += 1
                log.exception("upload probe does not start")

    # --- the sessions' side --------------------------------------------------------------------

    def enqueue(self, session: ProbeSession) -> None:
        """Give `session` a process now or when its turn comes."""
        self._forget(session)
        self._queues[session.had_a_turn if session.whole else 2][session] = None
        self.admit()

    def leave(self, session: ProbeSession) -> None:
        """`session` needs its process or its place in the queue no more. Not even a process that
        has given its verdict is left to end by itself: it has read hostile bytes."""
        if self._running.get(session.name) is session:
            del self._running[session.name]
            self._command(b"K" + session.name)
        else:
            self._forget(session)

    def _forget(self, session: ProbeSession) -> None:
        for queue in self._queues:
            queue.pop(session, None)

    def admit(self) -> None:
        """Give those who wait a process as long as there are some."""
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
            self._forget(session)
            self._running[session.name] = session
            self._alive[session.name] = session.memory
            session.attach(ours)

    def _next(self) -> ProbeSession | None:
        """Who gets a process now (rules 3 and 4); None for nobody yet."""
        first = next(chain(*self._queues), None)
        if first is None:
            return None
        if not self._alive or sum(self._alive.values()) + first.memory <= self._memory:
            return first
        if first.whole and len(self._alive) == len(self._running):  # nobody is on the way out
            self._make_room(first)
        return None

    def _make_room(self, first: ProbeSession) -> None:
        running = self._running.values()
        idle = [session for session in running if session.waits_since is not None]
        if idle:
            min(idle, key=lambda session: session.waits_since or 0.0).give_way()
            return
        oldest = min(running, key=lambda session: session.attached_at)
        left = oldest.attached_at + TURN - asyncio.get_running_loop().time()
        if left <= 0 and not first.had_a_turn:
            oldest.give_way()
        elif self._look_again is None:
            self._look_again = asyncio.get_running_loop().call_later(max(left, 0.1), self._look)

    def _look(self) -> None:
        self._look_again = None
        self.admit()

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
        self._unanswered += 1
        if self._overdue is None:
            self._watch_parent()
        return True
