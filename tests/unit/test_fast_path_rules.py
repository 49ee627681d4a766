"""Two proxies, one with its fast path off, where breaker, retries, rescuers, drain and time-outs
take a hand: they must say the same, keep the same record, count alike and leak nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.listeners import Fallback
from proxy.core.memory.budget import Holding, MemoryBudget
from proxy.forward.exchange import Exchange
from proxy.forward.fallbacks import ReplyFound
from proxy.forward.routing.plan import AskAgain, Hooks, Reply, Trouble
from proxy.http1.upstream.connection import UpstreamStream
from proxy.resilience.circuit.states import State
from proxy.routes.fallback import _Fallback, _Stale
from tests.fast_path_kit import Asking, Recorder, Rig, pieces, plain_shut, same_ids

HOST = b"Host: a\r\n"
REQUESTS = [
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /b HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /c HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /d HTTP/1.1\r\n" + HOST + b"Idempotency-Key: k\r\n\r\n",
    b"POST /e HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
    b"GET /f HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
]
OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES = [
    OK + b"Content-Length: 2\r\n\r\nok",
    OK + b"Content-Length: 2\r\nX-A: 1\r\n\r\nok",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 500 Bad\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
    b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx",
    OK + b"Content-Length: 2\r\n\r\nok" + OK + b"Content-Length: 4\r\n\r\nevil",
    OK + b"Content-Length: 2\r\nbroken\r\n\r\nok",
]
BREAKER = {"failure_threshold": 2, "open_for": "1s", "half_open_max_calls": 1}
RETRY = {"attempts": 2, "on": ["connect", "reset", "timeout", 429, 503], "backoff": "100ms"}
TIMES = {"timeouts": {"response": "3s", "idle": "3s"}, "connect_patience": "300ms"}

UPSTREAMS: list[dict[str, Any]] = [
    {},
    {"breaker": BREAKER},
    {"retry": RETRY},
    {"breaker": BREAKER, "retry": RETRY},
    {"breaker": BREAKER, "retry": RETRY, "ejection": {"failures": 2}},
]


class Second:
    """A rescuer like that of a job: a 404 is asked about again, a failure answered by itself."""

    needs_body = False

    def wants(self, x: Exchange, trouble: Trouble) -> bool:
        return not hasattr(trouble, "status") or trouble.status in (404, 500, 502, 504)

    async def fallback(self, x: Exchange, trouble: Trouble) -> Reply | AskAgain | None:
        if trouble.status == 404:
            return None if x.asked_again else AskAgain((b"X-Again: 1",))
        return Reply(200, (b"X-Rescued: 1",), b"rescued")


# What may happen next.
EVENTS = (
    "client",  # sends its next piece
    "upstream",  # answers with the next piece, where it was asked
    "client ends",  # closes its half
    "client lost",
    "upstream ends",  # closes the connection that was asked last
    "upstream lost",
    "idle ends",  # closes one that nobody uses
    "moment",  # passes
    "age",  # passes: longer than anybody waits
    "full",  # the client takes no more
    "takes again",
    "drain",
    "cut",
    "refuse",  # the next two dials
    "trip",  # the circuit opens: others have failed
    "half-open",
    "lease",  # comes from Redis
    "close",  # the circuit closes
    "instead",  # another answer was found meanwhile
)
OFTEN = ("client", "upstream") * 4
BREAKING = ("trip", "half-open", "lease", "close", "moment", "client lost")


class Twin:
    """A proxy that runs a scenario."""

    def __init__(self, upstream: dict[str, Any], fallback_kind: str, shared: bool) -> None:
        self.records: list[object] = []
        self.running: list[Exchange] = []
        stages = [Asking(Hooks(started=self.running.append, finished=self._finished))]
        if fallback_kind == "second":
            stages.append(Asking(Hooks(fallback_source=Second())))
        if fallback_kind == "stale":
            account = MemoryBudget().account("stale_answers")
            stale = _Stale(Fallback.model_validate({"stale": "10m"}), Holding(account), account)
            stages.append(
                Asking(
                    Hooks(
                        started=stale.listen,
                        fallback_source=_Fallback(stale, None),
                        finished=stale.remember,
                    )
                )
            )
        self.rig = Rig(stages, **TIMES, **upstream)
        if self.rig.breaker is not None:
            self.rig.breaker.shared = shared
        self._asked: dict[str, int] = {}
        self._due: list[tuple[UpstreamStream, Recorder, list[bytes]]] = []
        self.leases = count()

    def _finished(self, x: Exchange) -> None:
        if x in self.running:
            self.running.remove(x)
        failures = None if x.failures is None else [(f.kind, f.count) for f in x.failures]
        self.records.append(
            (
                *(x.method, x.path, x.status, x.code, x.reason, x.attempts, x.retries, x.target),
                *(x.bytes_in, x.bytes_out, x.upstream_time, x.duration, failures, x.extra),
            )
        )

    def answers(self, supply: Iterator[list[bytes]]) -> None:
        """Have an answer ready for every request that an upstream connection got."""
        for stream, recorder in self.rig.connections:
            asked = recorder.written.count(b" HTTP/1.1\r\nHost")
            for _ in range(asked - self._asked.get(recorder.name, 0)):
                self._due.append((stream, recorder, list(next(supply, []))))
            self._asked[recorder.name] = asked

    def next_answer(self) -> None:
        """One piece of what is due, if its connection is still there."""
        while self._due:
            stream, recorder, parts = self._due[-1]
            if not parts or stream.eof or recorder.closing:
                self._due.pop()
                continue
            stream.data_received(parts.pop(0))
            return

    def last_asked(self) -> UpstreamStream | None:
        """The upstream connection in use, if there is one."""
        used = [stream for stream, _ in self.rig.connections if stream.owner is not None]
        return used[-1] if used and not used[-1].eof else None

    def happen(self, event: str, from_client: Iterator[bytes]) -> None:
        rig, client, breaker = self.rig, self.rig.client, self.rig.breaker
        now = rig.clock.monotonic()
        if event == "client" and not client.eof and not client._read_paused:
            data = next(from_client, None)
            if data is not None:
                client.data_received(data)
        elif event == "upstream":
            self.next_answer()
        elif event == "client ends" and not client.eof:
            client.eof_received()
        elif event == "client lost" and not client.lost:
            client.connection_lost(None)
        elif event == "upstream ends" and (used := self.last_asked()) is not None:
            used.eof_received()
        elif event == "upstream lost" and (used := self.last_asked()) is not None:
            used.connection_lost(ConnectionResetError())
        elif event == "idle ends" and rig.pool._idle:
            rig.pool._idle[-1].eof_received()
        elif event == "moment":
            rig.pass_time(0.3)
        elif event == "age":
            rig.pass_time(100.0)
        elif event == "full":
            client.pause_writing()
        elif event == "takes again":
            client.resume_writing()
        elif event == "drain":
            client.drain()
        elif event == "cut":
            client.cut = True
            client.wake()
        elif event == "refuse":
            rig.refused = 2
        elif event == "instead" and self.running and not self.running[-1].replied:
            self.running[-1].interrupt(ReplyFound(Reply(200, (b"X-Instead: 1",), b"instead")))
        elif breaker is not None:
            if event == "trip":
                breaker._enter(State.OPEN, now, now + 1.0, "others failed", "another")
            elif event == "half-open":
                breaker._enter(State.HALF_OPEN, now, 0.0, "time is over", "another")
            elif event == "lease" and breaker.shared:
                breaker.grant([f"lease-{next(self.leases)}"], breaker.generation, now, now)
                breaker.callers.answer()
            elif event == "close":
                breaker._enter(State.CLOSED, now, 0.0, "probes passed", "another")

    def counts(self) -> object:
        """What the exchanges have left behind."""
        breaker, retry, pool = self.rig.breaker, self.rig.plan.retry, self.rig.pool
        return (
            pool.active_connections,
            pool.idle_connections,
            self.rig.client.ended,
            breaker
            and (
                breaker.state,
                breaker.limits.failures,
                breaker.successes,
                breaker.late,
                breaker.wanted,
                breaker.rejections,
                breaker.probes_in_flight,
                len(breaker.callers),
            ),
            retry and (sum(retry.budget._calls), sum(retry.budget._retries)),
        )


async def run_scenario(
    twin: Twin, pieces: list[bytes], answers: list[list[bytes]], order: list[str]
) -> list[object]:
    """Let things happen in that order; all that could be seen, step by step."""
    from_client, supply = iter(pieces), iter(answers)
    seen: list[object] = []
    for event in order:
        twin.happen(event, from_client)
        for _ in range(3):  # call-backs that were scheduled, and what they schedule
            await asyncio.sleep(0)
        twin.answers(supply)
        seen.append((event, twin.rig.writes.copy(), twin.records.copy(), twin.counts()))
        twin.rig.writes.clear()
        twin.records.clear()
    twin.rig.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert twin.rig.client.ended
    assert twin.rig.pool.active_connections == 0
    assert not twin.rig.pool._waiting
    if twin.rig.breaker is not None:
        assert twin.rig.breaker.probes_in_flight == 0
        assert len(twin.rig.breaker.callers) == 0
    return seen


CUTS = st.just([]) | st.lists(st.integers(-8, 100), max_size=1)
SCENARIOS = st.lists(st.tuples(st.sampled_from(REQUESTS[:2] * 3 + REQUESTS), CUTS), max_size=8)
ANSWERS = st.lists(st.tuples(st.sampled_from(RESPONSES[:2] * 4 + RESPONSES), CUTS), max_size=12)
ORDERS = st.lists(
    st.sampled_from([*OFTEN, *EVENTS]) | st.sampled_from([*OFTEN, *BREAKING]), max_size=40
)


@settings(max_examples=500, deadline=None)
@given(
    SCENARIOS,
    ANSWERS,
    ORDERS,
    st.sampled_from(UPSTREAMS),
    st.sampled_from(["", "second", "stale"]),
    st.booleans(),
)
def test_both_answer_the_same_whatever_happens(
    scenario: list[tuple[bytes, list[int]]],
    answers: list[tuple[bytes, list[int]]],
    order: list[str],
    upstream: dict[str, Any],
    fallback_kind: str,
    shared: bool,
) -> None:
    """Bytes, records, counts and connections are equal after every step, and none is left over."""
    from_client = [piece for request in scenario for piece in pieces(*request)]
    supply = [pieces(*answer) for answer in answers]

    async def outcome(shut: bool) -> list[object]:
        with ExitStack() as stack:
            if shut:
                stack.enter_context(plain_shut())
            stack.enter_context(same_ids())
            return await run_scenario(
                Twin(upstream, fallback_kind, shared), from_client, supply, order
            )

    assert asyncio.run(outcome(False)) == asyncio.run(outcome(True))
