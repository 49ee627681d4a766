"""A small process that cleans up if the demo itself is killed.

1. The demo holds the only writing end of our standard input, so we read end of file however it
   dies. That needs no signals and no polling, and works on every Unix.
2. Until then the demo reports processes: `+PID` when one starts, `-PID` when it has been reaped.
3. At end of file we kill every process still known and remove the folder given in argv. After an
   orderly shutdown nothing is left to do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


class Guard:
    """The demo's side: reports what to clean up. `folder` may already be gone."""

    def __init__(self, folder: Path) -> None:
        # A session of its own: Ctrl-C in the terminal must not reach it.
        self._process = subprocess.Popen(  # noqa: S603 (our own argument list, no shell)
            [sys.executable, "-m", __name__, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Kill this process if the demo dies."""
        self._send(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """This process has been reaped; its PID may be reused."""
        self._send(f"-{pid}\n")

    def close(self) -> None:
        """Orderly shutdown: blocks some milliseconds until the guard has exited."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return  # after `close`
        # The guard may have been killed; the demo continues without it.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def main() -> None:
    """The guard process itself."""
    folder = Path(sys.argv[1])
    watched: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        (watched.add if line[0] == "+" else watched.discard)(pid)
    for pid in watched:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
