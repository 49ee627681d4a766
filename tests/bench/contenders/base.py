"""What every contender offers to the benchmark."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.children import Child

# Large enough for the 256 connections of the widest measurement, for everyone.
POOL = 512
# What counts as a usable correlation ID, for those that can be told (ours: docs, A3).
ID_PATTERN = "^[A-Za-z0-9._-]{1,128}$"


@dataclass(frozen=True, slots=True)
class Running:
    """A started contender: its process, and what the self-check needs."""

    child: Child
    access_log: Path
    metrics_url: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where to run: the port to listen on, a second free port for metrics, the upstream's port, a
    directory of its own, and the core."""

    listen_port: int
    extra_port: int
    upstream_port: int
    workdir: Path
    core: int


class Contender(Protocol):
    """One proxy. `id_header` is the name under which it hands on and returns its request ID."""

    name: str
    note: str
    id_header: str

    def available(self) -> str | None:
        """None, or why it cannot run here."""

    def version(self) -> str:
        """Name and version, for the table."""

    def start(self, place: Place) -> Running:
        """Write the configuration and start the process. Raises ChildError."""


def first_line(*argv: str) -> str:
    """The first non-empty line that a command prints, or an empty string."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=20, errors="replace", check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else ""


def beside_python(name: str) -> str | None:
    """The path of a console script of this Python's environment, or None."""
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else None
