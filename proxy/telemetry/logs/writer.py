"""The thread that writes log lines, so that no other thread waits for a disk or a pipe.

1. `put` only appends to a bounded buffer. The first line of a batch wakes the thread, which waits a
   moment for more lines and then writes them with one system call. In an idle proxy it sleeps.
   Lines are joined a few at a time, so that their memory is reused while it is in the processor's
   cache; that saves a tenth of the proxy's own time on small requests.
2. The buffer is bounded in bytes. Lines beyond the bound are dropped and counted; `put` never
   waits.
3. Lines are complete and in order. If a write ended inside a line and the rest was lost, the next
   batch starts on a new line; if the file was replaced then, the new one gets the complete line.
4. A full or broken output never raises. If it can recover (a full disk, a slow reader), writing is
   retried while the buffer lasts; if not (a broken pipe), the lines are lost.
5. `close` writes what is left within a time limit. The thread is a daemon, so a reader that never
   reads cannot keep the process alive.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from os import write
from time import monotonic

from proxy.telemetry.logs.outputs import Output

CAPACITY = 16 * 1024 * 1024  # bytes: half a minute of a busy core's access lines
LINGER = 0.05  # seconds to wait for more lines
_JOIN = 32  # lines that are joined at a time
_FULL_BATCH = 128  # such pieces, which are written without waiting
_RETRY = 0.5  # seconds between two attempts on a failing output
_MIN_GAP_REPORT = 10.0  # seconds between two reports of dropped lines


def _ignore(lost: int) -> None:
    """The default of `on_gap`."""


class LogWriter:
    """Accepts encoded lines from any thread. The writer thread calls `on_gap(lost)` when writing
    works again after lines were dropped."""

    def __init__(
        self,
        output: Output,
        *,
        capacity: int = CAPACITY,
        linger: float = LINGER,
        on_gap: Callable[[int], None] = _ignore,
    ) -> None:
        self._output = output
        self._capacity = capacity
        self._linger = linger
        self._on_gap = on_gap
        self._lock = threading.Lock()
        self._written = threading.Condition(self._lock)
        self._pieces: list[bytes] = []  # waiting to be written: joined lines,
        self._lines: list[bytes] = []  # and after them the last few
        self._idle = True  # nothing has been put since the thread looked
        self._accepted = 0  # bytes accepted so far
        self._finished = 0  # bytes written or given up so far
        self._work = threading.Event()  # there is something to do
        self._hurry = threading.Event()  # write without waiting for more lines
        self._give_up = threading.Event()  # stop retrying
        self._reopen = False
        self._next_output: Output | None = None
        self._closing = False
        self._closed = False
        self._torn = False
        self._reported = 0
        self._next_report = 0.0
        self.dropped = 0  #: lines lost since the start
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    # --- any thread -----------------------------------------------------------------------------

    def put(self, line: bytes) -> None:
        """Queue one line, its line feed included. Never blocks and never raises."""
        size = len(line)
        with self._lock:
            accepted = self._accepted + size
            if accepted - self._finished > self._capacity or self._closed:
                self.dropped += 1
                return
            self._accepted = accepted
            lines = self._lines
            lines.append(line)
            if len(lines) == _JOIN:
                self._pieces.append(b"".join(lines))
                lines.clear()
                if len(self._pieces) == _FULL_BATCH:
                    self._hurry.set()
            first, self._idle = self._idle, False
        if first:
            self._work.set()

    def count_drop(self) -> None:
        """Count a line that could not be formatted."""
        with self._lock:
            self.dropped += 1

    def reopen(self) -> None:
        """Reopen the file before the next line is written."""
        self._reopen = True
        self._hurry.set()
        self._work.set()

    def redirect(self, output: Output) -> None:
        """Write to `output` from now on, queued lines included."""
        with self._lock:
            unused, self._next_output = self._next_output, output
        if unused is not None:
            unused.close()
        self.reopen()

    def flush(self, timeout: float) -> bool:
        """Wait until everything queued so far is written; False after `timeout` seconds."""
        self._hurry.set()
        self._work.set()
        with self._written:
            goal = self._accepted
            return self._written.wait_for(lambda: self._finished >= goal, timeout)

    def close(self, timeout: float) -> bool:
        """Write what is left and end; False if that took more than `timeout` seconds.

        Lines put afterwards are dropped and counted.
        """
        self._closing = True
        self._hurry.set()
        self._work.set()
        self._thread.join(timeout)
        in_time = not self._thread.is_alive()
        self._give_up.set()
        self._thread.join(0.0 if in_time else _RETRY + 0.1)  # it may only be retrying
        with self._lock:
            self._closed = True
        if (
            not self._thread.is_alive()
        ):  # otherwise it is stuck in the kernel and uses the descriptor
            self._output.close()
        return in_time

    # --- the writer thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._work.wait()
            if not self._closing:
                self._hurry.wait(self._linger)
            with self._lock:
                self._work.clear()
                self._hurry.clear()
                self._idle = True
                lines = self._pieces + self._lines
                self._pieces, self._lines = [], []
                reopen, self._reopen = self._reopen, False
                redirected, self._next_output = self._next_output, None
                if self._closing and not lines:
                    self._closed = True
                    return
            if redirected is not None:
                self._output.close()
                self._output = redirected
                self._torn = False
            elif self._output.refresh(force=reopen):
                self._torn = False
            if lines:
                self._write(lines)
            if self._closing:
                self._work.set()

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        size = len(data)
        if self._torn:
            data = b"\n" + data
        done = self._write_all(data)
        lost = data.count(b"\n", done)
        if done:
            self._torn = data[done - 1] != 10  # 10: line feed
        with self._written:
            self._finished += size
            self.dropped += lost
            self._written.notify_all()
        if not lost:
            self._report_gap()

    def _write_all(self, data: bytes) -> int:
        """Write; returns the number of bytes written."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                done += write(self._output.fd, view[done:])
            except BlockingIOError:
                # A terminal or pipe is often shared with a process that made it non-blocking; that
                # is not an error.
                poll = select.poll()
                poll.register(self._output.fd, select.POLLOUT)
                poll.poll(_RETRY * 1000)
                if self._give_up.is_set():
                    break
            except OSError as error:
                if not self._output.outlasts(error) or self._give_up.wait(_RETRY):
                    break
                if self._output.refresh(force=self._reopen):
                    done = data.rfind(b"\n", 0, done) + 1
                    self._torn = False
        return done

    def _report_gap(self) -> None:
        lost = self.dropped - self._reported
        now = monotonic()
        if lost and now >= self._next_report:
            self._reported += lost
            self._next_report = now + _MIN_GAP_REPORT
            self._on_gap(lost)
