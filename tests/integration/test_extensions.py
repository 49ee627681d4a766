"""Stages of somebody else's on a route (`use`): what they can do, and how they fail."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml
from aiohttp import web
from pydantic import ConfigDict, field_validator

from proxy import extend
from proxy.cli.main import main
from proxy.config import extensions
from proxy.config.json_schema import json_schema
from proxy.embed import CannotReload, CannotStart, ReliabilityProxy
from tests.jobs_kit import eventually

SEEN: list[Any] = []

#: Requests that an asynchronous hook has been asked about, and what it waits for.
ASKED: list[extend.Request] = []
GATES: dict[str, asyncio.Event] = {}


class Evil:
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError


class Script(extend.Stage):
    """Does what its settings say."""

    class Settings(extend.Settings):
        do: str = ""
        count: int = 1
        secret: extend.Secret | None = None
        upstream: extend.UpstreamName | None = None
        timeout: float = 30.0

    def bind(self, route: extend.Route) -> extend.Hooks | None:
        do = self.settings.do
        if do == "bind fails":
            raise LookupError("no table of tenants")
        if do == "nothing":
            return None
        if do == "no hooks":
            return self.on_request  # type: ignore[return-value]
        if do == "arguments":
            return extend.Hooks(response=self.on_request)  # type: ignore[arg-type]
        if do.startswith("return"):
            return extend.Hooks(request=self.returns)  # type: ignore[arg-type]
        if do == "async":
            return extend.Hooks(response=self._later)  # type: ignore[arg-type]
        if do.startswith("wait"):
            return extend.Hooks(self.decide, None, self.on_finished, timeout=self.settings.timeout)
        if do.startswith("answer") or do == "late":
            return extend.Hooks(response=self.on_response)
        if do.startswith("finished"):
            return extend.Hooks(finished=self.on_finished)
        return extend.Hooks(self.on_request, None, self.on_finished)

    async def _later(self, request: extend.Request) -> None:
        pass

    async def decide(self, request: extend.Request) -> object:
        ASKED.append(request)
        if (gate := GATES.get(self.settings.do)) is not None:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                SEEN.append("cancelled")
                raise
        await asyncio.sleep(0)
        if self.settings.do == "wait return":
            return extend.Refused(403, "No")
        self.on_request(request)
        return None

    def returns(self, request: extend.Request) -> object:
        if self.settings.do == "return refusal":
            return extend.Refused(403, "No")
        return self._later(request)

    def on_request(self, request: extend.Request) -> None:
        SEEN.append(request)
        match self.settings.do.removeprefix("wait "):
            case "raise":
                raise ZeroDivisionError("secrets of the stage")
            case "sleep":
                time.sleep(0.06)
            case "circle":
                error = extend.Refused(403, "No")
                raise error from error
            case "refuse":
                raise extend.Refused(429, "Too fast", code="too_fast", retry_after=3, quota=5)
            case "exit":
                sys.exit(3)
            case "cancel":
                raise asyncio.CancelledError
            case "challenge":
                raise extend.Refused(401, "Who are you?", challenge='Basic realm="x"')
            case "evil log":
                request.log(status=200, evil=Evil())
            case "smuggle":
                request.set_header("X-Tenant", "a\r\nX-Admin: 1")
            case "frame":
                request.remove_header("Content-Length")
            case "much log":
                request.log(
                    much="x" * 100_000, deep=CYCLE, raw=b"x", **{str(n): n for n in range(99)}
                )
            case "large":
                request.set_header("X-Tenant", "a" * 10_000)
            case "too many":
                for number in range(10):
                    request.set_header(f"X-Tenant-{number}", "a" * 4000)
            case "assign":
                request.method = "DELETE"  # type: ignore[misc]
            case "nowhere":
                request.use_upstream("nowhere")
            case "other":
                request.use_upstream(self.settings.upstream)
            case "tag":
                request.set_header("X-Tag", str(self.settings.count))
                request.remove_header("Cookie")

    def on_response(self, request: extend.Request, response: extend.Response) -> None:
        if self.settings.do == "answer fails":
            raise ZeroDivisionError
        if self.settings.do == "late":
            request.set_header("X-Tag", "too late: the upstream has the request")
        if self.settings.do == "answer refused" and response.headers["Content-Type"]:
            raise extend.Refused(502, f"The answer {response.status} is not for you")
        response.set_header("X-Tag", "answer")
        response.add_header("Set-Cookie", "a=1")
        response.add_header("Set-Cookie", "b=2")
        response.remove_header("Server")

    def on_finished(self, request: extend.Request, outcome: extend.Outcome) -> None:
        SEEN.append(outcome)
        if self.settings.do == "finished fails":
            raise ZeroDivisionError
        if self.settings.do == "finished refuses":
            raise extend.Refused(403, "There is nobody left to refuse")


class Demanding(extend.Stage):
    """Wants a key, and has defaults as they are written in a config."""

    class Settings(extend.Settings):
        key: str
        slow: extend.Duration = "500ms"  # type: ignore[assignment]
        fast: extend.Duration = 0.1
        share: extend.Ratio = "20%"  # type: ignore[assignment]
        secret: extend.Secret = "hush"  # type: ignore[assignment]
        upstream: extend.UpstreamName = "othr"


class Thing:
    """A type that neither JSON nor a schema knows."""


class Odd(extend.Stage):
    """Its settings are checked and held in ways of their own."""

    class Settings(extend.Settings):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        thing: Thing | None = None
        tokens: dict[str, list[extend.Secret]] = {}  # noqa: RUF012
        broken: int = 0

        @field_validator("thing", mode="before")
        @classmethod
        def made(cls, value: object) -> Thing:
            """Of anything."""
            return Thing()

        @field_validator("broken")
        @classmethod
        def fails(cls, value: int) -> int:
            """By something else than a ValueError."""
            raise LookupError(f"hush {value}")

    def bind(self, route: extend.Route) -> None:
        """Nothing to do."""


class Bare(extend.Stage):
    """Has no settings."""


class Holding(extend.Stage):
    """Holds something open, and waits with its request."""

    class Settings(extend.Settings):
        name: str
        fails: bool = False

    def bind(self, route: extend.Route) -> extend.Hooks:
        if self.settings.name == "refused":
            raise LookupError
        return extend.Hooks(self.wait)

    async def wait(self, request: extend.Request) -> None:
        """Until it may go on."""
        ASKED.append(request)
        if (gate := GATES.get(self.settings.name)) is not None:
            await gate.wait()
        assert self.settings.name not in SEEN, "it is open"

    async def close(self) -> None:
        """That it is called is seen."""
        SEEN.append(self.settings.name)
        if self.settings.fails:
            raise ConnectionError


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage, where the config finds it."""
    module: Any = ModuleType("scripts")
    module.Script = Script
    module.Demanding = Demanding
    module.Odd = Odd
    module.Bare = Bare
    module.Holding = Holding
    module.number = 5
    monkeypatch.setitem(sys.modules, "scripts", module)
    SEEN.clear()
    ASKED.clear()
    GATES.clear()


def use(do: str, **settings: Any) -> dict[str, Any]:
    """An entry of `use`."""
    return {"scripts:Script": {"do": do, **settings}}


def config(*uses: Any, **route: Any) -> dict[str, Any]:
    """A route with these stages, and one without any."""
    routes = [
        {"name": "free", "path": "/free", "upstream": "app"},
        {"name": "used", "path": "/{rest:*}", "upstream": "app", "use": list(uses), **route},
    ]
    return {
        "listeners": {"front": {"bind": "127.0.0.1:0", "routes": routes}},
        "upstreams": {
            "app": {"targets": ["http://127.0.0.1:1"], "breaker": {"failure_threshold": 1}},
            "other": {"targets": ["http://127.0.0.1:1"]},
        },
    }


def app(name: str) -> web.Application:
    """Echoes what came."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(message.data)
            return socket
        if request.path == "/events":
            events = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await events.prepare(request)
            for number in (1, 2):
                await events.write(b"data: %d\n\n" % number)
            return events
        return web.json_response({"app": name, "fields": dict(request.headers)})

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", answer)
    return application


class Answer(NamedTuple):
    """What a client sees."""

    status: int
    headers: Any
    json: Any


class Client:
    """Asks one proxy."""

    def __init__(self, proxy: ReliabilityProxy, session: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self._session = session

    async def get(self, path: str = "/x", **headers: str) -> Answer:
        url = self.proxy.url("front", path)
        async with self._session.get(url, headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.json(content_type=None))

    async def post(self, body: bytes) -> Answer:
        async with self._session.post(self.proxy.url("front", "/x"), data=body) as answer:
            return Answer(answer.status, answer.headers, await answer.json(content_type=None))

    async def metrics(self) -> str:
        async with self._session.get(self.proxy.admin_url + "/metrics") as answer:
            return await answer.text()


@asynccontextmanager
async def site(*uses: Any, **route: Any) -> AsyncIterator[Client]:
    """A proxy with these stages."""
    apps = {"app": app("app"), "other": app("other")}
    async with (
        ReliabilityProxy(config(*uses, **route), apps=apps) as proxy,
        aiohttp.ClientSession() as session,
    ):
        yield Client(proxy, session)


async def test_a_request_is_seen_and_annotated() -> None:
    """All stages see the same request; the later one has the last word, over the route's own."""
    headers = {"request": {"set": {"X-Tag": "route", "X-Route": "1"}}}
    async with site(use("tag"), use("tag", count="2"), headers=headers) as client:
        answer = await client.get("/a%20b?c=d&c=e", Cookie="k=v; broken", **{"X-Tag": "client"})
        fields = answer.json["fields"]
        assert (fields["X-Tag"], fields["X-Route"]) == ("2", "1")
        assert "Cookie" not in fields
    request = SEEN[0]
    assert request is SEEN[1]
    assert (request.path, request.query.getall("c")) == ("/a b", ["d", "e"])
    assert request.headers["x-tag"] == "client"
    assert request.cookies.get("k") == "v"
    assert (SEEN[2].status, SEEN[2].upstream) == (200, "app")


async def test_an_answer_is_seen_and_annotated() -> None:
    """Its head, and nothing else of it, can be changed."""
    async with site(use("answer")) as client:
        answer = await client.get()
        assert answer.headers["X-Tag"] == "answer"
        assert "Server" not in answer.headers
        assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert answer.json["app"] == "app"
        assert "X-Tag" not in (await client.get("/free")).headers


async def test_another_upstream() -> None:
    """It is asked instead, with its own breaker and name."""
    async with site(use("other", upstream="other")) as client:
        assert (await client.get()).json["app"] == "other"
    assert SEEN[-1].upstream == "other"


async def test_a_refusal_is_a_problem_document() -> None:
    """With the stage's own status, code and facts; the upstream is not asked."""
    async with site(use("refuse"), use("tag")) as client:
        answer = await client.get()
        assert answer.status == 429
        assert answer.json["code"] == "too_fast"
        assert answer.json["quota"] == 5
        assert answer.headers["Retry-After"] == "3"
    assert SEEN[-1].code == "too_fast"
    assert SEEN[-1].upstream is None


@pytest.mark.parametrize("do", ["circle", "wait circle"])
async def test_a_refusal_may_come_from_itself(do: str) -> None:
    """A chain of causes that never ends must not hold up the event loop."""
    async with site(use(do)) as client:
        assert (await client.get()).status == 403
        assert (await client.get("/free")).status == 200


async def test_an_answer_may_be_refused() -> None:
    """That is no failure of the upstream's: its breaker stays closed."""
    async with site(use("answer refused")) as client:
        for _ in range(3):
            answer = await client.get()
            assert (answer.status, answer.json["code"]) == (502, "refused")
        assert 'circuit_breaker_state{service="app"} 0.0' in await client.metrics()


async def test_a_challenge_goes_with_401() -> None:
    """As RFC 9110 wants it."""
    async with site(use("challenge")) as client:
        answer = await client.get()
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="x"')


async def test_facts_for_the_log_harm_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the fixed fields of the line nor the request."""
    caplog.set_level(logging.INFO)
    async with site(use("evil log"), use("refuse")) as client:
        assert (await client.get()).status == 429
        assert (await client.get("/free")).status == 200
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "proxy.access"]
    assert lines[-1]["path"] == "/free"
    assert all(line["status"] == 429 for line in lines[:-1])


@pytest.mark.parametrize(
    "do",
    [
        *("raise", "exit", "cancel", "smuggle", "frame", "nowhere", "answer fails", "large"),
        *("too many", "assign", "late", "wait raise", "wait exit", "wait cancel", "wait smuggle"),
    ],
)
async def test_a_stage_that_raises_fails_its_request_alone(
    do: str, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with its name, here, in the log and in the metrics; others are served."""
    async with site(use(do)) as client:
        answer = await client.get()
        assert (answer.status, answer.json["code"]) == (500, "stage_failed")
        assert answer.json["stage"] == "scripts:Script"
        assert "secrets" not in str(answer.json)
        assert (await client.get("/free")).status == 200
        metrics = await client.metrics()
        assert 'proxy_stage_failures_total{stage="scripts:Script"} 1.0' in metrics
        assert 'circuit_breaker_state{service="app"} 0.0' in metrics
    (record,) = [r for r in caplog.records if r.getMessage() == "stage failed"]
    assert record.exc_info is not None
    assert record.__dict__["stage"] == "scripts:Script"


@pytest.mark.parametrize("do", ["finished fails", "finished refuses"])
async def test_one_that_raises_when_all_is_over(do: str, caplog: pytest.LogCaptureFixture) -> None:
    """The client has its answer; log and metric have the name."""
    async with site(use(do)) as client:
        assert (await client.get()).status == 200
        assert (await client.get()).status == 200
        metrics = await client.metrics()
        assert 'proxy_stage_failures_total{stage="scripts:Script"} 2.0' in metrics
    assert "stage failed" in caplog.messages


def slow(metrics: str) -> float:
    """How often the script has blocked the event loop."""
    (line,) = (one for one in metrics.splitlines() if one.startswith("proxy_stage_slow_total{"))
    return float(line.rpartition(" ")[2])


async def test_one_that_blocks_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """In the log once for a while, in the metrics each time."""
    caplog.set_level(logging.WARNING)
    async with site(use("sleep")) as client:
        assert [(await client.get()).status for _ in range(3)] == [200, 200, 200]
        assert slow(await client.metrics()) >= 3, "more where this machine stood still"
    records = [r for r in caplog.records if "blocked the event loop" in r.getMessage()]
    assert [r.__dict__["stage"] for r in records] == ["scripts:Script"]


@pytest.mark.parametrize(
    ("do", "complaint"),
    [
        ("bind fails", "route used: stage scripts:Script: LookupError: no table of tenants"),
        ("async", "_later is async: only the hook for a request may wait"),
    ],
)
async def test_one_that_cannot_be_bound(do: str, complaint: str) -> None:
    """The start is refused with its name and route, and so is a reload, which changes nothing."""
    with pytest.raises(CannotStart, match=complaint):
        await ReliabilityProxy(config(use(do))).start()
    async with site(use("tag")) as client:
        with pytest.raises(CannotReload, match=complaint):
            await client.proxy.reload(config(use(do)))
        assert (await client.get()).json["fields"]["X-Tag"] == "1"


async def test_a_reload_swaps_stages() -> None:
    """New settings, and then none at all."""
    async with site(use("tag")) as client:
        await client.proxy.reload(config(use("tag", count=7)))
        assert (await client.get()).json["fields"]["X-Tag"] == "7"
        await client.proxy.reload(config())
        assert "X-Tag" not in (await client.get()).json["fields"]


async def test_no_spelling_gets_around_a_stage() -> None:
    """A route with stages is found by other spellings of its path, and by HEAD."""
    async with site(use("refuse"), path="/admin", methods=["GET"]) as client:
        for path in ("/admin", "/admin/", "//admin", "/%61dmin", "/ADMIN"):
            assert (await client.get(path)).status == 429


async def test_the_config_shows_no_secrets() -> None:
    """`/api/config` has the stages with their settings, secrets masked, however deep, and whatever
    JSON has no word for by its type."""
    odd = {"scripts:Odd": {"thing": 5, "tokens": {"a": ["hush-hush"]}}}
    async with (
        site(use("tag", secret="hush-hush"), odd) as client,
        aiohttp.ClientSession() as session,
        session.get(client.proxy.admin_url + "/api/config") as answer,
    ):
        text = await answer.text()
    assert "hush-hush" not in text
    used, odd = json.loads(text)["listeners"]["front"]["routes"][1]["use"]
    assert used["scripts:Script"]["do"] == "tag"
    assert odd["scripts:Odd"] == {"thing": "<Thing>", "tokens": {"a": ["***"]}, "broken": 0}


def test_check_names_file_line_and_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All problems of all stages at once, with hints, and no secret in any."""
    file = tmp_path / "proxy.yaml"
    uses = [
        {"scripts:Script": {"count": "many", "doo": "x", "secret": ["hush"]}},
        {"scripts:Script": {"upstream": "othr"}},
        {"scripts:number": None},
        "scripts:Absent",
        "scripts:Scirpt",
        "scripts:Demanding",
        "tag-tenant",
        {"a": 1, "b": 2},
        {"scripts:Script": None},
        "scripts:Script",
        {"scripts:Odd": {"broken": 1}},
        {"scripts:Bare": {"a": 1}},
    ]
    file.write_text(yaml.safe_dump(config(*uses)), encoding="utf-8")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert main(["check", "--config", str(file)]) == 2
    printed = capsys.readouterr()
    complaint = printed.out + printed.err
    place = "listeners.front.routes[1].use"
    line = next(n for n, text in enumerate(lines, 1) if "count: many" in text)
    where = f"{file}:{line}: {place}[0].scripts:Script"
    assert f"{where}.count: expected a whole number, found 'many'" in complaint
    assert "did you mean 'do'?" in complaint
    assert f"{place}[1].scripts:Script.upstream: expected the name of an upstream" in complaint
    assert "did you mean 'other'?" in complaint
    assert f"{place}[2]: " in complaint
    assert "'scripts:number' is not a subclass of proxy.extend.Stage" in complaint
    assert "scripts has no Absent" in complaint
    assert (
        "no stage 'tag-tenant' is installed (there are: none; others are MODULE:CLASS)" in complaint
    )
    assert "scripts has no Scirpt (did you mean 'Script'?)" in complaint
    assert f"{place}[5].scripts:Demanding.key: expected this key, found nothing" in complaint
    assert f"{place}[7]: expected the name of one stage" in complaint
    assert f"{place}[8]" not in complaint
    assert f"{place}[9]" not in complaint
    assert (
        f"{place}[10]: expected settings that 'scripts:Odd' can read: its Settings raised"
        in complaint
    )
    assert f"LookupError ({__file__}, line " in complaint
    assert f"{place}[11].scripts:Bare.a: expected no key here, found 'a'" in complaint
    assert "hush" not in complaint


def test_defaults_are_read_as_values_are() -> None:
    """A stage never gets the text of a duration; a number of seconds is one already."""
    settings = Demanding.Settings.model_validate({"key": "x"})
    assert (settings.slow, settings.fast, settings.share) == (0.5, 0.1, 0.2)
    assert settings.secret.get_secret_value() == "hush"


def test_an_upstream_by_default_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that is written."""
    file = tmp_path / "proxy.yaml"
    text = yaml.safe_dump(config({"scripts:Demanding": {"key": "x"}}))
    file.write_text(text, encoding="utf-8")
    assert main(["check", "--config", str(file)]) == 2
    assert "did you mean 'other'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        ("import no_such_thing\n", "No module named 'no_such_thing' ({file}, line 1)"),
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero ({file}, line 2)"),
        ("def f(:\n", "SyntaxError: invalid syntax (broken_stage.py, line 1)"),
        (None, "(broken_stage is looked up on Python's path, then in "),
    ],
)
def test_a_module_that_does_not_import_is_reported_with_its_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str | None,
    complaint: str,
) -> None:
    """The line that failed is the module's, not the proxy's."""
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "broken_stage.py"
    if module is not None:
        source.write_text(module, encoding="utf-8")
    file = tmp_path / "proxy.yaml"
    file.write_text(yaml.safe_dump(config("broken_stage:Stage")), encoding="utf-8")
    assert main(["check", "--config", str(file)]) == 2
    assert complaint.format(file=source) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("do", "complaint"),
    [
        ("no hooks", "bind returned method: expected Hooks or None"),
        ("arguments", "on_request cannot be called as on_request(request, response): too many"),
    ],
)
async def test_hooks_that_cannot_work_keep_the_proxy_from_starting(do: str, complaint: str) -> None:
    """They would fail with every request."""
    with pytest.raises(CannotStart) as failed:
        await ReliabilityProxy(config(use(do))).start()
    assert complaint in str(failed.value)


@pytest.mark.parametrize("do", ["return refusal", "return coroutine", "wait return"])
@pytest.mark.filterwarnings("ignore:coroutine")
async def test_a_refusal_that_is_returned_lets_nothing_through(do: str) -> None:
    """It would have no effect: the request fails, as if the stage had raised."""
    async with site(use(do)) as client:
        answer = await client.get()
        assert (answer.status, answer.json["code"]) == (500, "stage_failed")


def hold(name: str, **settings: Any) -> dict[str, Any]:
    """An entry of `use` for a stage that holds something."""
    return {"scripts:Holding": {"name": name, **settings}}


async def test_stages_are_closed_when_nobody_uses_them(caplog: pytest.LogCaptureFixture) -> None:
    """Once each: after a reload, when the last request that began with it is over, be there new
    ones or none; after a reload that was refused; and at the stop, whatever closing raises."""
    gate = GATES["one"] = asyncio.Event()
    async with site(hold("one")) as client:
        asking = asyncio.create_task(client.get())
        await eventually(lambda: len(ASKED) == 1, "a request has begun")
        await client.proxy.reload(config(hold("two", fails=True)))
        assert (await client.get()).status == 200
        assert SEEN == [], "the first one still has a request"
        gate.set()
        assert (await asking).status == 200
        await eventually(lambda: SEEN == ["one"], "and now it has none")
        with pytest.raises(CannotReload):
            await client.proxy.reload(config(hold("never"), hold("refused")))
        assert (await client.get()).status == 200
        await client.proxy.reload(config())
        await eventually(lambda: set(SEEN[1:]) == {"two", "never", "refused"}, "no stage any more")
        await client.proxy.reload(config(hold("three"), hold("four")))
        assert (await client.get()).status == 200
        assert len(SEEN) == 4
    assert set(SEEN[4:]) == {"three", "four"}
    assert len(SEEN) == 6
    assert caplog.messages.count("stage not closed") == 1


async def test_stages_of_a_start_that_fails_are_closed() -> None:
    """Nothing is left open."""
    with pytest.raises(CannotStart):
        await ReliabilityProxy(config(hold("one"), hold("refused"))).start()
    assert set(SEEN) == {"one", "refused"}


def ended() -> list[int]:
    """The statuses of those that have come to their end."""
    return [seen.status for seen in SEEN if isinstance(seen, extend.Outcome)]


class Point(NamedTuple):
    """An entry point."""

    value: str


async def test_installed_stages_have_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found by entry point, and the JSON Schema knows their settings."""
    before = json_schema()
    points = {"script": Point("scripts:Script"), "odd": Point("scripts:Odd")}
    points["absent"] = Point("scripts:Absent")
    monkeypatch.setattr(extensions, "entry_points", lambda group: [])
    assert json_schema() == before
    monkeypatch.setattr(extensions, "installed", lambda: points)
    monkeypatch.setattr("proxy.config.json_schema.installed", extensions.installed)
    members = json_schema()["$defs"]["Route"]["properties"]["use"]["items"]["anyOf"]
    (item,) = [member for member in members if member.get("type") == "object"]
    assert item["properties"]["odd"] == {}, "nobody can say what it takes"
    assert "absent" not in item["properties"]
    known = item["properties"]["script"]["anyOf"][0]
    assert set(known["properties"]) == {"do", "count", "secret", "timeout", "upstream"}
    async with site({"script": {"do": "tag"}}) as client:
        assert (await client.get()).json["fields"]["X-Tag"] == "1"


@pytest.mark.parametrize(
    "make",
    [
        lambda: extend.Refused(200, "fine"),
        lambda: extend.Refused(599, "unknown"),
        lambda: extend.Refused(400, "x", code="Bad Code"),
        lambda: extend.Refused(429, "x", retry_after=-1),
        lambda: extend.Refused(429, "x", retry_after=float("nan")),
    ],
)
def test_a_refusal_is_an_error(make: Any) -> None:
    """Statuses that are none, and codes that make poor labels, are refused where they are made."""
    with pytest.raises(ValueError, match="expected"):
        make()


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ((403, "x" * 3000), {}),
        ((403, None), {}),
        ((403, "x"), {"correlation_id": "mine"}),
        ((403, "x"), {"cycle": CYCLE}),
        ((403, "x"), {"number": float("inf")}),
        ((403, "x"), {"much": "x" * 10_000}),
        ((429, "x"), {"retry_after": "soon"}),
        ((401, "x"), {"challenge": "Basic\r\nX-Admin: 1"}),
    ],
)
def test_a_refusal_that_cannot_be_written(arguments: Any, facts: dict[str, Any]) -> None:
    """It is refused where it is made: in the stage, by its line, not as the answer is written."""
    with pytest.raises((ValueError, TypeError)):
        extend.Refused(*arguments, **facts)


def test_members_of_a_refusal_are_members() -> None:
    """What the proxy's own errors mean by such a name is not meant: no field, no close."""
    refused = extend.Refused(405, "a\ud800b", allow="GET\r\nX: 1", close=True, reason="mine")
    assert (refused.allow, refused.close, refused.reason) == (None, False, None)
    assert refused.facts == {"allow": "GET\r\nX: 1", "close": True, "reason": "mine"}
    assert refused.detail == "a\\ud800b"


async def test_a_request_may_be_decided_later() -> None:
    """A hook that waits has its turn in order: what it sets, the later one sees it set; meanwhile
    others are served, and the upstream knows nothing."""
    gate = GATES["wait tag"] = asyncio.Event()
    async with site(use("tag"), use("wait tag", count=2), use("wait other", upstream="other")) as s:
        asking = asyncio.create_task(s.get())
        await eventually(lambda: len(ASKED) == 1, "it is asked")
        assert (await s.get("/free")).status == 200
        assert not asking.done()
        gate.set()
        answer = await asking
        assert answer.json["app"] == "other"
        assert answer.json["fields"]["X-Tag"] == "2"


async def test_a_later_decision_may_be_a_refusal() -> None:
    """As one at once; of an upload nothing has been read."""
    async with site(use("wait refuse")) as client:
        answer = await client.post(b"x" * 1_000_000)
        assert (answer.status, answer.json["code"]) == (429, "too_fast")
    assert SEEN[-1].upstream is None


async def test_a_decision_has_its_time(caplog: pytest.LogCaptureFixture) -> None:
    """After it the request fails, and the hook is ended."""
    GATES["wait"] = asyncio.Event()
    async with site(use("wait", timeout=0.05)) as client:
        answer = await client.get()
        assert (answer.status, answer.json["code"]) == (500, "stage_failed")
        assert "no decision within 0.05 s" in answer.json["detail"]
        assert 'proxy_stage_failures_total{stage="scripts:Script"} 1.0' in await client.metrics()
    assert SEEN[0] == "cancelled"
    assert "stage failed" in caplog.messages


async def test_a_client_that_leaves_ends_the_decision() -> None:
    """That is nobody's failure."""
    GATES["wait"] = asyncio.Event()
    async with site(use("wait")) as client:
        asking = asyncio.create_task(client.get())
        await eventually(lambda: len(ASKED) == 1, "it is asked")
        asking.cancel()
        await eventually(lambda: SEEN[:1] == ["cancelled"], "the hook is ended")
        assert 'proxy_stage_failures_total{stage="scripts:Script"} 0.0' in await client.metrics()


async def test_one_that_waits_and_blocks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its waits cost nobody anything; the steps between them do."""
    caplog.set_level(logging.WARNING)
    async with site(use("wait sleep")) as client:
        assert (await client.get()).status == 200
        assert slow(await client.metrics()) >= 1
    assert "stage blocked the event loop: every request waited for it" in caplog.messages


async def test_a_time_that_is_none_keeps_the_proxy_from_starting() -> None:
    """A decision that never comes would hold its client for ever."""
    with pytest.raises(CannotStart, match=r"timeout is 0\.0: expected seconds, 60 at most"):
        await ReliabilityProxy(config(use("wait", timeout=0))).start()


async def test_facts_for_the_log_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Nor do they cost the line."""
    caplog.set_level(logging.INFO)
    async with site(use("much log")) as client:
        assert (await client.get()).status == 200
    (line,) = [r.getMessage() for r in caplog.records if r.name == "proxy.access"]
    assert len(line) < 2000
    assert json.loads(line)["much"].startswith("xxx")


async def test_websockets_and_event_streams_have_stages() -> None:
    """A switch of protocols is an answer like any other; the end comes with the end."""
    async with site(use("answer"), use("wait tag")) as client, aiohttp.ClientSession() as session:
        async with session.ws_connect(client.proxy.url("front", "/ws")) as socket:
            await socket.send_str("hello")
            assert (await socket.receive_str(timeout=30)) == "hello"
            assert socket._response.headers["X-Tag"] == "answer"
            assert ended() == []
        await eventually(lambda: ended() == [101], "the end")
        async with session.get(client.proxy.url("front", "/events")) as answer:
            assert answer.headers["X-Tag"] == "answer"
            assert await answer.text() == "data: 1\n\ndata: 2\n\n"
        await eventually(lambda: ended() == [101, 200], "the end")
