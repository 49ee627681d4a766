"""A program of somebody who checks types. mypy reads it, strictly, and nobody runs it."""

from __future__ import annotations

from aiohttp import web

from proxy import extend
from proxy.embed import ReliabilityProxy


class Typed(extend.Stage):
    """Uses all of the interface."""

    class Settings(extend.Settings):
        key: extend.Secret
        wait: extend.Duration = 0.2
        most: extend.Size = 1024
        share: extend.Ratio = 0.5
        header: extend.HeaderName = "X-Key"
        page: extend.UpstreamName | None = None

    settings: Typed.Settings

    def bind(self, route: extend.Route) -> extend.Hooks | None:
        if "GET" not in route.methods:
            return None
        return extend.Hooks(self.decide, self.mark, self.end, timeout=self.settings.wait)

    async def decide(self, request: extend.Request) -> None:
        """As one that asks somebody."""
        if request.headers.get(self.settings.header) != self.settings.key.get_secret_value():
            raise extend.Refused(401, "No key", code="no_key", challenge="Key", hint=[1, 2])
        if self.settings.page is not None and request.cookies.get("canary"):
            request.use_upstream(self.settings.page)
        request.state["first"] = request.query.getall("first", [])

    def mark(self, request: extend.Request, response: extend.Response) -> None:
        """Plainly."""
        response.set_header("X-Status", str(response.status))

    def end(self, request: extend.Request, outcome: extend.Outcome) -> None:
        """With figures."""
        request.log(rate=outcome.bytes_out / outcome.duration, asked=outcome.target)

    async def close(self) -> None:
        """Nothing is open."""


class Plain(extend.Stage):
    """Decides at once."""

    def bind(self, route: extend.Route) -> extend.Hooks:
        return extend.Hooks(request=self.decide)

    def decide(self, request: extend.Request) -> None:
        """By its head alone."""
        request.set_header("X-Path", request.path)


async def main() -> None:
    """In a program."""
    apps = {"app": web.Application(), "search": None, "other": "http://127.0.0.1:8005"}
    async with ReliabilityProxy({}, {"redis": {"url": "redis://r"}}, apps=apps) as proxy:
        print(proxy.url("ingress", "/"), proxy.admin_url, proxy.test_server("ingress"))
        await proxy.reload()
