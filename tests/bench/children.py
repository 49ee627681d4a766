"""Child processes of the benchmark: pinned to cores, watched, and never left behind.

1. Every child leads its own session, so that a Ctrl-C on the terminal reaches only the benchmark,
   which then stops its children in order; the whole process group is signalled (nginx's worker
   belongs to its master's group).
2. Should the benchmark itself be killed outright, the kernel sends each child SIGTERM
   (PR_SET_PDEATHSIG). Not SIGKILL: nginx's master must live long enough to end its worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: dlopen is not fork-safe


class ChildError(Exception):
    """A child did not start, failed, or took too long; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core carries what. With two cores the upstream shares the load generator's."""

    proxy: int
    load: int
    upstream: int

    @classmethod
    def of_machine(cls) -> Cores:
        """The highest cores first for the proxy: interrupts tend to land on core 0."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) == 1:
            return cls(cores[0], cores[0], cores[0])
        return cls(
            proxy=cores[-1], load=cores[0], upstream=cores[1] if len(cores) > 2 else cores[0]
        )


@dataclass(frozen=True, slots=True)
class Child:
    """A running process, with the file that its standard output and error go to."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    def last_words(self, lines: int = 4) -> str:
        """The end of what the child printed, on one line."""
        text = self.output.read_text(errors="replace").strip().splitlines()
        return " | ".join(text[-lines:]) or "(it printed nothing)"

    def tree(self) -> list[int]:
        """Process ids of the child and all its descendants, the child first."""
        found = [self.process.pid]
        for pid in found:  # grows while we walk it
            for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found.extend(int(p) for p in tasks.read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """User and system time used so far by the child and its descendants."""
        ticks = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                # The command name may hold spaces and brackets: count from the last bracket.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    def rss(self) -> int:
        """Resident bytes now, summed over the tree (shared pages count in each process)."""
        pages = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * PAGE

    def rss_peak(self) -> int:
        """Highest resident bytes (VmHWM) since the start, summed over the tree."""
        peak = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peak += int(line.split()[1]) * 1024
        return peak

    def stop(self, grace: float = 3.0) -> None:
        """Ask the group to end, then kill what remains. Safe to call twice."""
        for sig, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sig)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                self.process.poll()  # reaps the leader, without which its group never empties
                if not _group_alive(self.process.pid):
                    return
                time.sleep(0.01)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def start(
    name: str,
    argv: Sequence[str],
    *,
    core: int,
    workdir: Path,
    stdout: Path | None = None,
) -> Child:
    """Start `argv` on one core, its output in `workdir/NAME.out`, or only its standard error there
    and its standard output in `stdout`. Raises ChildError."""
    output = workdir / f"{name}.out"
    parent = os.getpid()

    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the benchmark died before the line above
            os._exit(1)

    # Appending, as a log would be opened: HAProxy's access lines go to its standard output.
    with output.open("ab") as errors, (stdout or output).open("ab") as sink:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=errors,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except OSError as error:
            raise ChildError(f"{name}: {error}") from error
    return Child(name, process, output)


@contextlib.contextmanager
def running(child: Child, *ports: int, patience: float = 15.0) -> Iterator[Child]:
    """Wait until the child accepts connections on `ports`; stop it at the end, come what may."""
    try:
        deadline = time.monotonic() + patience
        for port in ports:
            while not _accepts(port):
                if child.process.poll() is not None:
                    raise ChildError(
                        f"{child.name} ended with code {child.process.returncode}: "
                        f"{child.last_words()}"
                    )
                if time.monotonic() > deadline:
                    raise ChildError(
                        f"{child.name} did not listen within {patience:g} s: {child.last_words()}"
                    )
                time.sleep(0.02)
        yield child
    finally:
        child.stop()


def run(name: str, argv: Sequence[str], *, core: int, workdir: Path, timeout: float) -> str:
    """Run `argv` to its end on one core and return what it printed. Raises ChildError when it
    fails or takes longer than `timeout` seconds."""
    (workdir / f"{name}.out").unlink(missing_ok=True)
    child = start(name, argv, core=core, workdir=workdir)
    try:
        code = child.process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise ChildError(f"{name} took longer than {timeout:g} s") from None
    finally:
        child.stop(grace=0.5)
    if code:
        raise ChildError(f"{name} ended with code {code}: {child.last_words()}")
    return child.output.read_text(errors="replace")


def run_json(
    name: str, argv: Sequence[str], *, core: int, workdir: Path, timeout: float
) -> dict[str, Any]:
    """Like `run`, for our load generators: their last line is one JSON object."""
    text = run(name, argv, core=core, workdir=workdir, timeout=timeout)
    try:
        answer = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise ChildError(f"{name} printed no result: {text[-200:]!r}") from None
    assert isinstance(answer, dict)
    return answer


def core_seconds(core: int) -> float:
    """Time that all programs together, and the hypervisor, have used of one core since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            # user, nice, system and steal. Soft interrupts are left out: the kernel's share of
            # loopback traffic, which belongs to no program.
            return sum(int(ticks[at]) for at in (0, 1, 2, 7)) / TICKS
    raise ChildError(f"/proc/stat knows no core {core}")


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def module(name: str, *arguments: str) -> list[str]:
    """The argv that runs one of our modules with this Python."""
    return [sys.executable, "-m", name, *arguments]
