"""The beginning of a body that is checked, read before the upstream is asked for anything.

A filter that holds bytes back until it knows what they are must not hold a connection meanwhile: a
service that takes eight of them would be closed to all by eight slow senders. So the upstream's
turn comes when the filter first gives something, or has had its last word. How much it holds until
then is the filter's to bound.
"""

from __future__ import annotations

import asyncio

from proxy.errors import BadRequest, RequestTimeout
from proxy.pipeline.exchange import Exchange, Gathered
from proxy.pipeline.messages import CONTINUE
from proxy.pipeline.plan import ListenerPlan
from proxy.pipeline.waiting import until_left
from proxy.wire.codec import ProtocolError
from proxy.wire.deadlines import NEVER

#: Pieces of a body that are joined before a filter sees them: small chunks come by the thousand.
_MANY = 8


async def gather(x: Exchange, listener: ListenerPlan) -> None:
    """Read until `x.filter` gives something, and leave that in `x.gathered`. Raises the filter's
    refusal, and what `until_left` raises."""
    client, check = x.stream, x.filter
    assert check is not None
    send_continue(x)
    ending: asyncio.Task[list[bytes]] | None = None
    moved = client.clock.monotonic()
    try:
        while True:
            pieces = check.feed(b"")  # it may have made up its mind since
            if pieces:
                x.gathered = Gathered(pieces, complete=False)
                return
            if x.body.done and ending is None:
                ending = start_ending(x)
            deadline = moved + listener.body_timeout
            if ending is not None:
                if ending.done():
                    x.gathered = Gathered(ending.result(), complete=True)
                    return
                deadline = NEVER  # a filter bounds its own time
            elif client.inbox and not check.blocked:
                pieces = read_checked(x)
                if pieces:
                    x.gathered = Gathered(pieces, complete=False)
                    return
                moved = client.clock.monotonic()
                if x.body.done:
                    continue
            elif client.clock.monotonic() >= deadline:
                raise RequestTimeout("The request body did not come in time", close=True)
            await client.wait(until_left(x, deadline, client.clock.monotonic(), moved))
    finally:
        if ending is not None:
            await drop_ending(ending)


def send_continue(x: Exchange) -> None:
    """Tell a client that waits for our leave to send its body (RFC 9110 §10.1.1)."""
    head = x.head
    if head is None or not head.expects_continue or not head.minor:
        return
    if not (x.continue_sent or x.body.done or x.stream.inbox):
        x.stream.transport.write(CONTINUE)
        x.continue_sent = True


def read_body(x: Exchange) -> list[bytes]:
    """What the client has sent of its body. Raises `BadRequest`."""
    try:
        pieces = x.stream.read_body(x.body)
    except ProtocolError as error:
        raise BadRequest(f"Malformed request body: {error.detail}", close=True) from error
    x.bytes_in += sum(map(len, pieces))
    return pieces


def read_checked(x: Exchange) -> list[bytes]:
    """The same through the filter: what may go upstream. Raises its refusal, too."""
    assert x.filter is not None
    pieces = read_body(x)
    if len(pieces) > _MANY:
        pieces = [b"".join(pieces)]
    return [out for piece in pieces for out in x.filter.feed(piece)]


def start_ending(x: Exchange) -> asyncio.Task[list[bytes]]:
    """The filter's last word, asked for; the client's coroutine is woken when it has come."""
    assert x.filter is not None
    ending = asyncio.get_running_loop().create_task(x.filter.finish(), name="verdict")
    ending.add_done_callback(lambda _: x.stream.wake())
    return ending


async def drop_ending(ending: asyncio.Task[list[bytes]]) -> None:
    """Nobody waits for it any more."""
    ending.cancel()
    await asyncio.wait([ending])
    if not ending.cancelled():
        ending.exception()  # a refusal that came too late to be the answer
