"""Applications that the config names as targets: `aiohttp:package.module:make_app`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.config.imports import CannotImport, load_object
from proxy.embed import CannotReload, CannotStart, ConfigError, ReliabilityProxy

EVENTS: list[str] = []


def config(*names: str) -> dict[str, Any]:
    """A route and an upstream for each name of this file's module."""
    routes = [{"name": name, "path": f"/{name}", "upstream": name} for name in names]
    return {
        "listeners": {"front": {"bind": "127.0.0.1:0", "routes": routes}},
        "upstreams": {
            name: {"targets": [f"aiohttp:stand_ins:{name}"], "health": {"path": f"/{name}"}}
            for name in names
        },
        "drain_timeout": "5s",
    }


def _app(name: str, *, status: int = 200) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        if "slow" in request.query:
            EVENTS.append("asked")
            await asyncio.sleep(0.2)
        return web.Response(text=name, status=status)

    async def lifespan(app: web.Application) -> Any:
        EVENTS.append(f"{name} starts")
        yield
        EVENTS.append(f"{name} ends")

    app = web.Application()
    app.router.add_get(f"/{name}", answer)
    app.cleanup_ctx.append(lifespan)
    return app


async def _second() -> web.Application:
    return _app("second")


def _broken() -> web.Application:
    raise LookupError("no settings")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of applications."""
    module: Any = ModuleType("stand_ins")
    module.first = lambda: _app("first")
    module.second = _second
    module.failing = lambda: _app("failing", status=503)
    module.broken = _broken
    module.wrong = lambda: "an app"
    monkeypatch.setitem(sys.modules, "stand_ins", module)
    EVENTS.clear()


async def get(url: str) -> tuple[int, str]:
    """Status and text."""
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        return answer.status, await answer.text()


async def seen(event: str) -> None:
    """Wait until it has happened."""
    async with asyncio.timeout(30):
        while event not in EVENTS:  # noqa: ASYNC110 (a list is what the tests read)
            await asyncio.sleep(0.01)


async def test_it_starts_before_the_listeners_and_ends_after_the_drain() -> None:
    """Made by a function or a coroutine function; requests in progress at a stop are answered."""
    async with ReliabilityProxy(config("first", "second")) as proxy:
        assert EVENTS == ["first starts", "second starts"]
        assert await get(proxy.url("front", "/first")) == (200, "first")
        assert await get(proxy.url("front", "/second")) == (200, "second")
        last = asyncio.create_task(get(proxy.url("front", "/first?slow=1")))
        await seen("asked")
    assert await last == (200, "first")
    assert sorted(EVENTS[3:]) == ["first ends", "second ends"]


async def test_it_has_what_every_upstream_has() -> None:
    """Its failures open the breaker, and its label is its name in the config."""
    settings = config("failing")
    settings["upstreams"]["failing"]["breaker"] = {"failure_threshold": 2}
    async with ReliabilityProxy(settings) as proxy:
        statuses = [(await get(proxy.url("front", "/failing")))[0] for _ in range(3)]
        assert statuses == [503, 503, 503]
        _, metrics = await get(proxy.admin_url + "/metrics")
        assert 'circuit_breaker_state{service="failing"} 1.0' in metrics
        assert 'target="aiohttp:stand_ins:failing"' in metrics


async def test_a_reload_starts_and_ends_applications() -> None:
    """What is no longer named ends, what is new is there with the swap, what stays is untouched."""
    async with ReliabilityProxy(config("first")) as proxy:
        await proxy.reload(config("first", "second"))
        assert await get(proxy.url("front", "/second")) == (200, "second")
        assert EVENTS == ["first starts", "second starts"]
        await proxy.reload(config("second"))
        assert (await get(proxy.url("front", "/first")))[0] == 404
        await seen("first ends")
        with pytest.raises(CannotReload, match="stand_ins:broken did not start: LookupError"):
            await proxy.reload(config("second", "broken"))
        assert await get(proxy.url("front", "/second")) == (200, "second")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "aiohttp:stand_ins:broken did not start: LookupError: no settings"),
        ("wrong", "expected an aiohttp.web.Application, found str"),
    ],
)
async def test_one_that_does_not_start(name: str, reason: str) -> None:
    """The proxy does not start without it, and says which it was; the others are ended."""
    with pytest.raises(CannotStart, match=reason):
        await ReliabilityProxy(config("first", name)).start()
    assert EVENTS == ["first starts", "first ends"]


async def test_a_name_that_is_not_there_is_a_problem_of_the_config() -> None:
    """`check` finds it, with the line of the target."""
    settings = config("first", "absent")
    settings["upstreams"]["x"] = {"targets": ["aiohttp:no_such_module:app"]}
    with pytest.raises(ConfigError) as caught:
        await ReliabilityProxy(settings).start()
    text = str(caught.value)
    assert "upstreams.absent.targets[0]: expected PACKAGE.MODULE:NAME" in text
    assert "stand_ins has no absent" in text
    assert "importing no_such_module failed with ModuleNotFoundError" in text


def test_modules_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found as well; what a module itself fails to import is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "local_stage_one.py").write_text("value = 5\n", encoding="utf-8")
    (tmp_path / "local_stage_two.py").write_text("import no_such_thing\n", encoding="utf-8")
    assert load_object("local_stage_one:value") == 5
    with pytest.raises(CannotImport, match="No module named 'no_such_thing'"):
        load_object("local_stage_two:value")
