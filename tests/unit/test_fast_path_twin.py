"""Two proxies, one with its fast path shut, get the same scenario in the same pieces: whatever
the pieces are, they must say the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.clock import ManualClock
from proxy.http1.upstream.pool import TargetPool
from tests.bench.exchange import hot_exchange
from tests.fast_path_kit import pieces, plain_shut, same_ids

HOST = b"Host: a\r\n"
REQUESTS = [
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /b?c HTTP/1.1\r\n" + HOST + b"X-A: 1\r\nConnection: x-a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"X-Correlation-ID: mine\r\n\r\n",
    b"DELETE /d HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
]
OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES = [
    OK + b"Content-Length: 5\r\n\r\nhello",
    OK + b"Content-Length: 0\r\nX-B: 2\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno",
    OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    OK + b"Content-Length: 5\r\n\r\nhello, and more",
    OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello",
    OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    OK + b"\r\nuntil close",
]


class Recorder(asyncio.Transport):
    """A transport that records every call."""

    def __init__(self, name: str, twin: Twin) -> None:
        super().__init__()
        self._name = name
        self._twin = twin
        self.closing = False

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._note(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._note(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._note(b"EOF")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self._end(b"CLOSE")

    def abort(self) -> None:
        self._end(b"ABORT")

    def _note(self, what: bytes) -> None:
        self._twin.writes.append((self._twin.step, self._name, what))

    def _end(self, how: bytes) -> None:
        if not self.closing:
            self.closing = True
            self._note(how)


class Twin:
    """A proxy that runs a scenario; `writes` is all it did, to whom, in which step."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hot = hot_exchange(self.clock)
        self.writes: list[tuple[int, str, bytes]] = []
        self.step = 0
        self.client = self.hot.client.transport = Recorder("client", self)
        self.upstream = self.hot.upstream.transport = Recorder("upstream", self)

    def asked(self) -> int:
        """How many requests the upstream was sent."""
        return sum(b" HTTP/1.1\r\n" in d for _, name, d in self.writes if name == "upstream")


#: What may happen next: the next piece comes from the client or from the upstream, one of them ends
#: its half, or more time passes than anybody waits.
CLIENT, UPSTREAM, CLIENT_ENDS, UPSTREAM_ENDS, TIME = range(5)


def run_scenario(
    twin: Twin, to_client: list[bytes], to_upstream: list[list[bytes]], order: list[int]
) -> None:
    """Let things happen in that order, then the rest of the pieces. A response's pieces come only
    once the upstream was asked for it."""
    from_client, responses = iter(to_client), [list(parts) for parts in to_upstream]
    for turn in [*order, *([CLIENT, UPSTREAM] * 60)]:
        twin.step += 1
        if twin.client.closing or twin.upstream.closing:
            return
        if turn == CLIENT and not twin.hot.client.eof:
            data = next(from_client, None)
            if data is not None:
                twin.hot.client.data_received(data)
        elif turn == UPSTREAM and not twin.hot.upstream.eof:
            due = [parts for parts in responses[: twin.asked()] if parts]
            if due:
                twin.hot.upstream.data_received(due[0].pop(0))
        elif turn == CLIENT_ENDS and not twin.hot.client.eof:
            twin.hot.client.eof_received()
        elif turn == UPSTREAM_ENDS and not twin.hot.upstream.eof:
            twin.hot.upstream.eof_received()
        elif turn == TIME:
            twin.clock.advance(1000.0)
            twin.hot.sweeper.sweep()


CUTS = st.lists(st.integers(-8, 400), max_size=3)  # negative: from the end
SCENARIOS = st.lists(st.tuples(st.sampled_from(REQUESTS), CUTS), min_size=1, max_size=6)
ANSWERS = st.lists(st.tuples(st.sampled_from(RESPONSES), CUTS), min_size=6, max_size=6)

ORDERS = st.lists(
    st.sampled_from([*[CLIENT, UPSTREAM] * 6, CLIENT_ENDS, UPSTREAM_ENDS, TIME]), max_size=30
)


@settings(max_examples=300, deadline=None)
@given(SCENARIOS, ANSWERS, st.booleans(), st.lists(st.booleans(), max_size=30))
def test_both_answer_the_same(
    scenario: list[tuple[bytes, list[int]]],
    answers: list[tuple[bytes, list[int]]],
    pipelined: bool,
    order: list[int],
) -> None:
    """Requests and responses of any kind, in pieces of any size, in any order."""
    to_upstream = [pieces(*answer) for answer in answers]
    if pipelined:
        whole = b"".join(request for request, _ in scenario)
        to_client = pieces(whole, [cut * 7 for _, cuts in scenario for cut in cuts])
    else:
        to_client = [piece for request in scenario for piece in pieces(*request)]
    outcomes = []
    for shut in (False, True):
        with ExitStack() as stack:
            if shut:
                stack.enter_context(plain_shut())
            # Another connection would need a loop; who asks for one is left waiting.
            stack.enter_context(patch.object(TargetPool, "_dial_for_waiting", lambda pool: None))
            twin = Twin()
            stack.callback(twin.hot.close)
            stack.enter_context(same_ids())
            run_scenario(twin, to_client, to_upstream, order)
            outcomes.append(list(twin.writes))
    assert outcomes[0] == outcomes[1]
