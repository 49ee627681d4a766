"""One file on its way to one probe process: what is sent, what is answered, what is late.

Rules:
1. Nothing here blocks: the socket is written as far as it takes, the rest is kept (the caller stops
   reading its client above `HIGH_WATER`) and written when the socket is ready.
2. A process that takes nothing or has no type for `STALL_TIMEOUT`, or gives no verdict within
   `VERDICT_TIMEOUT` of the end, is killed, and so is one whose upload was given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from proxy.upload.transfer import Sender

HIGH_WATER = 256 * 1024  # bytes waiting for one process
QUEUE_TIMEOUT = 10.0
STALL_TIMEOUT = 5.0
VERDICT_TIMEOUT = 5.0
MAX_ANSWER = 16 * 1024
_SEND_BUFFER = 1024 * 1024
_PIECES = 64  # of the backlog, for one system call

Answer = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a probe process is told. `memory`: bytes beyond what it starts with; `cpu`: seconds.

    192 MiB: FFmpeg's index of a three-hour MP4 takes 30. 30 s: a hundred times what 50 MB need.
    """

    types: tuple[str, ...]
    max_size: int
    max_duration: float | None
    memory: int = 192 * 1024 * 1024
    cpu: int = 30

    def encode(self) -> bytes:
        """As the process reads it: 4-byte length, JSON."""
        body = json.dumps(self.__dict__).encode()
        return len(body).to_bytes(4, "big") + body


class Owner(Protocol):
    """What a session needs of the pool."""

    def enqueue(self, session: ProbeSession) -> None:
        """Give `session` a process now or when its turn comes."""
        ...

    def leave(self, session: ProbeSession, *, kill: bool) -> None:
        """`session` is done; its process is ended unless it has given its verdict."""
        ...


class ProbeSession:
    """One file on its way to one process. All methods are synchronous and cheap.

    `kind` is the first answer (`label`, `type`), `verdict` the last one. `lost` says why there will
    be no verdict: `crashed`, `stalled`, `busy`, `stopped`.
    """

    def __init__(self, pool: Owner, job: Job, listener: Callable[[], None]) -> None:
        self._pool = pool
        self._job = job
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._sender = Sender()
        self._backlog: deque[memoryview | bytes] = deque()
        self._backlog_size = 0
        self._ended = False
        self._deaf = False  # the process reads no more; its answer may still be on the way
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._received = b""
        self.name = b""
        self.kind: Answer | None = None
        self.verdict: Answer | None = None
        self.lost: str | None = None
        self._opened = self._closed = False

    @property
    def opened(self) -> bool:
        """Whether a process was asked for."""
        return self._opened

    @property
    def full(self) -> bool:
        """Whether the caller should stop feeding."""
        return self._backlog_size > HIGH_WATER

    @property
    def decided(self) -> bool:
        """Whether there is a verdict, or never will be."""
        return self.verdict is not None or self.lost is not None

    def open(self) -> None:
        """Ask for a process; what is sent meanwhile is kept."""
        self._opened = True
        self._set_timer(QUEUE_TIMEOUT, "busy")
        self._pool.enqueue(self)

    def attach(self, sock: socket.socket) -> None:
        """The pool's answer to `open`: the socket of a process that is being forked."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._sock = sock
        self._loop.add_reader(sock, self._on_readable)
        self._backlog.appendleft(self._job.encode())
        self._cancel_timer()
        self._flush()

    def send(self, data: bytes) -> None:
        """The next bytes of the file."""
        if self._closed or self._deaf or self.decided or not data:
            return
        out = self._sender.send(data)
        if out:
            self._queue(out)

    def _queue(self, out: list[bytes | memoryview]) -> None:
        self._backlog += out
        self._backlog_size += sum(map(len, out))
        if self._sock is not None and not self._writing:
            self._flush()

    def end(self) -> None:
        """The file is complete."""
        if self._ended:
            return
        self._ended = True
        self._queue([] if self._deaf else self._sender.go_on())

    def close(self) -> None:
        """Free the process; kill it if it is still at work. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._cancel_timer()
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None
        self._backlog.clear()
        self._backlog_size = 0
        self._pool.leave(self, kill=self.verdict is None)

    def lose(self, why: str) -> None:
        """There will be no verdict."""
        if not self.decided:
            self.lost = why
            self.close()
            self._listener()

    def _flush(self) -> None:
        sock = self._sock
        assert sock is not None
        progress = False
        try:
            while self._backlog:
                sent = sock.sendmsg(islice(self._backlog, _PIECES))
                progress = True
                self._take_off(sent)
        except BlockingIOError:
            pass
        except OSError:
            self._deaf = True
            self._backlog.clear()
        was_full = self.full
        self._backlog_size = sum(map(len, self._backlog))
        if self._backlog:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(sock, self._flush)
            if progress or self._timer is None:
                self._set_timer(STALL_TIMEOUT, "stalled")
        else:
            if self._writing:
                self._writing = False
                self._loop.remove_writer(sock)
            if self._ended:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                self._set_timer(VERDICT_TIMEOUT, "stalled")
            elif self.kind is not None:
                self._cancel_timer()
            elif self._timer is None:  # it has the head: the type is due
                self._set_timer(STALL_TIMEOUT, "stalled")
        if was_full and not self.full:
            self._listener()

    def _take_off(self, sent: int) -> None:
        backlog = self._backlog
        while sent:
            piece = backlog.popleft()
            if sent < len(piece):
                backlog.appendleft(memoryview(piece)[sent:])
                break
            sent -= len(piece)

    def _on_readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(MAX_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        kind = self.kind
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        try:
            answers = [json.loads(line) for line in lines]
        except ValueError:
            answers = [None]
        for answer in answers:
            if not _is_answer(answer) or len(self._received) > MAX_ANSWER:
                self.lose("crashed")
                return
            if "leave_out" in answer:
                self._sender.leave_out(*answer["leave_out"])
            elif "type" in answer and self.kind is None:
                self.kind = answer
                if not self._backlog and not self._ended:
                    self._cancel_timer()
            else:
                self.verdict = answer
                self.close()
                break
        if self.kind is not kind or self.decided:
            self._listener()
        elif not data:
            self.lose("crashed")

    def _set_timer(self, delay: float, why: str) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(delay, self.lose, why)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_answer(answer: object) -> bool:
    match answer:
        case {"leave_out": [int(), int()]}:
            return True
        case {"leave_out": _}:
            return False
    return isinstance(answer, dict)
