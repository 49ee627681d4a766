"""One file and the probe process that examines it: requests, answers, timeouts and failures.

Rules:
1. The process reads the spool file itself. The session only sends it sizes, on request.
2. A process that waits for its client's bytes may be preempted by an upload that is complete
   (`give_way`). Its own file is then examined from the beginning once that is complete, too.
3. How a process ended without a verdict decides whose fault it was (`_CRASHES`). Signals that code
   raises on itself, and running out of CPU time, are blamed on the file. Everything else is a
   failure of ours: a kill from outside (memory pressure or an operator), no process, an unreadable
   spool, no answer although CPU time was left. Then there is one retry, after which `lost` has the
   reason.
4. The first process has little memory, which suffices for nearly all files, so that many uploads
   can be examined while they arrive. If it finds no duration, a second one gets the full amount.
5. A process is considered hostile once it has read a byte: its answers are bounded and checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from proxy.uploads.probe.queue import Place
from proxy.uploads.probe.task import FIRST_MEMORY, ProbeTask

if TYPE_CHECKING:
    from proxy.uploads.probe.pool import ProbePool

QUEUE_TIMEOUT = 10.0  # seconds that a complete file waits for a process
PATIENCE = 2.5  # seconds of computing without an answer, for each second of CPU time allowed
RETRY_DELAY = 0.3
_CAUSE_TIMEOUT = 2.0  # seconds from the end of a process to its exit status
MAX_ANSWER = 16 * 1024
_MAX_TEXT = 200
_TRIES = 2
_GROWN = struct.Struct(">Q?")

#: Why there is no verdict if the file is to blame, by the signal that ended the process.
_CRASHES: Final[dict[int, str]] = {
    signal.SIGSEGV: "crashed",
    signal.SIGBUS: "crashed",
    signal.SIGFPE: "crashed",
    signal.SIGILL: "crashed",
    signal.SIGABRT: "crashed",
    signal.SIGTRAP: "crashed",
    signal.SIGSYS: "crashed",  # a call that no probe makes
    signal.SIGXCPU: "slow",
}

Answer = dict[str, Any]

log = logging.getLogger("proxy.uploads")


class ProbeSession:
    """One file. All methods are synchronous and cheap.

    `kind` is the first answer (`label`, `type`), `verdict` the last one, or ours on a file that
    ended its process. `lost`: why there will be none, for a reason of ours. `whole`: all of the
    file is in the spool. `waits_since`: when the process began to wait for its client, None while
    it computes. `had_a_turn`: it was preempted while it computed, or needs more memory than others.
    """

    def __init__(
        self,
        pool: ProbePool,
        task: ProbeTask,
        listener: Callable[[], None],
        client: object = None,
    ) -> None:
        self.client = client
        self.place: Place | None = None  # in the pool's queue
        self._pool = pool
        self._task = task
        self.listener = listener
        self._loop = asyncio.get_running_loop()
        self._file: int | None = None  # descriptor, of the spool
        self._sock: socket.socket | None = None
        self._received = 0
        self._wanted: int | None = None
        self._known, self._knows_all = 0, False  # the file size that the process knows
        self._tries = 0
        self._first = True  # rule 4
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.name = b""
        self.whole = False
        self.waits_since: float | None = None
        self.attached_at = 0.0
        self.had_a_turn = False
        self.kind: Answer | None = None
        self.verdict: Answer | None = None
        self.lost: str | None = None

    @property
    def memory(self) -> int:
        """Bytes that its process may take, beyond those that it starts with."""
        return min(FIRST_MEMORY, self._task.memory) if self._first else self._task.memory

    # --- what the upload's side calls ---------------------------------------------------------

    @property
    def opened(self) -> bool:
        """Whether a process was asked for."""
        return self._file is not None

    @property
    def decided(self) -> bool:
        """Whether there is a verdict, or never will be."""
        return self.verdict is not None or self.lost is not None

    def grew(self, descriptor: int, received: int, *, whole: bool) -> None:
        """`received` bytes of `descriptor` can now be read; the first call starts the examination.
        The descriptor must stay open until `close`. With another descriptor the examination starts
        again once the file is complete."""
        if self._closed:
            return
        first = self._file is None
        if descriptor != self._file:
            self._detach()
            self._file, self.whole = descriptor, False
        became_whole = whole and not self.whole
        self._received, self.whole = received, whole
        if self._sock is not None:
            self._answer_want()
        elif first or (became_whole and self._timer is None):
            self._enqueue()

    def close(self) -> None:
        """Release the process, killing it if it still runs. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._detach()

    # --- what the pool calls ------------------------------------------------------------------

    def attach(self, sock: socket.socket) -> None:
        """Send the task to a process that is being forked, over its socket."""
        assert self._file is not None
        self._buffer, self._wanted, self.waits_since = b"", None, None
        self.attached_at = self._loop.time()
        self._known, self._knows_all = self._received, self.whole
        sock.setblocking(False)
        self._sock = sock
        self._loop.add_reader(sock, self._on_readable)
        message = replace(self._task, memory=self.memory).encode(self._received, whole=self.whole)
        try:
            descriptor = _read_only(self._file)
        except OSError:
            self._retry_or_lose("descriptors")
            return
        with contextlib.suppress(OSError):  # dead already: the socket will report end of file
            socket.send_fds(sock, [message], [descriptor])
        os.close(descriptor)
        self._set_timer(self._task.cpu * PATIENCE, self._retry_or_lose, "stalled")

    def give_way(self) -> None:
        """Give the process up to another upload; back to the queue if the file is complete."""
        self.had_a_turn = self.whole
        self._detach()
        if self.whole:
            self._enqueue()

    def died(self, status: int | None) -> None:
        """The process has ended with `status`, as from `os.waitpid`; None if that is unknown."""
        if self.decided or self._closed:
            return
        if (sock := self._sock) is not None:
            self._on_readable()  # its last answer may not have been read yet
            if self.decided or self._sock is not sock:
                return
        if status is None:
            self._retry_or_lose("parent died")
            return
        blame = _CRASHES.get(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
        if blame is None:
            self._retry_or_lose(_ending(status))
            return
        log.warning(
            "upload probe ended by the file it read",
            extra={"cause": _ending(status), "probe_reason": blame},
        )
        self._blame(blame)

    def give_up(self, why: str) -> None:
        """End without a verdict, for a reason of ours."""
        if not self.decided and not self._closed:
            log.warning("upload not examined", extra={"cause": why})
            self._lose(why)

    # --- inside -------------------------------------------------------------------------------

    def _enqueue(self) -> None:
        self._cancel_timer()
        if self.whole:
            self._set_timer(QUEUE_TIMEOUT, self.give_up, "busy")
        self._pool.enqueue(self)

    def _retry_or_lose(self, why: str) -> None:
        """A failure of ours (rule 3): retry from the spool if the file is complete, or end."""
        self._detach()
        self._tries += self.whole
        again = self._tries < _TRIES
        log.warning("upload probe lost", extra={"cause": why, "again": again})
        if not again:
            self._lose(why)
        elif self.whole:
            self._set_timer(RETRY_DELAY, self._enqueue)

    def _blame(self, why: str) -> None:
        """End with a verdict on the file, which its process did not give."""
        self.verdict = {"refused": "unknown", "why": why}
        self.close()
        self.listener()

    def _lose(self, why: str) -> None:
        self.lost = why
        self.close()
        self.listener()

    def _detach(self) -> None:
        self._cancel_timer()
        self.waits_since = None
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        self._pool.leave(self)

    def _on_readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(MAX_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The parent reports the exit status; if that is gone as well, nobody does.
            self._loop.remove_reader(self._sock)
            self._set_timer(_CAUSE_TIMEOUT, self._retry_or_lose, "ended")
            return
        kind = self.kind
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_ANSWER or not all(map(self._take, lines)):
            self._blame("crashed")
        elif self.decided:
            if self.verdict is not None:
                self.close()
            self.listener()
        elif self.kind is not kind:
            self.listener()

    def _take(self, line: bytes) -> bool:
        """Take one answer. Returns False for one that an honest process never gives."""
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return False
        match answer:
            case _ if self._sock is None or self.verdict is not None:
                return True  # after the verdict, or after we let go of it
            case {"want": int(size)} if self._wanted is None and not self._knows_all:
                self._wanted = max(size, self._known + 1)
                self._answer_want()
            case {"want": _}:
                return False
            case {"trouble": str(what)}:
                self._retry_or_lose(what[:_MAX_TEXT])
            case {"label": str(label), "type": str(media_type)}:
                self.kind = {"label": _bounded(label), "type": _bounded(media_type)}
            case {"duration": int() | float() as seconds} if not math.isfinite(seconds):
                return False
            case {"refused": "unknown"} if self._first:  # rule 4
                self._first, self.had_a_turn = False, True
                self._detach()
                if self.whole:
                    self._enqueue()
            case {"duration": _} | {"refused": _}:
                self.verdict = {name: _bounded(value) for name, value in answer.items()}
            case _:
                return False
        return True

    def _answer_want(self) -> None:
        if self._wanted is None or self._sock is None:
            return
        if self._received < self._wanted and not self.whole:
            if self.waits_since is None:
                self.waits_since = self._loop.time()
                self._cancel_timer()
                self._pool.rests(self)
                self._pool.admit()  # another upload may preempt it
            return
        self._wanted = self.waits_since = None
        self._pool.computes(self)
        self._known, self._knows_all = self._received, self.whole
        self._set_timer(self._task.cpu * PATIENCE, self._retry_or_lose, "stalled")
        with contextlib.suppress(OSError):  # nine bytes always fit, unless it is dead
            self._sock.send(_GROWN.pack(self._received, self.whole))

    def _set_timer(self, delay: float, then: Callable[..., None], *arguments: str) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(delay, then, *arguments)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _bounded(value: object) -> object:
    """Text cut short and made printable, for logs; anything else unchanged."""
    if not isinstance(value, str):
        return value
    return "".join(char for char in value[:_MAX_TEXT] if char.isprintable())


def _read_only(descriptor: int) -> int:
    """A new descriptor of that file, read-only if the system has `/proc`."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # the sandbox forbids writing to it anyway
        return os.dup(descriptor)


def _ending(status: int) -> str:
    """For the log: `killed by SIGKILL`, `exit code 1`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
        return f"killed by signal {number}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
