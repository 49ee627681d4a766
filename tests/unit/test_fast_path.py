"""Which requests qualify for the fast path, and what is remembered of them.

The bytes that it writes are compared in tests/integration/test_relay_fast_path.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from random import Random

import pytest

from proxy.config.schema import Config
from proxy.core.clock import ManualClock
from proxy.core.memory.budget import MemoryBudget
from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding, Stage
from proxy.forward.routing.compile import Compiler, Engine
from proxy.forward.routing.plan import Hooks, ListenerPlan, Trouble
from proxy.http1.client import ClientStream
from proxy.http1.deadlines import Sweeper
from proxy.server import fast_path
from proxy.telemetry.metrics.counters import RouteTally
from tests.bench.exchange import REQUEST, HotExchange, hot_exchange
from tests.fast_path_kit import spool

HOST = b"Host: example.test\r\n"


class Asking:
    """A stage that asks every route for `hooks`."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def bind(self, binding: Binding) -> Hooks:
        return self._hooks


class FallbackSource:
    """A fallback source that reads responses, or does not."""

    def __init__(self, needs_body: bool) -> None:
        self.needs_body = needs_body

    def wants(self, x: Exchange, trouble: Trouble) -> bool:
        return False

    async def fallback(self, x: Exchange, trouble: Trouble) -> None:
        return None


def listener(*stages: Stage, **upstream: object) -> ListenerPlan:
    """A listener with one route for everything."""
    clock = ManualClock()
    config = Config.model_validate(
        {
            "listeners": {
                "front": {
                    "bind": "127.0.0.1:0",
                    "routes": [
                        {"name": "g", "methods": ["GET"], "path": "/g/{x}", "upstream": "app"},
                        {"name": "all", "path": "/{rest:*}", "upstream": "app"},
                    ],
                }
            },
            "upstreams": {"app": {"targets": ["http://127.0.0.1:1"], **upstream}},
        }
    )
    memory = MemoryBudget()
    compiler = Compiler(
        stages,
        Engine(clock, Sweeper(clock), memory, spool(memory, clock), Random(1)),
        lambda _: lambda _: None,
        lambda _: None,
    )
    return compiler.compile(config).listeners["front"]


def head(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes = HOST) -> bytes:
    """A request's head."""
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


@pytest.mark.parametrize(
    "data",
    [
        head(),
        head(b"GET /g/1?a=b HTTP/1.1"),
        head(b"POST / HTTP/1.1"),
        head(b"BREW / HTTP/1.1"),
        head(b"GET / HTTP/1.1", b"Cookie: a", b"Connection: keep-alive, x-a", b"X-A: 1"),
    ],
)
def test_a_request_without_body_and_wishes_is_plain(data: bytes) -> None:
    """It gets a frame for its correlation ID, and is remembered by its bytes."""
    front = listener()
    request = fast_path._prepare(data, front)
    assert request is not None
    assert request.start.startswith(data.partition(b" HTTP")[0])
    assert request.start.endswith(b"\r\nX-Correlation-ID: ")
    assert request.end == b"\r\nX-Forwarded-Host: example.test\r\n\r\n"
    assert front.fast_requests == {data: request}


@pytest.mark.parametrize(
    "data",
    [
        head()[:-1],
        head() + b"GET",
        head() + head(),
        b"\r\n" + head(),
        head(b"GET / HTTP/1.0"),
        head(b"HEAD / HTTP/1.1"),
        head(b"OPTIONS * HTTP/1.1"),
        head(b"TRACE / HTTP/1.1"),
        head(b"CONNECT a:1 HTTP/1.1"),
        head(b"POST / HTTP/1.1", b"Content-Length: 0"),
        head(b"POST / HTTP/1.1", b"Content-Length: 5"),
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"),
        head(b"GET / HTTP/1.1", b"Connection: close"),
        head(b"GET / HTTP/1.1", b"Expect: 100-continue"),
        head(b"GET / HTTP/1.1", b"TE: trailers", b"Connection: TE"),
        head(b"GET / HTTP/1.1", b"Max-Forwards: 3"),
        head(b"GET / HTTP/1.1", b"X-Forwarded-For: 6.6.6.6"),
        head(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket"),
        head(b"GET / HTTP/1.1", b"X : bad"),
        head(b"GET / HTTP/1.1", b"X-Long: " + b"a" * 1024),
        head(host=b""),
        head(host=HOST + HOST),
    ],
)
def test_everything_else_is_for_the_general_path(data: bytes) -> None:
    """Nothing is decided about it here, and nothing remembered."""
    front = listener()
    assert fast_path._prepare(data, front) is None
    assert front.fast_requests == {}


def test_a_route_may_have_observers_and_fallback_sources() -> None:
    """They see plain exchanges as they see others."""
    seen = Hooks(started=print, finished=print, fallback_source=FallbackSource(needs_body=False))
    assert fast_path._prepare(head(), listener(Asking(seen))) is not None


@pytest.mark.parametrize(
    "hooks",
    [
        Hooks(request=print),
        Hooks(filter=lambda x: None),
        Hooks(fallback_source=FallbackSource(needs_body=True)),
    ],
    ids=["check", "filter", "reads answers"],
)
def test_a_route_that_decides_is_for_the_general_path(hooks: Hooks) -> None:
    """Refusing, filtering and reading an answer first are not for two callbacks."""
    assert fast_path._prepare(head(), listener(Asking(hooks))) is None


@pytest.mark.parametrize(
    ("targets", "host", "qualifies"),
    [(1, "upstream", True), (2, "upstream", False), (1, "preserve", True), (2, "preserve", True)],
)
def test_the_host_must_not_depend_on_the_target(targets: int, host: str, qualifies: bool) -> None:
    """The frame is written before a target is chosen, so its Host must suit every target."""
    addresses = [f"http://127.0.0.1:{number}" for number in range(1, targets + 1)]
    request = fast_path._prepare(head(), listener(targets=addresses, host=host))
    assert (request is not None) == qualifies


def test_an_upstream_with_a_bulkhead_is_for_the_general_path() -> None:
    """Who asks for a place in a queue may have to wait for it."""
    assert fast_path._prepare(head(), listener(bulkhead={"max_concurrent": 5})) is None


def test_a_request_with_an_id_of_its_own_is_not_remembered() -> None:
    """It will not come again, and must not push others out."""
    front = listener()
    assert fast_path._prepare(head(b"GET / HTTP/1.1", b"X-Correlation-ID: a"), front) is not None
    assert front.fast_requests == {}


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never asks the same twice cannot make it grow."""
    monkeypatch.setattr(fast_path, "_MEMO", 10)
    front = listener()
    for number in range(25):
        fast_path._prepare(head(b"GET /%d HTTP/1.1" % number), front)
        assert len(front.fast_requests) <= 10


@pytest.fixture
def hot() -> Iterator[HotExchange]:
    """A client and an upstream that have exchanged two messages already."""
    made = hot_exchange()
    yield made
    made.close()


@pytest.mark.parametrize("shut", [False, True])
def test_the_coroutine_sleeps_through_plain_exchanges(
    monkeypatch: pytest.MonkeyPatch, shut: bool
) -> None:
    """That is what the path is for; with it shut, the two reads of an exchange wake it."""
    if shut:
        monkeypatch.setattr(fast_path, "_prepare", lambda data, listener: None)
    steps: list[ClientStream] = []
    step = ClientStream._step

    def counted(client: ClientStream, future: object = None) -> None:
        steps.append(client)
        step(client, future)

    monkeypatch.setattr(ClientStream, "_step", counted)
    with closing(hot_exchange()) as exchange:  # made here: it has remembered its request
        steps.clear()
        for _ in range(10):
            exchange()
        assert len(steps) == (20 if shut else 0)


def test_a_defect_of_a_hook_is_answered_and_gives_the_connection_back(
    hot: HotExchange, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 as on the general path, with a traceback in the log."""

    def fail(tally: RouteTally, facts: object = None) -> None:
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as broken:
        # Hooks were bound at load: only what they do can still be exchanged.
        broken.setattr(RouteTally.begin, "__code__", fail.__code__)
        hot.client.data_received(REQUEST)
    assert hot.answer.written.startswith(b"HTTP/1.1 500 ")
    assert "broken on purpose" in caplog.text
    assert hot.upstream.pool.active_connections == 0
