"""The proxy's side of the probe processes: one parent kept alive, one process per upload.

Rules:
1. There is a process per upload instead of a few workers, so that a slow sender holds only its own
   process, and a crash, hang or memory blow-up ends only one upload. Forking the warm parent takes
   three milliseconds.
2. The memory limits of all processes may add up to `MEMORY`; that bounds how many run at a time.
3. Young processes, which compute for less than `YOUNG` seconds, are at most `AT_A_TIME`; older ones
   have a lower priority. So most uploads are examined one after the other, each quickly, clients
   take turns (queue.py), and neither a flood of uploads nor slow files take the processors from
   the rest of the machine.
4. A process is requested once the head of a file (64 KiB or all of it) has arrived. Complete files
   come first, and preempt the upload that has waited longest for its client. So a stalled upload
   holds a process only while no other needs it.
5. An examination takes a tenth of a second. While others wait, one that takes longer than `TURN`
   goes to the end of the queue and starts again: files made to be slow delay only themselves.
6. A parent that dies is restarted. Its processes die with it, and uploads in progress are examined
   again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import proxy
from proxy.core.tasks import Supervised, Tasks
from proxy.uploads.probe.queue import GROWING, HAD_A_TURN, WHOLE, ProbeQueue
from proxy.uploads.probe.session import ProbeSession
from proxy.uploads.probe.task import ProbeTask

START_TIMEOUT = 20.0
MEMORY = 512 * 1024 * 1024  # bytes beyond the parent's that all processes together may take
TURN = 1.0  # seconds
YOUNG = 0.25  # seconds
AT_A_TIME = 2 * (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
ANSWER_TIMEOUT = 10.0  # seconds that the parent may take for a command
_MESSAGE = 13  # bytes of the parent's

log = logging.getLogger("proxy.uploads")


def memory_within(allowed: int | None) -> int:
    """Bytes for all processes together: a quarter of what the cgroup allows (`allowed`), but enough
    for two, so that one file does not stop all others."""
    return MEMORY if allowed is None else max(2 * ProbeTask.memory, min(MEMORY, allowed // 4))


class ProbePool:
    """Start it once per proxy process; sessions are made for each upload.

    `memory`: bytes that the limits of all processes may add up to. `confined`: whether they run in
    a sandbox.
    """

    def __init__(self, tasks: Tasks | None = None, *, memory: int = MEMORY) -> None:
        self._memory = memory
        self._running: dict[bytes, ProbeSession] = {}
        self._alive: dict[bytes, int] = {}  # memory limits, including processes being killed
        self._queue = ProbeQueue()
        self._young: dict[ProbeSession, asyncio.TimerHandle] = {}
        self._recheck_timer: asyncio.TimerHandle | None = None
        self._control: socket.socket | None = None
        self._supervisor = Supervised("upload-probes", self._serve, tasks or Tasks())
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._next_id = 0
        self._ended = asyncio.Event()  # of the parent
        self._buffer = b""
        self._unanswered = 0  # commands
        self._overdue: asyncio.TimerHandle | None = None
        self.confined = False

    @property
    def ready(self) -> bool:
        """Whether uploads can be examined now."""
        return self._control is not None and not self._stopping

    @property
    def running(self) -> int:
        """Uploads that hold a process now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Uploads that wait for a process."""
        return len(self._queue)

    async def start(self) -> None:
        """Start the parent and wait until it is ready. Raises `RuntimeError` if it is not after
        20 s, or FFmpeg or libmagic cannot be loaded."""
        self._process = await self._spawn()
        self._supervisor.start()

    async def stop(self) -> None:
        """End the parent and every process. Open sessions get no verdict."""
        self._stopping = True
        if self._recheck_timer is not None:
            self._recheck_timer.cancel()
        for session in [*self._running.values(), *self._queue]:
            session.give_up("stopped")
        await self._supervisor.stop()

    def session(
        self, task: ProbeTask, listener: Callable[[], None], client: object = None
    ) -> ProbeSession:
        """A session for one file of `client`. `listener` is called from the event loop after each
        answer. Costs nothing before `grew`."""
        return ProbeSession(self, task, listener, client)

    # --- the parent --------------------------------------------------------------------------

    async def _spawn(self) -> asyncio.subprocess.Process:
        ours, theirs = socket.socketpair()
        root = str(Path(proxy.__file__).parent.parent)
        keep = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "MAGIC", "VIRTUAL_ENV")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        inherited = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else root
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "proxy.uploads.probe.process",
                str(theirs.fileno()),
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
            await _kill(process)
            if isinstance(error, TimeoutError):
                raise RuntimeError(
                    f"the upload probe is not ready after {START_TIMEOUT:g} s: loading FFmpeg or"
                    " libmagic hangs, or this machine is too busy"
                ) from None
            raise
        if ready[:1] != b"R":
            ours.close()
            code = await process.wait()
            raise RuntimeError(f"the upload probe does not start (exit code {code})")
        self.confined = ready[1:] == b"1"
        if not self.confined:
            log.warning("upload probes run without a sandbox: this system has no seccomp filters")
        self._control = ours
        self._buffer = b""
        self._ended.clear()
        loop.add_reader(ours, self._on_message)
        self.admit()
        return process

    async def _serve(self) -> None:
        """Until the parent ends; then `Supervised` calls it again."""
        process, self._process = self._process or await self._spawn(), None
        try:
            await self._ended.wait()
        finally:
            self._close_control()
            await _kill(process)
            self._alive.clear()  # they die with it
            for session in list(self._running.values()):
                session.died(None)
        raise RuntimeError(f"the upload probe ended (exit code {process.returncode})")

    def _close_control(self) -> None:
        self._unanswered = 0
        self._watch_parent()
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    def _watch_parent(self) -> None:
        """Restart a parent that does not answer commands, which would block all uploads."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if self._unanswered:
            loop = asyncio.get_running_loop()
            self._overdue = loop.call_later(ANSWER_TIMEOUT, self._ended.set)

    def _on_message(self) -> None:
        """Read acknowledged commands and exit statuses from the parent."""
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
        self._buffer += data
        while len(self._buffer) >= _MESSAGE:
            message, self._buffer = self._buffer[:_MESSAGE], self._buffer[_MESSAGE:]
            name = message[1:9]
            if message[:1] == b"A":
                self._unanswered -= 1
                self._watch_parent()
                continue
            self._alive.pop(name, None)
            if (session := self._running.get(name)) is not None:
                session.died(int.from_bytes(message[9:], "big"))
        self.admit()

    # --- the sessions' side --------------------------------------------------------------------

    def enqueue(self, session: ProbeSession) -> None:
        """Give `session` a process, now or when its turn comes."""
        self._queue.leave(session)
        kind = GROWING if not session.whole else HAD_A_TURN if session.had_a_turn else WHOLE
        self._queue.enter(session, kind)
        self.admit()

    def leave(self, session: ProbeSession) -> None:
        """Take the process or the place in the queue from `session`. Even a process that has given
        its verdict is killed: it has read hostile bytes."""
        if self._running.get(session.name) is session:
            del self._running[session.name]
            self._command(b"K" + session.name)
            self.rests(session)
        else:
            self._queue.leave(session)

    def computes(self, session: ProbeSession) -> None:
        """The process of `session` has something to do from now on."""
        if session not in self._young:
            later = asyncio.get_running_loop().call_later
            self._young[session] = later(YOUNG, self._ages, session)

    def rests(self, session: ProbeSession) -> None:
        """The process of `session` waits for its client, or ends."""
        if (timer := self._young.pop(session, None)) is not None:
            timer.cancel()

    def _ages(self, session: ProbeSession) -> None:
        del self._young[session]
        self._command(b"N" + session.name)
        self.admit()

    def admit(self) -> None:
        """Start processes for waiting sessions while there is memory."""
        while self.ready and (session := self._next()) is not None:
            self._next_id += 1
            session.name = self._next_id.to_bytes(8, "big")
            try:
                ours, theirs = socket.socketpair()
            except OSError:  # out of descriptors: the session waits until its timeout
                return
            with theirs:
                if not self._command(b"S" + session.name, theirs.fileno()):
                    ours.close()
                    return
            self._queue.serve(session)
            self._running[session.name] = session
            self._alive[session.name] = session.memory
            self.computes(session)
            session.attach(ours)

    def _next(self) -> ProbeSession | None:
        """The session that gets a process now (rules 2 to 5), or None."""
        first = self._queue.first()
        if first is None or len(self._young) >= AT_A_TIME:
            return None
        assert isinstance(first, ProbeSession)
        if not self._alive or sum(self._alive.values()) + first.memory <= self._memory:
            return first
        if first.whole and len(self._alive) == len(self._running):  # none is being killed
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
        elif self._recheck_timer is None:
            self._recheck_timer = asyncio.get_running_loop().call_later(
                max(left, 0.1), self._recheck
            )

    def _recheck(self) -> None:
        self._recheck_timer = None
        self.admit()

    def _command(self, command: bytes, fd: int | None = None) -> bool:
        """Send a command. False if the parent is dead or its socket is full."""
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


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await asyncio.shield(process.wait())
