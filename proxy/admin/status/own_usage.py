"""The proxy's own use of processor, memory and descriptors, read from /proc."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc/self")


class OwnUsage:
    """Call `record` regularly; `document` covers the time between the last two calls."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None  # monotonic seconds, of the processor
        self._found: dict[str, Any] = {
            "cpu": None,
            "memory": None,
            "descriptors": None,
            "descriptors_most": None,
        }

    def record(self, moment: float) -> None:
        """Read the figures; `moment` is in monotonic seconds. A figure that cannot be read is
        None."""
        spent = time.process_time()
        if self._before is not None and moment > self._before[0]:
            share = (spent - self._before[1]) / (moment - self._before[0])
            self._found["cpu"] = round(share, 3)
        self._before = moment, spent
        try:
            pages = (_PROC / "statm").read_text(encoding="ascii").split()[1]
            self._found["memory"] = int(pages) * _PAGE
            self._found["descriptors"] = len(os.listdir(_PROC / "fd"))
        except (OSError, IndexError, ValueError):  # not Linux, or no descriptor left
            self._found["memory"] = self._found["descriptors"] = None
        self._found["descriptors_most"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def document(self) -> dict[str, Any]:
        """`cpu` is the share of one core, `memory` bytes resident."""
        return dict(self._found)
