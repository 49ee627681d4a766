"""Supervised background tasks: they are restarted, and never die unseen.

1. A task has a name, an owner that starts and stops it, and work that can be restarted: a coroutine
   function, not a coroutine.
2. Work that raises, or returns although it should not, is logged with its traceback, counted, and
   restarted after a pause that grows from 0.1 to 30 s. After a minute without a failure the pause
   is short again.
3. A `vital` task that keeps dying takes the process down: a restart by the service manager is
   better than a proxy that looks healthy and is not.
4. Cancellation by the owner is not a failure. A `CancelledError` that nobody asked for is one.
5. Each proxy has one `Tasks`, a registry of its tasks, for `/readyz`, the metrics and the status
   page. Several proxies may run in one process; none reports another's tasks.

Tasks that end with a request or a connection do not belong here.
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

from proxy.core.waiting import happened

_log = logging.getLogger("proxy.core.tasks")

PAUSE = (0.1, 30.0)  # seconds: the first pause before a restart, and the longest
STEADY = 60.0  # seconds of running after which the pause is reset
TROUBLED = (2, 300.0)  # so many deaths within so many seconds: it keeps dying
FATAL = (6, 60.0)  # the same for a vital one, after which the process ends

Work = Callable[[], Coroutine[Any, Any, object]]
State = Literal["new", "running", "waiting", "ended"]


class EndedByItself(Exception):
    """Work that should run forever has returned."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The state of a task. `error` is what it last died of; None if it never did."""

    name: str
    state: State
    deaths: int
    troubled: bool
    error: str | None


class Supervised:
    """See the rules at the top of the file. `start()`, then `await stop()`; may be repeated.

    `ends`: the work may return, as that of a writer does that is asked to stop.
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
        """Start; needs a running loop."""
        self._registry.add(self)
        self._stopping.clear()
        self._task = asyncio.get_running_loop().create_task(self._supervise(), name=self.name)
        return self

    def cancel(self) -> None:
        """Cancel it without waiting for its end."""
        self._registry.discard(self)
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()

    async def stop(self, patience: float = 0.0) -> bool:
        """Stop it and wait for its end. For `patience` seconds it may end by itself; returns
        whether it did. Raises nothing."""
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
        """Raise `error` in the work, at the point where it is waiting. For tests."""
        assert self._task is not None
        self._injected = error
        self._task.cancel()

    def report(self) -> TaskReport:
        """Its state."""
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
                error: BaseException = EndedByItself(f"{self.name} returned")
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
            await happened(self._stopping, wait)  # a writer has to write what is left at a stop
            pause = min(pause * 2, PAUSE[1])

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
    """The background tasks of a proxy. `fatal(name)` is called when a vital task cannot be kept
    alive."""

    def __init__(self) -> None:
        self.deaths: Counter[str] = Counter()
        self.fatal: Callable[[str], None] = lambda name: None
        self._running: dict[Supervised, None] = {}

    def add(self, task: Supervised) -> None:
        """Add a task that has been started."""
        self._running[task] = None

    def discard(self, task: Supervised) -> None:
        """Remove a task that its owner has stopped."""
        self._running.pop(task, None)

    def died(self, name: str) -> None:
        """Count a death."""
        self.deaths[name] += 1

    def __iter__(self) -> Iterator[Supervised]:
        return iter(list(self._running))

    def names(self) -> list[str]:
        """The names of those that run, and of those that ever died."""
        return sorted({task.name for task in self._running} | set(self.deaths))

    def reports(self) -> list[TaskReport]:
        """The state of each, in the order in which they were started."""
        return [task.report() for task in self._running]


def is_cancelled() -> bool:
    """Whether the current task is being cancelled. A `CancelledError` without that comes from
    something that the task has awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
