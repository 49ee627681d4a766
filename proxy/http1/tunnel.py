"""Copies bytes both ways between two connections after a protocol switch (a WebSocket)."""

from __future__ import annotations

from proxy.http1.client import ClientStream
from proxy.http1.upstream.connection import UpstreamStream


async def tunnel(client: ClientStream, upstream: UpstreamStream, idle: float) -> tuple[int, int]:
    """Copy bytes until both sides have ended, one is lost, nothing has moved for `idle` seconds,
    the proxy must stop, or the pool wants the connection for others.

    A half-close is forwarded. Returns the number of bytes sent upstream and downstream.
    """
    pool = upstream.pool
    sent = [0, 0]
    ended = [False, False]
    clock = client.clock
    moved = clock.monotonic()
    while not (all(ended) or client.cut or client.shed or client.lost or upstream.lost):
        for way, (source, sink) in enumerate(((client, upstream), (upstream, client))):
            if source.inbox and not sink.write_paused:
                data = source.take()
                sink.transport.write(data)
                sent[way] += len(data)
                moved = clock.monotonic()
            if source.eof and not source.inbox and not ended[way]:
                ended[way] = True
                if sink.transport.can_write_eof():
                    sink.transport.write_eof()
                else:
                    ended[not way] = True  # TLS cannot close one half: close both
        if all(ended):
            break
        again = pool.hold_up_tunnel(upstream, sum(sent))
        if upstream.unwanted or clock.monotonic() >= moved + idle:
            break
        await client.wait(min(moved + idle, again))
    if client.shed:
        client.abort()
        upstream.abort()
    for source, sink in ((client, upstream), (upstream, client)):
        if source.inbox and not sink.lost:
            sink.transport.write(source.take())
    upstream.close()
    client.close()
    return sent[0], sent[1]
