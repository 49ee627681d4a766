"""Circuit breakers: shown, and forced by operators."""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

from aiohttp import web

from proxy.admin import problems
from proxy.admin.json_exchange import answer, read_object, seconds, text

Action = Literal["open", "close", "reset"]


class Breakers(Protocol):
    """All breakers of the proxy."""

    def list(self) -> list[dict[str, Any]]:
        """Each breaker's name, state and counts, as JSON."""
        ...

    async def force(
        self, name: str, action: Action, reason: str, for_seconds: float | None
    ) -> dict[str, Any]:
        """Open, close or reset a breaker for the whole fleet, for `for_seconds`, after which it
        decides automatically again. Returns its new state. Raises `KeyError` for an unknown name
        and `ProxyError` if it cannot be done now."""
        ...


class BreakerControl:
    """`/api/breakers` and what is below it."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints."""
        router.add_get("/api/breakers", self.list)
        router.add_post("/api/breakers/{name}/{action:open|close|reset}", self.force)

    async def list(self, request: web.Request) -> web.Response:
        return answer({"breakers": self._breakers.list()})

    async def force(self, request: web.Request) -> web.Response:
        document = await read_object(request, "reason", "for")
        name = request.match_info["name"]
        action = cast(Action, request.match_info["action"])
        reason = text(document, "reason") or "by hand"
        for_seconds = seconds(document, "for")
        try:
            state = await self._breakers.force(name, action, reason, for_seconds)
        except KeyError:
            raise problems.NotFound("No breaker of that name") from None
        return answer(state)
