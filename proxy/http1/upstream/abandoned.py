"""Keeps the place of a request whose client has left while the upstream still works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.http1.fields import ProtocolError
from proxy.http1.upstream.queue import client_of

if TYPE_CHECKING:
    from proxy.http1.client import ClientStream
    from proxy.http1.upstream.connection import UpstreamStream

#: Interim responses that are skipped before the final one.
_MAX_INTERIM = 32


class Abandoned:
    """Owns `stream` in place of the client: waits for the response's head and discards it.

    Ends with that head, with the connection, or at the monotonic second `until`. `client` is the
    client that the request counts for in the queue; it left at `left_at`.
    """

    __slots__ = ("_interim", "_stream", "client", "left_at", "until")

    def __init__(
        self, stream: UpstreamStream, client: object, left_at: float, until: float
    ) -> None:
        self._stream = stream
        self._interim = 0
        self.client = client
        self.left_at = left_at
        self.until = until

    def notify(self) -> None:
        """Something happened on the connection."""
        stream = self._stream
        try:
            while (head := stream.read_head()) is not None:
                self._interim += 1
                if head.status >= 200 or head.status == 101 or self._interim > _MAX_INTERIM:
                    # If the response has arrived completely, the connection can be reused.
                    body = len(stream.take())
                    whole = head.status >= 200 and head.content_length == body
                    self.end(reusable=whole and head.keep_alive)
                    return
        except ProtocolError:
            self.end()
            return
        if stream.eof:
            self.end()

    def on_deadline(self, now: float) -> None:
        """The stream's deadline has passed. The first one only checks whether somebody waits."""
        if now >= self.until:
            self.end()
        else:
            self._stream.deadline = self.until
            self._stream.pool.make_way()

    def mark_greedy(self) -> None:
        """No client is left to be marked."""

    def end(self, *, reusable: bool = False) -> None:
        """Release the place."""
        self._stream.pool.release(self._stream, reusable=reusable)


def user_of(owner: ClientStream | Abandoned) -> object:
    """The client that a connection works for, also after it has left."""
    return owner.client if isinstance(owner, Abandoned) else client_of(owner)
