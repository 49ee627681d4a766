"""The status page in a real browser: what a person sees, clicks, types, and hears."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer
from tests.browser.chromium import Chromium, missing
from tests.http1 import PATIENCE
from tests.http1.client import RawClient
from tests.http1.process import ProxyProcess, free_port
from tests.http1.site import Site, get
from tests.http1.upstream import Upstream, answer, ok, respond
from tests.jobs_kit import INDEX, PREFIX
from tests.jobs_site import client_of, new
from tests.status_site import TOKEN, SiteThread

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.slow,
]

ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>"
SIZES = {"desktop": (1280, 900, False), "phone": (390, 844, True)}

STAGES = {
    "analyze_audio": {
        "display_name": "Analyzing audio",
        "status": "completed",
        "started_at": "2026-11-23T13:21:42-03:00",
        "completed_at": "2026-11-23T13:21:44.5-03:00",
    },
    "load_approved": {"display_name": ATTACK, "status": "failed", "error_message": ATTACK},
}


class House:
    """A proxy with a route to callers, one to a service with a breaker, and jobs in Redis."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.app, self.search = Upstream(), Upstream()
        self.redis = client_of(server)
        self.front, self.back = free_port(), free_port()
        role = {"mirror": "make_video", "reads": "job_id"}
        self.proxy = ProxyProcess(
            folder,
            {
                "listeners": {
                    "front": {
                        "bind": f"127.0.0.1:{self.front}",
                        "routes": [
                            {"name": "status", "path": "/jobs/{job_id}", "upstream": "app",
                             "job": role},
                            {"name": "other", "path": "/{rest:*}", "upstream": "app"},
                        ],
                    },
                    "back": {
                        "bind": f"127.0.0.1:{self.back}",
                        "direction": "egress",
                        "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "search"}],
                    },
                },
                "upstreams": {
                    "app": {"targets": [self.app.url]},
                    "search": {
                        "targets": [self.search.url],
                        "breaker": {"failure_threshold": 3, "open_for": "10m"},
                    },
                },
                "redis": {"url": server.url},
                "mirrors": {
                    "make_video": {
                        "key": PREFIX + "{job_id}", "index": INDEX,
                        "sqlite": str(folder / "jobs.db"),
                    }
                },
                "drain_timeout": "1s",
            },
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.proxy.admin_port}"

    def call(self, port: int, path: str = "/x") -> int:
        """The status of a GET."""
        with RawClient(("127.0.0.1", port)) as client:
            client.send_lenient(get(path))
            return client.response("GET").status

    def write(self, job_id: str, status: str, **more: Any) -> None:
        """As the worker does."""
        self.redis.set(PREFIX + job_id, new(job_id, status, **more), ex=86400)

    def restart(self) -> None:
        """The proxy again, after its end, on the same ports."""
        self.proxy.process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "run", "--config", str(self.proxy.file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.proxy.wait_ready()

    def well(self) -> None:
        """As at the beginning."""
        self.search.handler = ok
        self.proxy.admin_post("/api/breakers/search/reset")

    def stop(self) -> None:
        self.proxy.stop()
        self.app.stop()
        self.search.stop()
        self.redis.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One for all tests: each begins with another page."""
    with Chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def fresh(browser: Chromium) -> Iterator[None]:
    """An ordinary window; afterwards the console must have been silent, but for answers that a test
    provokes: it reads those itself."""
    browser.size(*SIZES["desktop"][:2])
    browser.scheme("light")
    browser.open("about:blank")
    browser.console()
    yield
    assert browser.console() == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With one job that failed, under an error that would like to be a program."""
    folder = tmp_path_factory.mktemp("house")
    server = RedisServer(folder / "redis")
    server.start()
    house = House(folder, server)
    house.write("mv_bad", "failed", stages=STAGES, error={"message": ATTACK})
    house.write("mv_good", "completed", progress=100.0, stages={"a": STAGES["analyze_audio"]})
    yield house
    house.stop()
    server.kill()


@pytest.fixture
def house(built: House) -> House:
    """The one house, in order."""
    built.well()
    return built


@contextmanager
def silent_console(browser: Chromium) -> Iterator[None]:
    """Network answers of 4xx and 5xx that are part of the test are no fault of the page."""
    yield
    assert [line for line in browser.console() if "Failed to load resource" not in line] == []


def accessible(browser: Chromium) -> list[str]:
    """What axe-core finds wrong with what is shown."""
    script = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    browser.run(script)
    found = browser.run_async(
        "const done = arguments[0];"
        "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations),"
        " e => done([{id: String(e), nodes: []}]))"
    )
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        for node in one["nodes"] or [{"html": ""}]
    ]


def narrow_enough(browser: Chromium) -> bool:
    """Nothing sticks out at the side."""
    return bool(
        browser.run(
            "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
    )


def test_health_and_figures_are_live(house: House, browser: Chromium) -> None:
    """The sentence names the trouble; figures come by themselves; a breaker that opens is shown."""
    house.call(house.front)
    browser.open(house.url)
    browser.wait_for_text("Live", ".live")
    browser.wait_for_text("Job mv_bad failed lately", ".sentence")
    browser.wait(lambda: "1 failed" not in browser.text("#routes"), "routes")
    house.search.handler = answer(respond(b"no", "503 Busy"))
    assert [house.call(house.back) for _ in range(4)] == [503] * 4
    browser.wait_for_text("search is cut off", ".sentence")
    browser.wait_for_text("Open", "#services .card.error .badge")
    browser.wait_for_text("Tries again in", "#services")
    browser.wait_for_text("100%", "#routes")
    browser.wait(lambda: "cut off" in browser.run("return document.title"), "the title")
    # A click on the sentence leads to the service, and the back button from there.
    browser.click(".sentence a")
    browser.wait_for_text("Last failures")
    assert "upstream=search" in browser.url
    browser.wait_for_text("Answered 503", "#breaker")
    # A chart tells of the moment under the pointer.
    browser.wait_for_text("now", ".chart figcaption")
    browser.hover(".chart .field")
    browser.wait_for_text("1 min ago", ".chart figcaption")
    browser.back()
    browser.wait_for_text("Recent errors")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_view_is_accessible_and_fits(
    house: House, browser: Chromium, size: str, scheme: str
) -> None:
    """axe-core finds nothing on any view, and nothing has to be scrolled sideways."""
    house.search.handler = answer(respond(b"no", "503 Busy"))
    for _ in range(4):
        house.call(house.back)
    width, height, phone = SIZES[size]
    browser.size(width, height, phone=phone)
    browser.scheme(scheme)
    for query, wanted in {
        "": "search is cut off",
        "?upstream=search": "Answered 503",
        "?route=back/all": "Latency",
        "?job=make_video/mv_bad": "Versions",
        "?trace=mv_bad": "Suspected cause",
        "?upstream=gone": "no upstream of this name",
    }.items():
        browser.open(f"{house.url}/{query}")
        browser.wait_for_text(wanted)
        assert accessible(browser) == [], query
        assert narrow_enough(browser), query


def test_a_circuit_is_opened_by_hand(house: House, browser: Chromium) -> None:
    """It asks for reason and time, shows the change, and calls are refused. Reset closes it."""
    browser.open(house.url)
    browser.wait_for_text("Closed", "#services")
    browser.click('#services [data-action="open"]')
    browser.wait_for_text("Open the circuit of search?", "#ask")
    assert accessible(browser) == []
    browser.type("#ask-reason", "quota <b>used up</b>")
    browser.run("document.getElementById('ask-for').value = '1h'")
    browser.click('#ask button[type="submit"]')
    browser.wait_for_text("search is open by hand until", "#said")
    browser.wait_for_text("Open by hand", "#services")
    browser.wait_for_text("quota <b>used up</b>", "#services")
    assert house.call(house.back) == 503
    shown = house.proxy.breaker("search")
    assert (shown["state"], shown["reason"]) == (
        "forced_open",
        "open by hand: quota <b>used up</b>",
    )
    assert 3500 < shown["remaining"] <= 3600
    assert browser.run("return document.querySelector('[data-action=open]').disabled") is True
    browser.click('#services [data-action="reset"]')
    browser.wait_for_text("Reset the circuit of search?", "#ask")
    assert browser.run("return document.getElementById('ask-for')") is None
    browser.click('#ask button[type="submit"]')
    browser.wait_for_text("closed and watched again", "#said")
    assert house.call(house.back) == 200


def test_a_refused_change_is_shown_in_the_dialog(house: House, browser: Chromium) -> None:
    """What went wrong stands beside the button, and the dialog stays."""
    browser.open(house.url)
    browser.wait_for_text("Closed", "#services")
    browser.click('#services [data-action="close"]')
    browser.wait_for_text("Close the circuit", "#ask")
    browser.run("document.getElementById('ask-for').options[0].value = 'never'")
    browser.run("document.getElementById('ask-for').selectedIndex = 0")
    browser.click('#ask button[type="submit"]')
    with silent_console(browser):
        browser.wait_for_text("Not done: for:", "#ask [role=alert]")
    assert browser.run("return document.getElementById('ask').open") is True


def test_the_keyboard_is_enough(house: House, browser: Chromium) -> None:
    """Skip link, search, links, dialog: each reached and used without a mouse, and the focus comes
    back to where it was."""
    focused = "return document.activeElement.{}"
    browser.open(house.url)
    browser.wait_for_text("Closed", "#services")
    browser.press("Tab")
    assert browser.run(focused.format("className")) == "skip"
    browser.press("Enter")
    for _ in range(30):
        browser.press("Tab")
        if browser.run(focused.format("dataset.action")) == "open":
            break
    assert browser.run(focused.format("ariaLabel")) == "Open the circuit of search"
    outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    browser.press("Enter")
    browser.wait(lambda: browser.run(focused.format("id")) == "ask-reason", "focus in the dialog")
    browser.press("Escape")
    browser.wait(
        lambda: browser.run(focused.format("dataset.action")) == "open", "focus where it was"
    )
    browser.press("/")
    assert browser.run(focused.format("id")) == "search"
    browser.press(*"mv_bad", "Enter")
    browser.wait_for_text("Suspected cause")
    browser.wait(
        lambda: browser.run(focused.format("className")) == "page-title", "focus on the title"
    )
    assert browser.url.endswith("/?trace=mv_bad")


def test_text_stays_text(house: House, browser: Chromium) -> None:
    """A job's error, a stage's name and a reason that are HTML are read as such, everywhere."""
    browser.open(house.url)
    browser.wait_for_text(ATTACK, "#jobs")
    browser.wait_for_text(ATTACK, "#errors")
    for query in ("?job=make_video/mv_bad", "?trace=" + "%3Cscript%3Ealert(1)%3C/script%3E"):
        browser.open(f"{house.url}/{query}")
        browser.wait_for_text("<script>alert(1)</script>", "main")
        assert browser.run("return document.querySelectorAll('img, main script').length") == 0
    assert browser.run("return document.title") != "owned"
    with silent_console(browser):
        pass


def test_jobs_are_filtered_and_shown_in_full(house: House, browser: Chromium) -> None:
    """Failed ones first; the filter is in the address; a job has its stages and versions."""
    browser.open(house.url)
    browser.wait_for_text("mv_good", "#jobs")
    assert re.search("mv_bad.*mv_good", browser.text("#jobs"), re.DOTALL)
    browser.click('a[href="/?jobs=completed"]')
    browser.wait(lambda: "mv_bad" not in browser.text("#jobs .jobs"), "completed jobs alone")
    assert browser.url.endswith("/?jobs=completed")
    browser.back()
    browser.wait_for_text("mv_bad", "#jobs .jobs")
    browser.click("#jobs .jobs li:first-child a")
    browser.wait_for_text("Analyzing audio", "#stages")
    assert "2.5 s" in browser.text("#stages")
    assert "Failed" in browser.text("#versions")
    house.write("mv_new", "queued")
    browser.open(f"{house.url}/?job=make_video/mv_new")
    browser.wait_for_text("Queued", ".page-head")
    house.write("mv_new", "completed", progress=100.0)
    browser.wait_for_text("Completed", ".page-head")
    browser.wait_for_text("2", "#versions tbody tr td")


def test_the_colours_can_be_chosen(house: House, browser: Chromium) -> None:
    """The switch wins over the system, is remembered, and lets go again."""
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.scheme("light")
    browser.open(house.url)
    browser.wait_for_text("Closed", "#services")
    light = browser.run(ground)
    browser.click('[data-theme-name="dark"]')
    dark = browser.run(ground)
    assert dark != light
    browser.open(house.url)
    assert browser.run(ground) == dark
    browser.wait_for_text("Closed", "#services")
    browser.click('[data-theme-name="system"]')
    assert browser.run(ground) == light
    browser.scheme("dark")
    assert browser.run(ground) == dark


def test_a_dead_proxy_makes_the_page_say_so(house: House, browser: Chromium) -> None:
    """Nothing looks live that is not: a banner, the age of the figures; and it comes back alone."""
    browser.open(house.url)
    browser.wait_for_text("Closed", "#services")
    house.proxy.process.kill()
    house.proxy.process.wait(PATIENCE)
    browser.wait_for_text("What you see is from", ".stale")
    browser.wait_for_text("Not live", ".live")
    house.restart()
    browser.wait(lambda: browser.text(".stale") == "", "a live page", 25)
    browser.wait_for_text("Live", ".live")
    with silent_console(browser):
        pass


# --- with traces, and behind a token --------------------------------------------------------------


def event(at: str, source: str, severity: str, summary: str, **more: Any) -> dict[str, Any]:
    """As the trace API gives it."""
    about = {"kind": "x", "correlation_id": "c-1", "job_id": "mv_1", "duration_ms": None}
    return {**about, "at": at, "source": source, "severity": severity, "summary": summary,
            "facts": {}, **more}  # fmt: skip


TRACE = {
    "id": "mv_1",
    "kind": "job",
    "job_ids": ["mv_1"],
    "correlation_ids": ["c-1"],
    "suspected_cause": {
        "summary": "search answered 503 " + ATTACK,
        "kind": "upstream_error",
        "at": "2026-11-27T10:00:03.000Z",
        "event": 1,
    },
    "note": "3 further events are not shown",
    "events": [
        event("2026-11-27T10:00:00.000Z", "exchange", "ok", "POST create-video 202",
              duration_ms=34.1, facts={"route": "create-video", "bytes_in": 1}),
        event("2026-11-27T10:00:03.000Z", "attempt", "error", "search answered 503"),
        event("2026-11-27T10:00:03.500Z", "job", "error", "failed at Select shorts"),
    ],
}  # fmt: skip


def test_a_trace_shows_its_timeline(browser: Chromium) -> None:
    """Recent errors, grouped by kind, lead to the trace; the suspected cause is on top; events are
    in order."""
    lately = [("job mv_a1 failed after 12 ms", 3), ("job mv_b22 failed after 7.5 s", 2),
              ("GET /x: 502 upstream_reset", 1), ("GET /x: 503 circuit_open", 0)]  # fmt: skip
    many = [
        event(f"2026-11-27T09:00:0{at}.000Z", "job", "error", message) for message, at in lately
    ]
    with SiteThread(traces={"mv_1": TRACE, "c-2": {"events": many}}, tick=0.2) as site:
        browser.open(site.url("/"))
        browser.wait_for_text("search answered 503", "#errors")
        shown = browser.run(
            "return [...document.querySelectorAll('#errors li')].map(e => e.innerText)"
        )
        (twice,) = [row for row in shown if "2 times" in row]
        assert "mv_a1" in twice  # the newest of its kind
        assert sum("GET /x" in row for row in shown) == 2
        browser.click("#errors li a")
        browser.wait_for_text("Suspected cause", ".cause")
        assert ATTACK in browser.text(".cause")
        browser.wait_for_text("Not complete: 3 further events are not shown.")
        timeline_text = browser.text(".timeline")
        assert re.search(
            r"create-video 202.*\+3\.0 s.*\+3\.5 s.*failed at", timeline_text, re.DOTALL
        )
        assert "took 34.1 ms" in timeline_text
        browser.click(".timeline summary")
        assert "bytes_in" in browser.text(".timeline")
        browser.click(".cause [data-jump]")
        assert browser.run("return document.activeElement.id") == "event-1"
        assert accessible(browser) == []
        browser.size(*SIZES["phone"][:2], phone=True)
        assert narrow_enough(browser)
        browser.open(site.url("/?trace=unknown"))
        browser.wait_for_text("Nothing is kept about this ID")
        with silent_console(browser):
            pass


def test_without_traces_the_page_makes_do(browser: Chromium) -> None:
    """Errors are those that breakers and jobs remember; an ID leads to a line for the log, and what
    is no ID does not."""
    with SiteThread(tick=0.2) as site:
        browser.open(site.url("/"))
        browser.wait_for_text("as breakers and jobs tell", "#errors")
        browser.open(site.url("/?trace=mv_1"))
        browser.wait_for_text("keeps no traces")
        browser.wait_for_text('.job_id == "mv_1"', "pre")
        browser.open(site.url("/?trace=%27%3B+rm+-rf+%27"))
        browser.wait_for_text("This is no job ID and no correlation ID")
        assert browser.text("pre") == ""


def test_the_token_is_asked_for(browser: Chromium) -> None:
    """A wrong one is refused, the right one unlocks; a reload keeps it, and no other tab has it."""
    with SiteThread(token=TOKEN, tick=0.2) as site:
        browser.open(site.url("/"))
        browser.wait_for_text("This page is locked")
        assert browser.run("return document.activeElement.id") == "token"
        assert accessible(browser) == []
        browser.type("#token", "wrong")
        browser.press("Enter")
        browser.wait_for_text("This is not the token")
        browser.type("#token", TOKEN)
        browser.press("Enter")
        browser.wait_for_text("All good")
        browser.open(site.url("/?upstream=search"))
        browser.wait_for_text("Circuit breaker")
        assert browser.run("return Object.values(localStorage)") == []
        assert TOKEN not in browser.url
        browser.click('[data-action="open"]')
        browser.wait_for_text("Open the circuit", "#ask")
        browser.click('#ask button[type="submit"]')
        browser.wait_for_text("open by hand until", "#said")
        assert json.loads(json.dumps(site.breakers.show("search")))["state"] == "forced_open"
        with silent_console(browser):
            pass


def test_two_hundred_routes_are_sorted_by_trouble(browser: Chromium, tmp_path: Path) -> None:
    """The one that fails comes first, the rest is a click away, and a filter leaves those that
    want a look."""
    names = [{"name": f"r{n}", "path": f"/r{n}", "upstream": "app"} for n in range(200)]
    with Site(tmp_path, {"front": {"routes": names}}) as site:
        site.upstream.handler = answer(respond(b"no", "500 Oh"))
        assert site.ask(get("/r150")).status == 500
        browser.open(f"http://127.0.0.1:{site.proxy.admin_port}")
        browser.wait_for_text("r150", "#routes tbody tr:nth-child(2)")
        count = "return document.querySelectorAll('#routes tbody tr:not(.group)').length"
        assert browser.run(count) == 25
        browser.click("#routes .more a")
        browser.wait(lambda: browser.run(count) == 200, "all routes")
        # By script: the sticky header lies over it after the scrolling.
        browser.run("document.querySelector(\"#routes nav a[href='/?routes=troubled']\").click()")
        browser.wait(lambda: browser.run(count) == 1, "the one that fails")
        assert "r150" in browser.text("#routes")
        browser.run("document.querySelector(\"#routes nav a[href='/']\").click()")
        browser.wait(lambda: browser.run(count) == 25, "all of them again")
        browser.type("#find-routes", "/R19")
        browser.wait(lambda: browser.run(count) == 11, "r19, and r190 to r199")
        assert browser.run("return location.search") == "?find=%2FR19"
        assert browser.run("return document.activeElement.id") == "find-routes"
        browser.type("#find-routes", "9 x")
        browser.wait_for_text("No route has that", "#routes")
        assert accessible(browser) == []
        browser.open("about:blank")
