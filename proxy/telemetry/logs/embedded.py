"""The log of a proxy inside another program, whose logging setup is left alone.

Records go to the loggers `proxy.*`, as with any library, and access lines to `proxy.access`, as the
same JSON text that a standalone proxy writes. The program sets levels and handlers; `logging.level`
of the config only decides whether access lines are written.
"""

from __future__ import annotations

import logging

from proxy.telemetry.logs.access import AccessLog
from proxy.telemetry.logs.outputs import Output
from proxy.telemetry.logs.setup import LEVELS

_access = logging.getLogger("proxy.access")


class EmbeddedLogs:
    """Replaces `Logs`; several may exist in one process, and none needs closing."""

    def __init__(self, level: str = "INFO") -> None:
        self.lines_dropped = 0
        self.access = AccessLog(self)
        self.set_level(level)

    @property
    def level(self) -> str:
        """One of `LEVELS`."""
        return self._level

    def set_level(self, level: str) -> None:
        """Access lines are written at INFO and below. Raises `ValueError` for an unknown level."""
        if level not in LEVELS:
            raise ValueError(f"expected one of {', '.join(LEVELS)}, found {level!r}")
        self._level = level
        self.access.enabled = level in ("DEBUG", "INFO")

    def redirect(self, output: Output) -> None:
        """Ignored: the program decides where lines go."""
        output.close()

    def put(self, line: bytes) -> None:
        """Log one access line."""
        if _access.isEnabledFor(logging.INFO):
            _access.info("%s", line.decode("utf-8", "backslashreplace").rstrip("\n"))

    def count_drop(self) -> None:
        """Count a line that could not be formatted."""
        self.lines_dropped += 1
