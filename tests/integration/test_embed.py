"""The proxy inside another program: `async with ReliabilityProxy(config) as proxy`."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from proxy.config.load import load_config
from proxy.config.schema import Config
from proxy.embed import CannotReload, CannotStart, ConfigError, ReliabilityProxy
from tests.http1.process import free_port

ROUTES = [{"name": "all", "path": "/{rest:*}", "upstream": "app"}]
CONFIG: dict[str, Any] = {
    "listeners": {"ingress": {"bind": "127.0.0.1:0", "routes": ROUTES}},
    "upstreams": {"app": {"targets": ["http://127.0.0.1:9"]}},
}


def hello(text: str = "hello") -> web.Application:
    """An app that says who it is."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"said": text, "path": request.path_qs})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    return app


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """The smallest ASGI app with a lifespan."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_several_live_in_one_process(client: aiohttp.ClientSession) -> None:
    """Two proxies from one config, each before an app of its own, neither in the other's way."""
    async with (
        ReliabilityProxy(CONFIG, apps={"app": hello("one")}) as one,
        ReliabilityProxy(CONFIG, apps={"app": hello("two")}) as two,
    ):
        for proxy, name in ((one, "one"), (two, "two")):
            async with client.get(proxy.url("ingress", "/a?b=1")) as answer:
                assert await answer.json() == {"said": name, "path": "/a?b=1"}
                assert answer.headers["X-Correlation-ID"]
        async with client.get(f"{one.admin_url}/readyz") as ready:
            assert ready.status == 200
        await two.stop()
        async with client.get(one.url("ingress")) as answer:
            assert answer.status == 200
        async with client.get(f"{one.admin_url}/metrics") as page:
            text = await page.text()
    line = 'http_requests_total{endpoint="all",method="GET",status="200"} 2.0'
    assert line in text, "the other's requests are not counted here"


async def test_an_asgi_app_is_served(client: aiohttp.ClientSession) -> None:
    """uvicorn serves it on the loop that runs."""
    async with (
        ReliabilityProxy(CONFIG, apps={"app": asgi}) as proxy,
        client.get(proxy.url("ingress", "/x")) as answer,
    ):
        assert await answer.text() == "/x"


async def test_a_service_that_is_not_running(client: aiohttp.ClientSession) -> None:
    """None refuses connections, whatever else listens on this machine."""
    target = {"upstreams": {"app": {"connect_patience": "0s"}}}
    async with (
        ReliabilityProxy(CONFIG, target, apps={"app": None}) as proxy,
        client.get(proxy.url("ingress", "/x")) as answer,
    ):
        assert answer.status == 502
        body = await answer.json()
        assert body["code"] == "upstream_unreachable"
        assert "Connection refused" in body["detail"]


async def test_an_asgi_app_that_does_not_start() -> None:
    """Its failed start is the caller's to see, and nothing is left open."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(RuntimeError, match="did not start"):
        await ReliabilityProxy(CONFIG, apps={"app": broken}).start()


async def test_the_program_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Root logger, signal handlers and levels are afterwards, and meanwhile, what they were."""

    def state() -> tuple[object, ...]:
        root = logging.getLogger()
        handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        return root.handlers[:], root.level, logging.getLogger("proxy").level, handlers

    caplog.set_level(logging.INFO)
    before = state()
    async with (
        ReliabilityProxy(CONFIG, apps={"app": hello()}) as proxy,
        aiohttp.ClientSession() as client,
        client.get(proxy.url("ingress", "/seen")),
    ):
        assert state() == before
    assert state() == before
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "proxy.access"]
    assert [line["path"] for line in lines] == ["/seen"]


async def test_from_a_file_with_overrides(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    """The config of production with other ports, and its relative SQLite files elsewhere."""
    port = free_port()
    settings = CONFIG | {
        "listeners": {"ingress": {"bind": f"127.0.0.1:{port}", "routes": ROUTES}},
        "trace": {"sqlite": "trace.db"},
        "drain_timeout": "${DRAIN}",
    }
    file = tmp_path / "proxy.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    proxy = ReliabilityProxy(
        file,
        {"upstreams": {"app": {"timeouts": {"response": "3s"}}}},
        apps={"app": hello()},
        free_ports=True,
        directory=tmp_path / "data",
        environ={"DRAIN": "4s"},
    )
    (tmp_path / "data").mkdir()
    async with proxy:
        assert not proxy.url("ingress").endswith(f":{port}")
        async with client.get(f"{proxy.admin_url}/api/config") as answer:
            config = await answer.json()
        assert config["upstreams"]["app"]["timeouts"]["response"] == "3s"
        assert config["drain_timeout"] == "4s"
        assert (tmp_path / "data" / "trace.db").exists()


async def test_a_variable_that_is_overridden_need_not_be_set(
    client: aiohttp.ClientSession,
) -> None:
    """A test puts a value of its own in its place; one that is left still gives a warning."""
    settings = CONFIG | {
        "logging": {"level": "${LEVEL}"},
        "drain_timeout": "${DRAIN}",
    }
    with pytest.raises(ConfigError) as refused:
        await ReliabilityProxy(settings, {"drain_timeout": "4s"}, environ={}).start()
    assert [problem.key for problem in refused.value.problems] == ["logging.level"]
    overrides = {"drain_timeout": "4s", "logging": {"level": "INFO"}}
    async with (
        ReliabilityProxy(settings, overrides, environ={}) as proxy,
        client.get(f"{proxy.admin_url}/api/config") as answer,
    ):
        assert (await answer.json())["drain_timeout"] == "4s"


async def test_from_a_model(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    """A `Config` serves as well, and apps take the place of its targets."""
    file = tmp_path / "proxy.json"
    file.write_text(json.dumps(CONFIG), encoding="utf-8")
    async with (
        ReliabilityProxy(load_config(file), apps={"app": hello()}) as proxy,
        client.get(proxy.url("ingress")) as answer,
    ):
        assert answer.status == 200


async def test_reload(client: aiohttp.ClientSession) -> None:
    """A new config is swapped in under the same address; a wrong one changes nothing."""
    off = {"status": 204}
    route = {**ROUTES[0], "headers": {"response": {"set": {"X-Version": "2"}}}}
    async with ReliabilityProxy(CONFIG, apps={"app": hello()}) as proxy:
        url = proxy.url("ingress")
        listener = {"bind": "127.0.0.1:0", "routes": [route]}
        await proxy.reload(CONFIG | {"listeners": {"ingress": listener}})
        async with client.get(url) as answer:
            assert answer.headers["X-Version"] == "2"
        with pytest.raises(CannotReload, match=r"<config>:1: .*did you mean 'listeners'"):
            await proxy.reload(CONFIG | {"listenrs": off})
        await proxy.reload()
        async with client.get(url) as answer:
            assert answer.headers["X-Version"] == "2"


async def test_a_wrong_config_names_every_problem() -> None:
    """As in a file, but for the line."""
    with pytest.raises(ConfigError) as caught:
        await ReliabilityProxy(CONFIG, {"drain_timeout": "soon", "color": "red"}).start()
    assert len(caught.value.problems) == 2
    assert "drain_timeout: expected" in str(caught.value)


async def test_a_port_in_use() -> None:
    """The machine's refusal names the listener; the app is stopped again."""
    stopped = asyncio.Event()

    async def clean_up(app: web.Application) -> None:
        stopped.set()

    app = hello()
    app.on_cleanup.append(clean_up)
    async with ReliabilityProxy(CONFIG, apps={"app": hello()}) as first:
        taken = first.url("ingress").removeprefix("http://")
        with pytest.raises(CannotStart, match="ingress"):
            await ReliabilityProxy(
                CONFIG, {"listeners": {"ingress": {"bind": taken}}}, apps={"app": app}
            ).start()
    assert stopped.is_set()


async def test_misuse_is_explained() -> None:
    """Each mistake in the use of the interface has its message."""
    proxy = ReliabilityProxy(CONFIG, apps={"app": hello()})
    with pytest.raises(RuntimeError, match="not running"):
        proxy.url("ingress")
    async with proxy:
        with pytest.raises(KeyError, match="there are ingress"):
            proxy.url("egress")
        with pytest.raises(RuntimeError, match="already"):
            await proxy.start()
    with pytest.raises(TypeError, match="found int"):
        await ReliabilityProxy(CONFIG, apps={"app": 5}).start()


async def test_an_app_that_nobody_reaches_is_refused() -> None:
    """A misspelt name would leave the real targets where they are."""
    with pytest.raises(ConfigError, match="did you mean 'app'") as refused:
        await ReliabilityProxy(CONFIG, apps={"ap": hello()}).start()
    assert [problem.key for problem in refused.value.problems] == ["upstreams.ap"]
    with pytest.raises(KeyError, match="no upstream 'ap'; there are app"):
        await ReliabilityProxy(Config.model_validate(CONFIG), apps={"ap": hello()}).start()


async def test_it_is_started_once() -> None:
    """Also by two at the same moment."""
    proxy = ReliabilityProxy(CONFIG, apps={"app": hello()})
    both = await asyncio.gather(proxy.start(), proxy.start(), return_exceptions=True)
    assert [type(one).__name__ for one in both] == ["NoneType", "RuntimeError"]
    await proxy.stop()
    async with proxy:
        assert proxy.url("ingress"), "and it may be started again"


@pytest.mark.parametrize("later", [False, True])
async def test_a_function_makes_the_app(later: bool, client: aiohttp.ClientSession) -> None:
    """As for a target of the config, plain or async."""

    async def make_later() -> web.Application:
        return hello("made")

    apps = {"app": make_later if later else lambda: hello("made")}
    async with (
        ReliabilityProxy(CONFIG, apps=apps) as proxy,
        client.get(proxy.url("ingress")) as answer,
    ):
        assert (await answer.json())["said"] == "made"


async def test_requests_in_progress_end_before_the_stop() -> None:
    """The end of the block drains: what has begun is answered, then the app goes."""
    begun = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        begun.set()
        await go_on.wait()
        return web.Response(text="done")

    app = web.Application()
    app.router.add_get("/", slow)
    async with aiohttp.ClientSession() as client:
        async with ReliabilityProxy(CONFIG, apps={"app": app}) as proxy:
            url = proxy.url("ingress", "/")

            async def ask() -> str:
                async with client.get(url) as answer:
                    return await answer.text()

            asking = asyncio.create_task(ask())
            await begun.wait()
            asyncio.get_running_loop().call_later(0.1, go_on.set)
        assert await asking == "done"


async def test_nothing_stays_open(client: aiohttp.ClientSession) -> None:
    """Starting and stopping leaves neither tasks nor the descriptor of a socket behind."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0
    before = None
    for _ in range(3):
        async with (
            ReliabilityProxy(CONFIG, apps={"app": hello()}) as proxy,
            client.get(proxy.url("ingress")) as answer,
        ):
            await answer.read()
        await asyncio.sleep(0)
        others = {t.get_name() for t in asyncio.all_tasks()} - {asyncio.current_task().get_name()}  # type: ignore[union-attr]
        assert not others, others
        now = descriptors()
        assert before is None or now <= before + 1
        before = before or now
