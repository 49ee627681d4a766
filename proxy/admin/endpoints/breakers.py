"""Circuit breakers: shown, and forced by operators."""

from __future__ import annotations

from typing import cast

from aiohttp import web

from proxy.admin import problems
from proxy.admin.json_exchange import answer, read_object, seconds, text
from proxy.resilience.circuit.registry import Action, BreakerRegistry


class BreakerControl:
    """`/api/breakers` and what is below it."""

    def __init__(self, breakers: BreakerRegistry) -> None:
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
