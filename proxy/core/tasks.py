"""Background tasks that do not die unseen.

1. A task has a name, an owner who starts and stops it, and work that can be begun anew: a coroutine
   function, not a coroutine.
2. Work that raises, or ends though it should not, is logged with its traceback, counted, and begun
   again after a pause that grows from 0.1 to 30 s; a minute of quiet makes it short again.
3. A `vital` one that goes on dying takes the process down: a supervisor that starts it anew is
   better than a proxy that looks well and is not.
4. Being cancelled by the owner is no death. A `CancelledError` that nobody asked for is one.
5. The `Tasks` of a proxy know all of its own: `/readyz`, the metrics and the status page read
   them there. Several proxies may run in one process, and none answers for another's.

What belongs to a request or a connection, and ends with it, is not for this file.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal

_log = logging.getLogger("proxy.core.tasks")

PAUSE = (0.1, 30.0)  # seconds: the first pause before a new beginning, and the longest
STEADY = 60.0  # seconds of life after which the next pause is the first one again
TROUBLED = (2, 300.0)  # so many deaths within so many seconds: it keeps dying
FATAL = (6, 60.0)  # the same for a vital one: the process ends

Work = Callable[[], Coroutine[Any, Any, object]]
State = Literal["new", "running", "waiting", "ended"]


class EndedByItself(Exception):
    """Work that is to go on for ever came to an end."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """How a task is. `error` is what it died of last, None while it never did."""

    name: str
    state: State
    deaths: int
    troubled: bool
    error: str | None


class Supervised:
    """See the rules at the top of the file. `start()`, then `await stop()`; and again.

    `ends`: the work may come to an end, as a writer's that is told to stop.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        registry: Tasks,
        *,
        ends: bool = False,
        vital: bool = False,
    ) -> None:
        self.name = name
        self.state: State = "new"
        self.deaths = 0
        self._work = work
        self._ends = ends
        self._vital = vital
        self._registry = registry
        self._recent: deque[float] = deque(maxlen=max(TROUBLED[0], FATAL[0]))
        self._error: BaseException | None = None
        self._injected: Exception | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Supervised:
        """Begin; needs a running loop."""
        self._registry.add(self)
        self._stopping.clear()
        self._task = asyncio.get_running_loop().create_task(self._supervise(), name=self.name)
        return self

    def cancel(self) -> None:
        """End it without waiting for the end."""
        self._registry.discard(self)
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()

    async def stop(self, patience: float = 0.0) -> bool:
        """End it, after `patience` seconds in which it may end by itself; whether it did. Returns
        when it is over. Raises nothing."""
        task = self._task
        if task is None:
            return True
        self._stopping.set()
        if patience > 0 and not task.done():
            await asyncio.wait((task,), timeout=patience)
        by_itself = task.done()
        self.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return by_itself

    def inject(self, error: Exception) -> None:
        """Let the work die of `error` where it waits now. For tests."""
        assert self._task is not None
        self._injected = error
        self._task.cancel()

    def report(self) -> TaskReport:
        """How it is."""
        deaths, seconds = TROUBLED
        troubled = self._died_lately(deaths, seconds)
        error = None if self._error is None else f"{type(self._error).__name__}: {self._error}"
        return TaskReport(
            self.name, self.state, self.deaths, troubled, error[:200] if error else None
        )

    async def _supervise(self) -> None:
        pause = PAUSE[0]
        while True:
            began = time.monotonic()
            self.state = "running"
            try:
                await self._work()
                error: BaseException = EndedByItself(f"{self.name} came to an end")
                if self._ends:
                    self.state = "ended"
                    return
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                assert task is not None
                if self._injected is not None:
                    error, self._injected = self._injected, None
                    task.uncancel()
                elif task.cancelling():
                    self.state = "ended"
                    raise
                else:
                    error = cancelled
            except Exception as fault:
                error = fault
            if self._stopping.is_set():
                self.state = "ended"
                facts = self._facts()
                _log.error("background task died as it stopped", extra=facts, exc_info=error)
                return
            if time.monotonic() - began > STEADY:
                pause = PAUSE[0]
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load, guards nothing)
            self._died(error, wait)
            self.state = "waiting"
            await self._rest(wait)
            pause = min(pause * 2, PAUSE[1])

    async def _rest(self, seconds: float) -> None:
        """A stop does not wait for it: a writer has to write what is left."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _died(self, error: BaseException, wait: float) -> None:
        self.deaths += 1
        self._error = error
        self._recent.append(time.monotonic())
        self._registry.died(self.name)
        _log.error(
            "background task died",
            extra={**self._facts(), "restart_in_s": round(wait, 3)},
            exc_info=error,
        )
        if self._vital and self._died_lately(*FATAL):
            _log.critical("background task cannot be kept alive", extra=self._facts())
            self._registry.fatal(self.name)

    def _died_lately(self, deaths: int, seconds: float) -> bool:
        since = time.monotonic() - seconds
        return sum(moment > since for moment in self._recent) >= deaths

    def _facts(self) -> dict[str, object]:
        return {"task": self.name, "deaths": self.deaths}


class Tasks:
    """The background tasks of a proxy. `fatal(name)` is called when it cannot go on."""

    def __init__(self) -> None:
        self.deaths: Counter[str] = Counter()
        self.fatal: Callable[[str], None] = lambda name: None
        self._running: dict[Supervised, None] = {}

    def add(self, task: Supervised) -> None:
        """It has been started."""
        self._running[task] = None

    def discard(self, task: Supervised) -> None:
        """Its owner has ended it."""
        self._running.pop(task, None)

    def died(self, name: str) -> None:
        """Count a death."""
        self.deaths[name] += 1

    def __iter__(self) -> Iterator[Supervised]:
        return iter(list(self._running))

    def names(self) -> list[str]:
        """Those that run, and those that ever died."""
        return sorted({task.name for task in self._running} | set(self.deaths))

    def reports(self) -> list[TaskReport]:
        """How each is, in the order of their starts."""
        return [task.report() for task in self._running]
