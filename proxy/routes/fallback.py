"""`fallback:`: what a caller gets while the upstream is down, the last good response or a fixed
one."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

from proxy.config.listeners import Fallback, StaticAnswer
from proxy.core.errors import CircuitOpen, Overloaded, ProxyError, UpstreamFailure
from proxy.core.memory.budget import Account, Holding, MemoryBudget
from proxy.forward.exchange import Exchange, Tee
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks, Reply, Trouble
from proxy.resilience.stale_cache import StaleCache

#: Bytes of all stale answers of a route, and of the longest that is kept: a fallback for pages and
#: small JSON, within a sixteenth of the default memory budget.
STALE_MEMORY, STALE_BODY = 16 * 1024 * 1024, 1024 * 1024


class FallbackStage:
    """Binds to routes with `fallback:`. Cached responses count against the memory budget."""

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory.account("stale_answers")
        self._copies = memory.account("answers_being_copied")
        # The caches of all plans in force or in use. A reload that does not change a route's cache
        # settings keeps its cache; others end with the last exchange of their plan.
        self._remembered: weakref.WeakValueDictionary[Hashable, _Stale] = (
            weakref.WeakValueDictionary()
        )

    def bind(self, binding: Binding) -> Hooks | None:
        """Stale responses are cached per route."""
        if binding.route is None or binding.route.fallback is None:
            return None
        rules = binding.route.fallback
        stale = self._stale(binding, rules) if rules.stale is not None else None
        return Hooks(
            started=stale.listen if stale else None,
            fallback_source=_Fallback(stale, _static(rules.answer) if rules.answer else None),
            finished=stale.remember if stale else None,
        )

    def _stale(self, binding: Binding, rules: Fallback) -> _Stale:
        route = binding.route
        assert route is not None
        place = (binding.listener_name, route.name, route.path, route.upstream)
        key = (*place, rules.stale)
        stale = self._remembered.get(key)
        if stale is None:
            stale = self._remembered[key] = _Stale(rules, Holding(self._memory), self._copies)
        return stale


class _Stale:
    """The last good responses of a route."""

    def __init__(self, rules: Fallback, memory: Holding, copies: Account) -> None:
        assert rules.stale is not None
        weakref.finalize(self, memory.clear)
        self._copies = copies
        self.cache = StaleCache(rules.stale, STALE_MEMORY, STALE_BODY, memory)

    def key(self, exchange: Exchange) -> bytes | None:
        """A HEAD may be answered from a GET (RFC 9110 §9.3.2)."""
        assert exchange.head is not None
        method = "GET" if exchange.method == "HEAD" else exchange.method
        return self.cache.key(method, exchange.head.target, exchange.head.host, exchange.head.lines)

    def listen(self, exchange: Exchange) -> None:
        """Copy the response's body if it may be cached."""
        if exchange.method == "GET":
            exchange.tee = Tee(self.cache.max_body, Holding(self._copies, exchange.stream))

    def remember(self, exchange: Exchange) -> None:
        """Keep a complete 200."""
        if (
            exchange.status != 200
            or exchange.response is None
            or exchange.tee is None
            or not exchange.tee.complete
        ):
            return
        key = self.key(exchange)
        if key is not None:
            body = b"".join(exchange.tee.pieces)
            self.cache.keep(key, exchange.response.lines, body, exchange.stream.clock.monotonic())

    def answer(self, exchange: Exchange) -> Reply | None:
        """The cached response, marked as stale."""
        now = exchange.stream.clock.monotonic()
        key = self.key(exchange)
        kept = self.cache.get(key, now) if key is not None else None
        if kept is None:
            return None
        lines, age = [], kept.age(now)
        for line in kept.lines:
            name, _, value = line.partition(b":")
            if name.lower() != b"age":
                lines.append(line)
            elif value.strip().isdigit():
                age += int(value.strip()[:9])  # it was already that old (RFC 9111 §4.2.3)
        return Reply(200, (*lines, b"Age: %d" % age, b"X-Stale: true"), kept.body)


class _Fallback:
    """The stale response first, then the fixed one."""

    needs_body = False

    def __init__(self, stale: _Stale | None, answer: Reply | None) -> None:
        self._stale = stale
        self._answer = answer

    def wants(self, exchange: Exchange, trouble: Trouble) -> bool:
        """Refusals made to protect the upstream, its failures, and failure statuses."""
        if isinstance(trouble, ProxyError):
            return isinstance(trouble, UpstreamFailure | CircuitOpen | Overloaded)
        assert exchange.plan.upstream is not None
        return trouble.status in exchange.plan.upstream.failing

    async def fallback(self, exchange: Exchange, trouble: Trouble) -> Reply | None:
        return (self._stale.answer(exchange) if self._stale else None) or self._answer


def _static(answer: StaticAnswer) -> Reply:
    lines = [
        f"{name}: {value}".encode("latin-1", "replace") for name, value in answer.headers.items()
    ]
    return Reply(answer.status, tuple(lines), answer.body.encode())
