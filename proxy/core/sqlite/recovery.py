"""Keeps an SQLite file usable: reopens it, sets it aside, restores it.

1. No exception of SQLite leaves this file: `degraded` says why nothing can be written.
2. A damaged or foreign file is renamed, and a new one is created. This and any other loss is
   reported.
3. A file that somebody removes is restored from the open one; one that somebody replaces is given
   up for the new one. A writer that checks notices either within `CHECK_EVERY` seconds.
4. A write-ahead log that grows, because another process reads an old state of the file, is logged
   once; nothing can be done about it here.
5. The one task that writes calls all of this. A reader or a check that finds damage only sets
   `suspect`, and the event of that name wakes the writer.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.core.clock import Clock
from proxy.core.sqlite.file import NewerSchema, Schema, SqliteFile, UnusableFile, is_damage

log = logging.getLogger(__name__)

CHECK_EVERY = 1.0  # seconds between two checks whether the file is still in place

#: Bytes from which a write-ahead log is reported as large, four times its usual size.
LARGE_LOG = 64 * 1024 * 1024

NOT_STARTED = "not started"


@dataclass(frozen=True, slots=True)
class FileEvents:
    """What the owner of a file wants to know.

    `suspect`: damage was found. `degraded` gets each new reason, None when the file can be written
    (also the first time); `lost` gets `set_aside` and the new name, or `misplaced` and how.
    """

    suspect: Callable[[], None]
    degraded: Callable[[str | None], None]
    lost: Callable[[str, str], None] = lambda what, detail: None


class FileRecovery:
    """See the rules at the top of the file. `kind` names the file in the log; `facts` are added to
    every log line."""

    def __init__(
        self,
        kind: str,
        path: Path,
        schema: Schema,
        clock: Clock,
        events: FileEvents,
        *,
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.file = SqliteFile(path, schema, clock, self._suspected)
        self.degraded: str | None = NOT_STARTED
        self.log_size = 0  # bytes of the write-ahead log, as last seen
        self._log_large = False
        self._kind = kind
        self._suspect = False
        self._check_at = 0.0
        self._events = events
        self._facts = facts

    @property
    def suspect(self) -> bool:
        """Whether damage was found that has not been dealt with yet."""
        return self._suspect

    def _suspected(self) -> None:
        self._suspect = True
        self._events.suspect()

    async def ready(self) -> bool:
        """Open the file if it is not open; whether it is usable."""
        if self._suspect:
            self._suspect = False
            await self._set_aside("damaged")
        return self.file.writer is not None or await self.open()

    async def open(self) -> bool:
        """Open the file, creating it if it is missing; an unusable one is replaced with a new
        one."""
        for _ in range(2):  # the second time with a new file, if the first was unusable
            try:
                await self.file.open()
            except UnusableFile as unfit:
                if not await self._set_aside(str(unfit)):
                    return False
                continue
            except (OSError, sqlite3.Error, NewerSchema) as error:
                self.set_degraded(str(error))
                return False
            self.set_degraded(None)
            return True
        return False

    async def failed(self, error: sqlite3.Error) -> None:
        """A write failed: the file is damaged, or cannot be written now."""
        if is_damage(error):
            await self._set_aside("damaged")
        else:
            self.set_degraded(str(error))

    async def check_replaced(self) -> None:
        """Deal with a file that somebody has removed or replaced (rule 3)."""
        now = asyncio.get_running_loop().time()
        if self.file.writer is None or now < self._check_at:
            return
        self._check_at = now + CHECK_EVERY
        self._saw_log(await self.file.log_size())
        what = await self.file.misplaced()
        if what is None:
            return
        log.error("%s file misplaced", self._kind, extra={**self._where(), "what": what})
        self._events.lost("misplaced", what)
        if what == "replaced":
            await self.file.close()
            return
        try:
            await self.file.write_anew()
        except (OSError, sqlite3.Error) as error:
            self.set_degraded(f"the file was removed and cannot be restored: {error}")

    def _saw_log(self, size: int) -> None:
        self.log_size = size
        if self._log_large:
            self._log_large = size > LARGE_LOG // 2
        elif size > LARGE_LOG:
            self._log_large = True
            log.warning(
                "%s log is large: another process may be reading an old state of the file",
                self._kind,
                extra={**self._where(), "bytes": size},
            )

    async def _set_aside(self, why: str) -> bool:
        try:
            kept = await self.file.set_aside(why)
        except OSError as error:
            self.set_degraded(f"{why}, and cannot be set aside: {error}")
            return False
        extra = {**self._where(), "why": why, "kept": str(kept)}
        log.error("%s set aside", self._kind, extra=extra)
        self._events.lost("set_aside", str(kept))
        return True

    def set_degraded(self, reason: str | None) -> None:
        """Set why nothing can be written, None if it can; a change is reported."""
        if reason == self.degraded:
            return
        before, self.degraded = self.degraded, reason
        if reason is not None:
            extra = {**self._where(), "reason": reason}
            log.error("%s degraded", self._kind, extra=extra)
        elif before != NOT_STARTED:
            log.info("%s writes again", self._kind, extra={**self._where(), "was": before})
        self._events.degraded(reason)

    def _where(self) -> dict[str, Any]:
        return {self._kind: str(self.file.path), **self._facts()}
