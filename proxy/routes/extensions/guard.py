"""Wraps every hook of an extension stage, so that a bug in it harms only its own request.

1. A hook that raises fails its request with 500 `stage_failed`. The stage is named in the response,
   in the log (with the traceback) and in `proxy_stage_failures_total`. The same holds for a hook
   that does not decide in time, and for one whose refusal cannot be encoded.
2. A hook that blocks the event loop for longer than `SLOW` delays every request: it is logged, once
   in `EVERY` seconds, and counted in `proxy_stage_slow_total`. For an async hook, each step between
   two awaits is measured.
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

#: Seconds that a hook may block the event loop before it is logged, and between two such log lines.
SLOW, EVERY = 0.05, 10.0


class StageGuard:
    """Guards one stage on one route. `failed` and `slow` increment its counters."""

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
        """Run a hook. Raises the `ProxyError` that it refuses with, or `StageFailed`."""
        began = time.perf_counter()
        try:
            _check_result(work())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() and CancelledError too: nothing is awaited here
            failure = self._failure(exchange, error, may_refuse=may_refuse)
            if failure is error:
                raise  # an exception must not be its own cause
            raise failure from error
        finally:
            self._took(time.perf_counter() - began, exchange)

    async def wait(
        self, exchange: Exchange, work: Coroutine[Any, Any, object], limit: float
    ) -> None:
        """Like `run`, for an async hook, with a limit in seconds. Must run in a task."""
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
        """The exception to raise for `error`: itself if it is a refusal that can be encoded."""
        if isinstance(error, ProxyError) and may_refuse:
            try:
                problem_body(error, exchange.correlation_id)
                return error
            except Exception as encoding_error:
                encoding_error.__cause__ = error
                error = encoding_error
        self._failed()
        stage = self._facts["stage"]
        logger.error(
            "stage failed",
            extra={**self._facts, "correlation_id": exchange.correlation_id},
            exc_info=error,
        )
        what = type(error).__name__
        if isinstance(error, TimeoutError):
            what += f": {error}"
        return StageFailed(f"Stage {stage} failed: {what}", stage=stage, reason=stage)

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
    """Raises `TypeError` for a result that would have no effect, such as a returned refusal."""
    if result is None:
        return
    if isinstance(result, BaseException) or inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        kind = type(result).__name__
        raise TypeError(f"the hook returned {kind}: refusals are raised, awaitables awaited")


class _Timed:
    """Awaits a coroutine and reports how long each of its steps blocked the event loop."""

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
            except (
                BaseException
            ) as thrown:  # a cancellation or the time limit, passed on to the hook
                error = thrown
