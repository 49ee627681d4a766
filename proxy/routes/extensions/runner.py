"""Runs extension stages (`use` on a route), each hook inside its guard (`guard.py`).

An extension's hooks have the same names as those of the proxy's own stages. Built-in hooks get the
exchange itself; an extension gets a view of it (`proxy.extend`), whose changes are checked before
they are applied.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, replace
from functools import partial

from prometheus_client import CollectorRegistry, Counter

from proxy.config.extensions import StageUse
from proxy.core.errors import ProxyError
from proxy.extend import Hooks, Outcome, Request, Response, Route, Stage
from proxy.extend.fields import Edits
from proxy.forward.exchange import Exchange
from proxy.forward.routing import plan
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.header_edits import FieldEdits
from proxy.http1.response_head import ResponseHead
from proxy.routes.extensions.closing import Held, StageClosing
from proxy.routes.extensions.guard import StageGuard

logger = logging.getLogger(__name__)

#: Upper bound in seconds for a hook's own timeout: a client waits no longer.
LONGEST = 60.0


class Extensions:
    """Binds the stages in a route's `use`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        stage = ["stage"]
        self._failures = Counter(
            "proxy_stage_failures_total", "Hooks of stages that raised", stage, registry=registry
        )
        self._slow = Counter(
            "proxy_stage_slow_total", "Hooks that blocked the event loop", stage, registry=registry
        )
        self._closing = StageClosing()

    async def stop(self) -> None:
        """Close all stages; every exchange is over."""
        await self._closing.stop()

    def bind(self, binding: Binding) -> plan.Hooks | None:
        """Raises `RuntimeError`, naming the stage that cannot be bound."""
        route = binding.route
        if route is None:  # once per listener, so that a plan without stages retires the old ones
            return plan.Hooks(adopted=self._closing.adopt)
        if not route.use:
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
        bound = [self._bound(use, where) for use in route.use]
        return _Chain(bound, binding, self._closing).hooks()

    def _bound(self, use: StageUse, route: Route) -> _Bound:
        try:
            stage = use.kind(use.settings)
            held = self._held(stage, {"stage": use.name, "route": route.name})
            hooks: Hooks | None = stage.bind(route)
            if hooks is None:
                hooks = Hooks()
            _examine(hooks)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() and CancelledError, too
            logger.exception("stage not bound", extra={"stage": use.name, "route": route.name})
            what = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"route {route.name}: stage {use.name}: {what}") from error
        guard = StageGuard(
            use.name,
            route.name,
            self._failures.labels(use.name).inc,
            self._slow.labels(use.name).inc,
        )
        return _Bound(hooks, guard, held)

    def _held(self, stage: object, facts: dict[str, str]) -> Held | None:
        """Register a stage for closing, if it has a `close` of its own."""
        close = getattr(stage, "close", None)
        if close is None or getattr(type(stage), "close", None) is Stage.close:
            return None
        return self._closing.hold(close, facts)


def _examine(hooks: object) -> None:
    """Raises `TypeError` for hooks that would fail on every request or have no effect."""
    if not isinstance(hooks, Hooks):
        raise TypeError(f"bind returned {type(hooks).__name__}: expected Hooks or None")
    if not (isinstance(hooks.timeout, int | float) and 0 < hooks.timeout <= LONGEST):
        raise TypeError(f"timeout is {hooks.timeout!r}: expected seconds, {LONGEST:g} at most")
    for hook, arguments in (
        (hooks.request, ("request",)),
        (hooks.response, ("request", "response")),
        (hooks.finished, ("request", "outcome")),
    ):
        if hook is None:
            continue
        name = getattr(hook, "__name__", repr(hook))
        if _waits(hook) and hook is not hooks.request:
            raise TypeError(f"{name} is async: only the hook for a request may wait")
        try:
            signature = inspect.signature(hook)
        except ValueError:  # some functions written in C have no signature
            continue
        try:
            signature.bind(*arguments)
        except TypeError as error:
            called = ", ".join(arguments)
            raise TypeError(f"{name} cannot be called as {name}({called}): {error}") from None


def _waits(hook: object) -> bool:
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(
        getattr(hook, "__call__", None)  # noqa: B004 (an object whose class has an async one)
    )


@dataclass(frozen=True, slots=True)
class _Bound:
    hooks: Hooks
    guard: StageGuard
    held: Held | None


class _Chain:
    """The stages of one route, in the order of its `use`."""

    def __init__(self, bound: list[_Bound], binding: Binding, closing: StageClosing) -> None:
        self._held = [b.held for b in bound if b.held is not None]
        self._closing = closing
        self._on_request = [
            (b.hooks.request, b.guard, b.hooks.timeout if _waits(b.hooks.request) else None)
            for b in bound
            if b.hooks.request
        ]
        self._on_response = [(b.hooks.response, b.guard) for b in bound if b.hooks.response]
        self._on_finished = [(b.hooks.finished, b.guard) for b in bound if b.hooks.finished]
        self._upstream = binding.upstream_plan

    def hooks(self) -> plan.Hooks:
        """The hooks that at least one stage needs."""
        waits = any(limit is not None for _, _, limit in self._on_request)
        request = self._request_later if waits else self._request if self._on_request else None
        return plan.Hooks(
            request=request,
            response=self._response if self._on_response else None,
            finished=self._finished if self._on_finished or self._held else None,
            started=self._started if self._held else None,
            adopted=partial(self._closing.adopt, self._held) if self._held else None,
        )

    def _started(self, exchange: Exchange) -> None:
        _request_of(exchange)._held = True
        for held in self._held:
            held.users += 1

    def _request(self, exchange: Exchange) -> None:
        request = _request_of(exchange)
        for hook, guard, _ in self._on_request:
            guard.run(exchange, lambda hook=hook: hook(request))  # type: ignore[misc]
            guard.run(exchange, lambda: self._apply(exchange, request))
        request._sent = True

    async def _request_later(self, exchange: Exchange) -> None:
        """Like `_request`, with at least one async hook."""
        request = _request_of(exchange)
        for hook, guard, limit in self._on_request:
            if limit is None:
                guard.run(exchange, lambda hook=hook: hook(request))  # type: ignore[misc]
            else:
                await guard.wait(exchange, hook(request), limit)  # type: ignore[arg-type]
            guard.run(exchange, lambda: self._apply(exchange, request))
        request._sent = True

    def _apply(self, exchange: Exchange, request: Request) -> None:
        edits = _taken(request)
        if edits is not None:
            exchange.plan = replace(
                exchange.plan, request_edits=_joined(exchange.plan.request_edits, edits)
            )
        name, request._upstream = request._upstream, None
        if name is not None:
            upstream = self._upstream(name)
            if upstream is None:
                raise LookupError(f"there is no upstream {name!r}")
            exchange.plan = replace(exchange.plan, upstream=upstream)

    def _response(self, exchange: Exchange, head: ResponseHead) -> None:
        request, response = _request_of(exchange), Response(head)
        request._sent = True
        for hook, guard in self._on_response:
            guard.run(exchange, lambda hook=hook: hook(request, response))  # type: ignore[misc]
        edits = _taken(response)
        if edits is not None:
            exchange.plan = replace(
                exchange.plan, response_edits=_joined(exchange.plan.response_edits, edits)
            )

    def _finished(self, exchange: Exchange) -> None:
        request = _request_of(exchange)
        request._sent = True
        outcome = Outcome(
            exchange.status,
            exchange.code,
            exchange.duration,
            exchange.upstream,
            exchange.target,
            exchange.attempts,
            exchange.bytes_in,
            exchange.bytes_out,
        )
        for hook, guard in self._on_finished:
            try:
                work = partial(hook, request, outcome)
                guard.run(exchange, work, may_refuse=False)
            except ProxyError:
                continue  # logged and counted; too late to refuse
        if request._held:
            self._closing.release(self._held)


def _request_of(exchange: Exchange) -> Request:
    """The view of an exchange, the same for all its hooks."""
    request = exchange.extension
    if not isinstance(request, Request):
        request = exchange.extension = Request(exchange)
    return request


def _taken(message: Request | Response) -> Edits | None:
    """The edits made since the last call, if any."""
    edits, message._edits = message._edits, None
    return edits


def _joined(before: FieldEdits | None, edits: Edits) -> FieldEdits:
    after = FieldEdits(edits.set, tuple(edits.removed))
    after.added += b"".join(f"\r\n{name}: {value}".encode("latin-1") for name, value in edits.added)
    return after if before is None else before.then(after)
