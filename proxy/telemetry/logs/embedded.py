"""The log of a proxy that runs inside another program, whose logging is left as it is.

Records go to the loggers `proxy.*`, as with any library, and access lines to `proxy.access`, each
as the JSON text that the process of a proxy would write. Levels and handlers are the program's
business; `logging.level` of the config only decides whether there are access lines at all.
"""

from __future__ import annotations

import logging

from proxy.telemetry.logs.access import AccessLog
from proxy.telemetry.logs.outputs import Output
from proxy.telemetry.logs.setup import LEVELS

_access = logging.getLogger("proxy.access")


class EmbeddedLogs:
    """Stands in for `Logs`; several may live side by side, and none needs closing."""

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
        """Where lines go is the program's business."""
        output.close()

    def put(self, line: bytes) -> None:
        """One access line."""
        if _access.isEnabledFor(logging.INFO):
            _access.info("%s", line.decode("utf-8", "backslashreplace").rstrip("\n"))

    def count_drop(self) -> None:
        """A line could not be made."""
        self.lines_dropped += 1
