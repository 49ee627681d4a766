"""One file and the probe process that examines it: what is asked, answered, late or lost.

Rules:
1. The process reads the spool file itself. Here only sizes go out, and only when asked for.
2. A process that waits for its client's bytes may be taken off for an upload that is whole
   (`give_way`). The file is then examined from its beginning once it is whole, too.
3. What ended a process without a verdict decides whose fault that is (`_CRASHES`): signals that
   code raises on itself, or too much CPU time, are what the bytes did. Everything else is trouble
   of ours: killed (by whom and why nobody knows: memory is short, or an operator), no process, no
   reading of the spool, no answer in time though it had CPU time left. That gets one more try, and
   `lost` then says what it was.
4. The first process has little memory, which is enough for nearly all, so that many uploads can be
   examined while they come. One that finds no duration is followed by one that has plenty.
5. A process is hostile as soon as it has read a byte: what it says is bounded and checked.
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

from proxy.uploads.probe.task import FIRST_MEMORY, ProbeTask

if TYPE_CHECKING:
    from proxy.uploads.probe.pool import ProbePool

QUEUE_TIMEOUT = 10.0  # seconds that a whole file waits for a process
PATIENCE = 2.5  # seconds of computing without an answer, for each second of CPU time allowed
RETRY_DELAY = 0.3
_CAUSE_TIMEOUT = 2.0  # between the end of a process and the word of what ended it
MAX_ANSWER = 16 * 1024
_MAX_TEXT = 200
_TRIES = 2
_GROWN = struct.Struct(">Q?")

#: Why there is no verdict, where the bytes are to blame: by the signal that ended the process.
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

    `kind` is the first answer (`label`, `type`), `verdict` the last one. `lost` says why there will
    be no verdict, `to_blame` whether the file is the reason. `whole`: all of it is in the spool;
    `waits_since`: when the process began to wait for its client, None while it computes.
    `had_a_turn`: it was taken off while it computed, or needs more memory than others.
    """

    def __init__(self, pool: ProbePool, job: ProbeTask, listener: Callable[[], None]) -> None:
        self._pool = pool
        self._job = job
        self.listener = listener
        self._loop = asyncio.get_running_loop()
        self._file: int | None = None  # descriptor, of the spool
        self._sock: socket.socket | None = None
        self._received = 0
        self._wanted: int | None = None
        self._known, self._knows_all = 0, False  # what the process was told of the file's size
        self._tries = 0
        self._first = True  # rule 4
        self._heard = b""
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
        self.to_blame = False

    @property
    def memory(self) -> int:
        """Bytes that its process may take, beyond those that it starts with."""
        return min(FIRST_MEMORY, self._job.memory) if self._first else self._job.memory

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
        """So many bytes of the file behind `descriptor` can be read by now; the first call has it
        examined. The descriptor must stay open until `close`. Behind another one the bytes are
        examined anew, once they are whole."""
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
        """Free the process; kill it if it is still at work. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._detach()

    # --- what the pool calls ------------------------------------------------------------------

    def attach(self, sock: socket.socket) -> None:
        """The socket of a process that is being forked."""
        assert self._file is not None
        self._heard, self._wanted, self.waits_since = b"", None, None
        self.attached_at = self._loop.time()
        self._known, self._knows_all = self._received, self.whole
        sock.setblocking(False)
        self._sock = sock
        self._loop.add_reader(sock, self._on_readable)
        job = replace(self._job, memory=self.memory).encode(self._received, whole=self.whole)
        try:
            descriptor = _read_only(self._file)
        except OSError:
            self._ours("descriptors")
            return
        with contextlib.suppress(OSError):  # it is dead already: the socket will say so
            socket.send_fds(sock, [job], [descriptor])
        os.close(descriptor)
        self._set_timer(self._job.cpu * PATIENCE, self._ours, "stalled")

    def give_way(self) -> None:
        """Another upload needs the process more: back to the queue when the file is whole."""
        self.had_a_turn = self.whole
        self._detach()
        if self.whole:
            self._enqueue()

    def died(self, status: int | None) -> None:
        """The process has ended; `status` as `os.waitpid` gives it, None where nobody knows."""
        if self.decided or self._closed:
            return
        if (sock := self._sock) is not None:
            self._on_readable()  # its last words may not have been read yet
            if self.decided or self._sock is not sock:
                return
        if status is None:
            self._ours("parent died")
            return
        blame = _CRASHES.get(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
        if blame is None:
            self._ours(_ending(status))
            return
        log.warning(
            "upload probe ended by the file it read",
            extra={"cause": _ending(status), "probe_reason": blame},
        )
        self.to_blame = True
        self._lose(blame)

    def give_up(self, why: str) -> None:
        """There will be no verdict."""
        if not self.decided and not self._closed:
            log.warning("upload not examined", extra={"cause": why})
            self._lose(why)

    # --- inside -------------------------------------------------------------------------------

    def _enqueue(self) -> None:
        self._cancel_timer()
        if self.whole:
            self._set_timer(QUEUE_TIMEOUT, self.give_up, "busy")
        self._pool.enqueue(self)

    def _ours(self, why: str) -> None:
        """Trouble of ours (rule 3): once more from the spool when the file is whole, or the end."""
        self._detach()
        self._tries += self.whole
        again = self._tries < _TRIES
        log.warning("upload probe lost", extra={"cause": why, "again": again})
        if not again:
            self._lose(why)
        elif self.whole:
            self._set_timer(RETRY_DELAY, self._enqueue)

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
            # What ended it is the parent's to say; where that is gone as well, nobody will.
            self._loop.remove_reader(self._sock)
            self._set_timer(_CAUSE_TIMEOUT, self._ours, "ended")
            return
        kind = self.kind
        *lines, self._heard = (self._heard + data).split(b"\n")
        if len(self._heard) > MAX_ANSWER or not all(map(self._take, lines)):
            self.to_blame = True
            self._lose("crashed")
        elif self.decided:
            if self.verdict is not None:
                self.close()
            self.listener()
        elif self.kind is not kind:
            self.listener()

    def _take(self, line: bytes) -> bool:
        """One answer; False where it is none that an honest process gives."""
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return False
        match answer:
            case _ if self._sock is None or self.verdict is not None:
                return True  # behind its last word, or ours
            case {"want": int(size)} if self._wanted is None and not self._knows_all:
                self._wanted = max(size, self._known + 1)
                self._answer_want()
            case {"want": _}:
                return False
            case {"trouble": str(what)}:
                self._ours(what[:_MAX_TEXT])
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
                self._pool.admit()  # perhaps somebody else needs the process more
            return
        self._wanted = self.waits_since = None
        self._known, self._knows_all = self._received, self.whole
        self._set_timer(self._job.cpu * PATIENCE, self._ours, "stalled")
        with contextlib.suppress(OSError):  # nine bytes have room, unless it is dead
            self._sock.send(_GROWN.pack(self._received, self.whole))

    def _set_timer(self, delay: float, then: Callable[..., None], *arguments: str) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(delay, then, *arguments)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _bounded(value: object) -> object:
    """Text that people will read, short and printable; anything else as it is."""
    if not isinstance(value, str):
        return value
    return "".join(char for char in value[:_MAX_TEXT] if char.isprintable())


def _read_only(descriptor: int) -> int:
    """A descriptor of our own of that file, for reading only where the system lets us."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except (
        FileNotFoundError,
        PermissionError,
    ):  # no /proc: the sandbox keeps it from being written all the same
        return os.dup(descriptor)


def _ending(status: int) -> str:
    """For the log: `killed by SIGKILL`, `exit code 1`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
        return f"killed by signal {number}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
