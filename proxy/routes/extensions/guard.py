"""What stands around every hook of somebody else's stage, so that it harms its own request alone.

1. A hook that raises fails its request: 500 `stage_failed`, with the stage's name there, in the log
   (with the traceback) and in `proxy_stage_failures_total`. So does one that does not decide in its
   time, and one whose refusal could not be written.
2. A hook that keeps the event loop for longer than `SLOW` has blocked every request: it is named in
   the log, once in `EVERY` seconds, and in `proxy_stage_slow_total`. Of one that waits, each step
   between two waits is measured.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from proxy.core.errors import ProxyError, StageFailed, problem_body
from proxy.forward.exchange import Exchange

logger = logging.getLogger("proxy.routes.extensions.runner")

#: Seconds of the event loop that a hook may take before it is named, and between two such lines.
SLOW, EVERY = 0.05, 10.0


class StageGuard:
    """Of one stage on one route. `failed` and `slow` count."""

    def __init__(
        self, stage: str, route: str, failed: Callable[[], None], slow: Callable[[], None]
    ) -> None:
        self._facts = {"stage": stage, "route": route}
        self._failed = failed
        self._slow = slow
        self._quiet_until = 0.0

    def run(
        self, exchange: Exchange, work: Callable[[], object], *, may_refuse: bool = True
    ) -> None:
        """Raises the `ProxyError` that the hook refuses with, or `StageFailed`."""
        began = time.perf_counter()
        try:
            _check_result(work())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() and CancelledError, too: nothing waits here
            failure = self._failure(exchange, error, may_refuse=may_refuse)
            if failure is error:
                raise  # not `from` itself: a chain of causes has an end
            raise failure from error
        finally:
            self._took(time.perf_counter() - began, exchange)

    async def wait(
        self, exchange: Exchange, work: Coroutine[Any, Any, object], limit: float
    ) -> None:
        """As `run`, for a hook that waits: `limit` seconds at most. To be run in a task."""
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(limit) as time_limit:
                _check_result(await _Timed(work, lambda took: self._took(took, exchange)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise  # the client has left
            fault: BaseException = error
            if isinstance(error, TimeoutError) and time_limit.expired():
                fault = TimeoutError(f"no decision within {limit:g} s")
            failure = self._failure(exchange, fault)
            if failure is error:
                raise
            raise failure from error

    def _failure(
        self, exchange: Exchange, error: BaseException, *, may_refuse: bool = True
    ) -> BaseException:
        """What to raise for `error`: itself, where it is a refusal that can be written."""
        if isinstance(error, ProxyError) and may_refuse:
            try:
                problem_body(error, exchange.correlation_id)
                return error
            except Exception as unwritable:
                unwritable.__cause__ = error
                error = unwritable
        self._failed()
        stage = self._facts["stage"]
        logger.error(
            "stage failed",
            extra={**self._facts, "correlation_id": exchange.correlation_id},
            exc_info=error,
        )
        said = type(error).__name__
        if isinstance(error, TimeoutError):
            said += f": {error}"
        return StageFailed(f"Stage {stage} failed: {said}", stage=stage, reason=stage)

    def _took(self, took: float, exchange: Exchange) -> None:
        if took < SLOW:
            return
        self._slow()
        now = time.perf_counter()
        if now >= self._quiet_until:
            self._quiet_until = now + EVERY
            logger.warning(
                "stage blocked the event loop: every request waited for it",
                extra={
                    **self._facts,
                    "took_s": round(took, 3),
                    "correlation_id": exchange.correlation_id,
                },
            )


def _check_result(result: object) -> None:
    """Raises `TypeError` for what would have no effect: a refusal that lets through."""
    if result is None:
        return
    if isinstance(result, BaseException) or inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        kind = type(result).__name__
        raise TypeError(f"the hook returned {kind}: refusals are raised, awaitables awaited")


class _Timed:
    """Awaits a coroutine, and tells how long each of its steps kept the event loop."""

    def __init__(self, work: Coroutine[Any, Any, object], took: Callable[[float], None]) -> None:
        self._work = work
        self._took = took

    def __await__(self) -> Generator[Any, None, object]:
        error: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                waited_for = self._work.throw(error) if error else self._work.send(None)
            except StopIteration as end:
                return end.value
            finally:
                self._took(time.perf_counter() - began)
            error = None
            try:
                yield waited_for
            except BaseException as thrown:  # a cancellation, or the time limit: the hook's, too
                error = thrown
