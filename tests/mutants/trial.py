"""Run tests on a changed copy of the tree. The tree itself is never touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

from tests.mutants.coverage import Coverage
from tests.mutants.operators import Mutant
from tests.mutants.recorder import RECORD

# What one run may take of the machine: a mutant may allocate or write without end.
MEMORY_KIB = 4 * 1024 * 1024
FILE_BLOCKS = 1024 * 1024


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"  # a test failed
    TIMED_OUT = "timed out"  # a test hung, which a developer would notice, too
    SURVIVED = "survived"
    NOT_REACHED = "not reached"  # no test runs the line


class Copy:
    """A copy of the tree, in which one file at a time is changed."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._folder = folder
        self._runs = 0
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=tree,
            capture_output=True,
            check=True,
        )
        for name in os.fsdecode(listed.stdout).rstrip("\0").split("\0"):
            if (tree / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(tree / name, folder / name)

    def measure(self, tests: list[str], workers: int) -> Coverage:
        """Run the tests on the unchanged program and see what each of them reaches."""
        record, report = self._folder / "record.json", self._folder / "report.json"
        options = ["-n", str(workers), "--dist", "loadfile"]
        options += ["--cov=proxy", "--cov-context=test", "--cov-report="]
        code = self._pytest([*options, "-p", "tests.mutants.recorder", *tests], None, record=record)
        if code:
            failed = json.loads(record.read_text(encoding="utf-8"))["failed"]
            return Coverage(failed=failed or [f"pytest itself, with status {code}"])
        self._run([sys.executable, "-m", "coverage", "json", "--show-contexts", "-o", report], None)
        return Coverage.read(record, report)

    def try_out(self, path: str, mutant: Mutant, tests: list[str], timeout: float) -> Verdict:
        """Whether one of the tests fails within `timeout` seconds when `path` is changed."""
        file = self._folder / path
        source = file.read_bytes()
        chosen = self._folder / "chosen-tests.txt"
        chosen.write_text("\n".join(tests), encoding="utf-8")
        try:
            self._write(file, mutant.apply(source))
            code = self._pytest(["-x", "-p", "no:cacheprovider", f"@{chosen}"], timeout)
        except subprocess.TimeoutExpired:
            return Verdict.TIMED_OUT
        finally:
            self._write(file, source)
        return Verdict.SURVIVED if code == 0 else Verdict.KILLED

    def _write(self, file: Path, source: bytes) -> None:
        """With a time of its own: Python takes old bytecode for new if size and second agree."""
        self._runs += 1
        file.write_bytes(source)
        os.utime(file, (self._runs * 10, self._runs * 10))

    def _pytest(
        self, options: list[str], timeout: float | None, *, record: Path | None = None
    ) -> int:
        scratch = self._folder / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        command = [sys.executable, "-m", "pytest", "-q", f"--basetemp={scratch}"]
        # Garbage is collected at any time, in any test: what it complains of says nothing of the
        # test that happens to run.
        command += ["-p", "no:unraisableexception", *options]
        return self._run(command, timeout, {RECORD: str(record)} if record else {})

    def _run(
        self,
        command: list[str | Path],
        timeout: float | None,
        environment: dict[str, str] | None = None,
    ) -> int:
        # One at a time: dash takes no second one.
        bounds = f'ulimit -v {MEMORY_KIB} && ulimit -f {FILE_BLOCKS} && exec "$@"'
        with (self._folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", bounds, "sh", *command],
                cwd=self._folder,
                # Ahead of the installed package, whose home is the tree.
                env={**os.environ, **(environment or {}), "PYTHONPATH": str(self._folder)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                return process.wait(timeout)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def output(self) -> str:
        """What the last run printed."""
        return (self._folder / "output.txt").read_text(encoding="utf-8", errors="replace")
