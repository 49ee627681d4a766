"""What an exchange leaves behind is freed at once: a collector that has work stops everybody."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from proxy.core.errors import ProxyError, forget_frames
from tests.fast_path_kit import Rig


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """What is freed here is freed without it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


#: Malformed, refused, answered by nobody, or without an end.
REQUESTS = [
    b"",
    b"\0",
    b"GET / HTT",
    b"GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.parametrize("request_", REQUESTS)
async def test_a_connection_leaves_nothing(request_: bytes) -> None:
    """Whatever it sent before it was reset: its coroutine, and all that this knows, are gone."""
    rig = Rig()
    try:
        client = rig.another_client()
        client.data_received(request_)
        assert client._coroutine is not None
        left = weakref.ref(client._coroutine)
        client.connection_lost(ConnectionResetError())
        del client
        assert left() is None
    finally:
        rig.close()


def test_an_error_forgets_its_frames() -> None:
    """Those of its causes as well: what they refer to goes with the last of its other holders."""

    class Held:
        """Something that a frame refers to, and that keeps the error."""

        error: ProxyError | None = None

    def fail(held: Held) -> None:
        try:
            raise ValueError(str(held))
        except ValueError as cause:
            held.error = ProxyError("no")
            raise held.error from cause

    held = Held()
    with contextlib.suppress(ProxyError):
        fail(held)
    assert held.error is not None
    forget_frames(held.error)
    left = weakref.ref(held)
    del held
    assert left() is None
