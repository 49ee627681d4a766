"""`python -m tests.bench.micro [WORD…]`: nanoseconds of the pieces that run for every request.

To add one: a function decorated with `@micro("what it does")` prepares what is needed and returns a
callable without arguments, the operation itself. It runs in batches sized to about `--time`
seconds, five times; the best batch counts, because everything that disturbs makes it slower.
"""

from __future__ import annotations

import argparse
import sys
import timeit
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from proxy.config import schema
from proxy.config.listeners import JobRole
from proxy.forward.exchange import Exchange
from proxy.forward.routing.router import RouteTable
from proxy.http1.heads import find_head_end
from proxy.http1.request_head import parse_request
from proxy.http1.response_head import parse_response
from proxy.routes.trace import TraceRecord
from tests.bench.exchange import Ends, HotExchange, Looks, hot_exchange

Operation = Callable[[], object]
_REPEATS = 5
_REGISTRY: dict[str, Callable[[], Operation]] = {}


def micro(title: str) -> Callable[[Callable[[], Operation]], Callable[[], Operation]]:
    """Register a piece under a title. Raises ValueError when the title is taken."""

    def register(prepare: Callable[[], Operation]) -> Callable[[], Operation]:
        if title in _REGISTRY:
            raise ValueError(f"two pieces are called {title!r}")
        _REGISTRY[title] = prepare
        return prepare

    return register


@dataclass(frozen=True, slots=True)
class Timing:
    """The best batch: seconds per operation."""

    title: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds * 1e9:12,.0f} ns {1 / self.seconds:14,.0f} /s   {self.title}"


def selected(words: Iterable[str]) -> list[str]:
    """Titles that contain any of the words, or all titles without words."""
    wanted = [word.lower() for word in words]
    return [t for t in _REGISTRY if not wanted or any(word in t.lower() for word in wanted)]


def measure(title: str, seconds: float) -> Timing:
    """Time one registered piece in batches of about `seconds`."""
    piece = _REGISTRY[title]()
    try:
        timer = timeit.Timer(piece)
        count, took = 1, timer.timeit(1)
        while took < seconds / 10:
            count *= 4
            took = timer.timeit(count)
        count = max(1, round(count * seconds / took))
        return Timing(title, min(timer.repeat(_REPEATS, count)) / count)
    finally:
        if isinstance(piece, HotExchange):
            piece.close()


# --- the pieces ---------------------------------------------------------------------------------

_GET = (
    b"GET /jobs/mv_0123456789 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: curl/8.5.0\r\n"
    b"Accept: */*\r\nX-Correlation-ID: 6c1f3a52-9c1b-4d0e-8a53-2c1d9f3b7e60\r\n\r\n"
)
_OK = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 24 Nov 2025 10:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: 101\r\ncontent-type: application/json\r\n\r\n"
)


@micro("codec: a request head of four fields")
def _request_head() -> Operation:
    def parse() -> object:
        return parse_request(_GET, find_head_end(_GET, 8192, 32768), 128)

    return parse


@micro("codec: a response head of four fields")
def _response_head() -> Operation:
    end = _OK.index(b"\r\n\r\n")
    return lambda: parse_response(_OK, end, 128)


@micro("router: the last of five routes")
def _route() -> Operation:
    table = RouteTable(
        [
            (("POST",), "/make-video", 1),
            (("GET",), "/jobs/{job_id}", 2),
            (("DELETE",), "/jobs/{job_id}", 3),
            (("GET",), "/jobs", 4),
            (None, "/{rest:*}", 5),
        ],
        guards=lambda route: route < 5,
    )
    return lambda: table.match("GET", "/health")


micro("exchange: a plain GET, all duties, no sockets")(hot_exchange)
micro("exchange: the same, with a stage of others at its end")(partial(hot_exchange, stage=Ends))
micro("exchange: with one that looks at request and answer")(partial(hot_exchange, stage=Looks))


def _sampled_out(direction: str, role: object = None, **changes: Any) -> Operation:
    """The trace's observer of a good exchange that it does not keep."""
    settings = schema.Trace(sqlite=Path("unused"), sample=0)
    kept: Any = SimpleNamespace(
        settings=settings,
        allowance=lambda: SimpleNamespace(take=lambda now: True),
        record=lambda event: None,
        refused_by_rate=lambda: None,
    )
    binding: Any = SimpleNamespace(
        listener=SimpleNamespace(direction=direction),
        route=SimpleNamespace(trace=True, job=role),
        trace=settings,
    )
    hooks = TraceRecord(kept, Random().random).bind(binding)
    assert hooks is not None
    assert hooks.finished is not None
    observe, x = hooks.finished, Exchange.__new__(Exchange)
    x.listener, x.method, x.path, x.correlation_id, x.head = "l", "GET", "/jobs/mv_1", "c", None
    x.status, x.duration, x.started, x.started_at = 200, 0.001, 100.0, 1e9
    x.parameters = {"job_id": "mv_1"}
    for name, value in changes.items():
        setattr(x, name, value)
    observe(x)  # the first of its kind is kept
    return lambda: observe(x)


@micro("trace: an exchange that is not kept")
def _trace_plain() -> Operation:
    return _sampled_out("ingress")


@micro("trace: a read of a job that is not kept")
def _trace_read() -> Operation:
    return _sampled_out("ingress", JobRole(mirror="m", reads="job_id"))


@micro("trace: a call of a microservice that is not kept")
def _trace_call() -> Operation:
    return _sampled_out("egress")


@micro("trace: an exchange that is kept, without its writing")
def _trace_kept() -> Operation:
    return _sampled_out("ingress", status=502, code="upstream_reset", detail="It broke off")


def main(argv: list[str] | None = None) -> int:
    """0, or 2 when no title contains any of the words."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.micro", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only titles that contain one")
    parser.add_argument("--time", type=float, default=0.2, help="seconds per batch (default 0.2)")
    args = parser.parse_args(argv)
    titles = selected(args.words)
    if not titles:
        print(f"no title contains any of these; there are: {'; '.join(_REGISTRY)}")
        return 2
    for title in titles:
        print(measure(title, args.time))
    return 0


if __name__ == "__main__":
    sys.exit(main())
