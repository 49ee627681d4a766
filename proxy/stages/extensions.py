"""Runs the stages of others (`use` on a route) so that none of them can harm what is not its own.

1. A hook that raises fails its request alone: 500 `stage_failed`, with the stage's name there, in
   the log (with the traceback) and in `proxy_stage_failures_total`.
2. A hook that takes longer than `SLOW` has blocked the event loop and with it every request: it is
   named in the log, once in `EVERY` seconds, and in `proxy_stage_slow_total`.
3. What a stage changes is checked before it is put anywhere.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter

from proxy.config.extensions import StageUse
from proxy.errors import ProxyError, StageFailed
from proxy.extend import Edits, Hooks, Outcome, Request, Response, Route
from proxy.pipeline import plan
from proxy.pipeline.compile import Binding
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.field_edits import FieldEdits
from proxy.wire.codec import ResponseHead

logger = logging.getLogger(__name__)

#: Seconds of the event loop that a hook may take before it is named, and between two such lines.
SLOW, EVERY = 0.05, 10.0


class Extensions:
    """Binds what a route's `use` names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        stage = ["stage"]
        self._failures = Counter(
            "proxy_stage_failures_total", "Hooks of stages that raised", stage, registry=registry
        )
        self._slow = Counter(
            "proxy_stage_slow_total", "Hooks that blocked the event loop", stage, registry=registry
        )

    def bind(self, binding: Binding) -> plan.Hooks | None:
        """Raises `RuntimeError` with the name of a stage that cannot be bound."""
        route = binding.route
        if route is None or not route.use:
            return None
        where = Route(
            name=route.name,
            listener=binding.listener_name,
            direction=binding.listener.direction,
            path=route.path,
            methods=tuple(route.methods or ()),
            upstream=route.upstream,
            upstreams=tuple(binding.upstreams),
        )
        bound = [one for use in route.use if (one := self._bound(use, where)) is not None]
        if not bound:
            return None
        return _Chain(bound, binding).hooks()

    def _bound(self, use: StageUse, route: Route) -> _Bound | None:
        try:
            hooks: Hooks | None = use.kind(use.settings).bind(route)
            if hooks is None:
                return None
            _examine(hooks)
        except (Exception, SystemExit) as error:
            logger.exception("stage not bound", extra={"stage": use.name, "route": route.name})
            said = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"route {route.name}: stage {use.name}: {said}") from error
        guard = _Guard(
            use.name,
            route.name,
            self._failures.labels(use.name).inc,
            self._slow.labels(use.name).inc,
        )
        return _Bound(hooks, guard)


def _examine(hooks: object) -> None:
    """Raises `TypeError` for what would fail with every request, or do nothing."""
    if not isinstance(hooks, Hooks):
        raise TypeError(f"bind returned {type(hooks).__name__}: expected Hooks or None")
    for hook, arguments in (
        (hooks.request, ("request",)),
        (hooks.response, ("request", "response")),
        (hooks.finished, ("request", "outcome")),
    ):
        if hook is None:
            continue
        name = getattr(hook, "__name__", repr(hook))
        if inspect.iscoroutinefunction(hook):
            raise TypeError(f"{name} is async: hooks are plain functions")
        try:
            signature = inspect.signature(hook)
        except ValueError:  # some of those written in C have none
            continue
        try:
            signature.bind(*arguments)
        except TypeError as error:
            called = ", ".join(arguments)
            raise TypeError(f"{name} cannot be called as {name}({called}): {error}") from None


def _ineffective(result: object) -> bool:
    return isinstance(result, BaseException) or inspect.isawaitable(result)


class _Guard:
    """Rules 1 and 2, for one stage on one route."""

    def __init__(
        self, stage: str, route: str, failed: Callable[[], None], slow: Callable[[], None]
    ) -> None:
        self._facts = {"stage": stage, "route": route}
        self._failed = failed
        self._slow = slow
        self._quiet_until = 0.0

    def run(self, x: Exchange, work: Callable[[], object]) -> None:
        """Raises the `ProxyError` that the hook refuses with, or `StageFailed`."""
        began = time.perf_counter()
        try:
            result = work()
            if result is not None and _ineffective(result):
                kind = type(result).__name__  # it would have no effect: a refusal that lets through
                raise TypeError(
                    f"the hook returned {kind}: refusals are raised, hooks are not async"
                )
        except (ProxyError, KeyboardInterrupt):
            raise
        except (
            BaseException
        ) as error:  # sys.exit() and CancelledError, too: nothing waits in a hook
            self._failed()
            facts = {**self._facts, "correlation_id": x.correlation_id}
            logger.exception("stage failed", extra=facts)
            stage = self._facts["stage"]
            text = f"Stage {stage} failed: {type(error).__name__}"
            raise StageFailed(text, stage=stage, reason=stage) from error
        finally:
            self._took(time.perf_counter(), began, x)

    def _took(self, now: float, began: float, x: Exchange) -> None:
        if now - began < SLOW:
            return
        self._slow()
        if now >= self._quiet_until:
            self._quiet_until = now + EVERY
            logger.warning(
                "stage blocked the event loop: every request waited for it",
                extra={
                    **self._facts,
                    "took_s": round(now - began, 3),
                    "correlation_id": x.correlation_id,
                },
            )


@dataclass(frozen=True, slots=True)
class _Bound:
    hooks: Hooks
    guard: _Guard


class _Chain:
    """The stages of one route, in the order of its `use`."""

    def __init__(self, bound: list[_Bound], binding: Binding) -> None:
        self._on_request = [(b.hooks.request, b.guard) for b in bound if b.hooks.request]
        self._on_response = [(b.hooks.response, b.guard) for b in bound if b.hooks.response]
        self._on_finished = [(b.hooks.finished, b.guard) for b in bound if b.hooks.finished]
        self._upstream = binding.upstream_plan

    def hooks(self) -> plan.Hooks:
        """Those that some stage needs."""
        return plan.Hooks(
            check=self._request if self._on_request else None,
            answered=self._response if self._on_response else None,
            finished=self._finished if self._on_finished else None,
        )

    def _request(self, x: Exchange) -> None:
        request = _request_of(x)
        for hook, guard in self._on_request:
            guard.run(x, lambda hook=hook: hook(request))  # type: ignore[misc]
            guard.run(x, lambda: self._apply(x, request))

    def _apply(self, x: Exchange, request: Request) -> None:
        edits = _taken(request)
        if edits is not None:
            x.plan = replace(x.plan, request_edits=_joined(x.plan.request_edits, edits))
        name, request._upstream = request._upstream, None
        if name is not None:
            upstream = self._upstream(name)
            if upstream is None:
                raise LookupError(f"there is no upstream {name!r}")
            x.plan = replace(x.plan, upstream=upstream)

    def _response(self, x: Exchange, head: ResponseHead) -> None:
        request, response = _request_of(x), Response(head)
        for hook, guard in self._on_response:
            guard.run(x, lambda hook=hook: hook(request, response))  # type: ignore[misc]
        edits = _taken(response)
        if edits is not None:
            x.plan = replace(x.plan, response_edits=_joined(x.plan.response_edits, edits))

    def _finished(self, x: Exchange) -> None:
        request = _request_of(x)
        outcome = Outcome(x.status, x.code, x.duration, x.upstream)
        for hook, guard in self._on_finished:
            try:
                guard.run(x, lambda hook=hook: hook(request, outcome))  # type: ignore[misc]
            except ProxyError:
                continue  # logged and counted; there is nobody left to refuse


def _request_of(x: Exchange) -> Request:
    """The same one for every hook of an exchange."""
    request = x.extension
    if not isinstance(request, Request):
        request = x.extension = Request(x)
    return request


def _taken(message: Request | Response) -> Edits | None:
    """What has been changed since it was asked last, if anything."""
    edits = message._edits
    if not (edits.set or edits.removed or edits.added):
        return None
    message._edits = Edits()
    return edits


def _joined(before: FieldEdits | None, edits: Edits) -> FieldEdits:
    after = FieldEdits(edits.set, tuple(edits.removed))
    after.added += b"".join(f"\r\n{name}: {value}".encode("latin-1") for name, value in edits.added)
    return after if before is None else before.then(after)
