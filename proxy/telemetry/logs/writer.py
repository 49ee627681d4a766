"""The one thread that writes log lines, so that nobody else ever waits for a disk or a pipe.

1. `put` only appends to a bounded buffer; the first line of a batch wakes the thread, which lets
   more lines gather for a moment and then writes them with one system call. An idle proxy does not
   wake up at all. Lines are joined a few at a time, so that their memory is used again while it is
   in the processor's cache: a tenth of the proxy's own time on small requests.
2. The buffer is bounded in bytes. Over the bound lines are dropped and counted, never waited for.
3. Lines come whole and in order. Where a write ended inside a line and the rest was lost, the next
   batch starts on a new line; where the file was replaced then, the new one gets the whole line.
4. A full or broken output never raises. What can recover (a full disk, a slow reader) is tried
   again while the buffer lasts; what cannot (a pipe without reader) costs its lines.
5. `close` writes what is left, within a limit of time. The thread is a daemon: a reader that never
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
LINGER = 0.05  # seconds that lines gather
_JOIN = 32  # lines that are joined at once
_FULL_BATCH = 128  # such pieces, which are written without waiting for more
_RETRY = 0.5  # seconds between two tries on an output that fails
_MIN_GAP_REPORT = 10.0  # seconds between two reports of dropped lines


def _ignore(lost: int) -> None:
    """The gap reporter where there is none."""


class LogWriter:
    """Takes encoded lines from any thread. `on_gap(lost)` is called from the writer thread when
    lines were dropped and writing works again."""

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
        self._pieces: list[bytes] = []  # what waits to be written: joined lines,
        self._lines: list[bytes] = []  # and behind them the last few
        self._idle = True  # nothing has been put since the thread looked
        self._accepted = 0  # bytes ever taken
        self._finished = 0  # bytes of these that were written or given up
        self._work = threading.Event()  # there is something to do
        self._hurry = threading.Event()  # do not let lines gather
        self._give_up = threading.Event()  # stop trying again
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
        """Count a line that could not even be made."""
        with self._lock:
            self.dropped += 1

    def reopen(self) -> None:
        """Open the file anew before the next line is written."""
        self._reopen = True
        self._hurry.set()
        self._work.set()

    def redirect(self, output: Output) -> None:
        """Write to `output` from the next line on; what is queued goes there, too."""
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
        self._thread.join(0.0 if in_time else _RETRY + 0.1)  # it may only be trying again
        with self._lock:
            self._closed = True
        if not self._thread.is_alive():  # else it is stuck in the kernel, with the descriptor
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
        """The number of bytes that got out."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                done += write(self._output.fd, view[done:])
            except BlockingIOError:
                # Descriptors of a terminal or pipe are often shared with a process that made them
                # non-blocking; that is no error.
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
