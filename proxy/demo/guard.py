"""A small process that cleans up after the demo when the demo itself was killed.

1. The demo holds the only writing end of our standard input; when it dies, however it dies, we read
   the end of file. No signal and no polling can be missed, and it works on every Unix.
2. Until then we are told about processes: `+PID` when one starts, `-PID` when it was waited for.
3. At the end of file every process still known is killed and the folder named in argv removed. In
   an orderly end nothing is left to do.
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
    """The demo's end: tells the guard process what to clean up. `folder` may be gone already."""

    def __init__(self, folder: Path) -> None:
        # A session of its own: Ctrl-C in the terminal must not reach it.
        self._process = subprocess.Popen(  # noqa: S603 (our own argument list, no shell)
            [sys.executable, "-m", __name__, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Kill this process if the demo dies."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """This process was waited for; its number may belong to another one now."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """Orderly end: blocks until the guard has gone, some milliseconds."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return  # after `close` there is nobody to tell
        # A guard that was killed cannot be told; the demo goes on without its safety net.
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
