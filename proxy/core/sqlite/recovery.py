"""Keeps an SQLite file usable: opened as often as it takes, set aside, written anew.

1. Nothing of SQLite's leaves here as an exception: `degraded` says why nothing can be written.
2. A damaged or foreign file is renamed, and a new one begun. That and any other loss is told.
3. A file that somebody removes is written anew from what is still open; one that somebody replaces
   is left for the new one. Either is noticed within `LOOK` seconds of a writer that asks.
4. A write-ahead log that grows, because somebody reads an old state of the file for long, is
   logged once; nothing can be done about it here.
5. The one task that writes calls all of this. A reader or a check that meets damage merely points
   at it: `suspect` is set, and `on_suspect` wakes the writer.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.core.clock import Clock
from proxy.core.sqlite.file import NewerSchema, Schema, SqliteFile, UnusableFile, is_damage

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks whether the file is still in its place

#: Bytes of the write-ahead log at which it is called large; four times what it is otherwise.
LARGE_LOG = 64 * 1024 * 1024

NOT_STARTED = "not started"


class FileRecovery:
    """See the rules at the top of the file. `kind` names the file in the log.

    `on_degraded` gets each new reason, None when it can be written (the first time as well);
    `on_lost` gets `set_aside` or `misplaced`, and to where or how; `facts` go to every log line.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        schema: Schema,
        clock: Clock,
        *,
        on_suspect: Callable[[], None],
        on_degraded: Callable[[str | None], None],
        on_lost: Callable[[str, str], None] = lambda what, detail: None,
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.file = SqliteFile(path, schema, clock, self._suspected)
        self.degraded: str | None = NOT_STARTED
        self.log_size = 0  # bytes of the write-ahead log, as last seen
        self._log_large = False
        self._kind = kind
        self._suspect = False
        self._look_at = 0.0
        self._on_suspect = on_suspect
        self._on_degraded = on_degraded
        self._on_lost = on_lost
        self._facts = facts

    @property
    def suspect(self) -> bool:
        """Whether damage was met that nobody has dealt with yet."""
        return self._suspect

    def _suspected(self) -> None:
        self._suspect = True
        self._on_suspect()

    async def ready(self) -> bool:
        """Whether the file is open and fit, opened now if it was not."""
        if self._suspect:
            self._suspect = False
            await self._set_aside("damaged")
        return self.file.writer is not None or await self.open()

    async def open(self) -> bool:
        """Open the file (made when missing); an unfit one makes way for a new one."""
        for _ in range(2):  # the second time on a new file, when the first was not fit
            try:
                await self.file.open()
            except UnusableFile as unfit:
                if not await self._set_aside(str(unfit)):
                    return False
                continue
            except (OSError, sqlite3.Error, NewerSchema) as error:
                self.say(str(error))
                return False
            self.say(None)
            return True
        return False

    async def failed(self, error: sqlite3.Error) -> None:
        """A write was refused: the file is damaged, or cannot take it now."""
        if is_damage(error):
            await self._set_aside("damaged")
        else:
            self.say(str(error))

    async def look(self) -> None:
        """Somebody may have removed or replaced the file under us (rule 3)."""
        now = asyncio.get_running_loop().time()
        if self.file.writer is None or now < self._look_at:
            return
        self._look_at = now + LOOK
        self._saw_log(await self.file.log_size())
        what = await self.file.misplaced()
        if what is None:
            return
        log.error("%s file misplaced", self._kind, extra={**self._where(), "what": what})
        self._on_lost("misplaced", what)
        if what == "replaced":
            await self.file.close()
            return
        try:
            await self.file.write_anew()
        except (OSError, sqlite3.Error) as error:
            self.say(f"its file was removed, and cannot be written anew: {error}")

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
            self.say(f"{why}, and cannot be set aside: {error}")
            return False
        extra = {**self._where(), "why": why, "kept": str(kept)}
        log.error("%s set aside", self._kind, extra=extra)
        self._on_lost("set_aside", str(kept))
        return True

    def say(self, reason: str | None) -> None:
        """Why nothing can be written, None when it can; told when it changes."""
        if reason == self.degraded:
            return
        before, self.degraded = self.degraded, reason
        if reason is not None:
            extra = {**self._where(), "reason": reason}
            log.error("%s degraded", self._kind, extra=extra)
        elif before != NOT_STARTED:
            log.info("%s writes again", self._kind, extra={**self._where(), "was": before})
        self._on_degraded(reason)

    def _where(self) -> dict[str, Any]:
        return {self._kind: str(self.file.path), **self._facts()}
