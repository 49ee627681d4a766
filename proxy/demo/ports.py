"""Free ports for servers that are still to come, in tests and in the demo.

A port that was found free is somebody else's a moment later, unless everybody asks in one place:

1. Ports come from a range that the kernel gives to no outgoing connection.
2. What is given is reserved for this process until it ends, or has been given as many others: by a
   socket of that name in the abstract namespace, which leaves no file and ends where ports do, with
   the network namespace. So ports on which nobody is to listen, or nobody does for a while, stay
   that way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket

#: Below the ports of outgoing connections (32768 up on Linux).
PORTS = range(20_000, 32_000)

#: How many one process has reserved at a time; each takes a descriptor.
_MOST = 200


class _Reservations:
    """Which ports are ours (rule 2), the oldest first."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}  # descriptors
        self._pid = os.getpid()

    def take(self, port: int) -> bool:
        """Whether the port is ours from now on."""
        if self._pid != os.getpid():  # forked: what has been given is the parent's
            self._pid = os.getpid()
            self._held.clear()
        if port in self._held:
            return False
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0reliability-proxy-port-{port}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                held.close()
                return False
        self._held[port] = held.detach()  # for good: nobody need remember to close it
        if len(self._held) > _MOST:
            self.leave(next(iter(self._held)))
        return True

    def leave(self, port: int) -> None:
        """It is no longer ours."""
        os.close(self._held.pop(port))


#: Ports are the machine's, and so are these.
_reservations = _Reservations()


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of `PORTS` on which nobody listens, and that nobody else gets here while this process
    lives. Raises `RuntimeError` when there is none."""
    for _ in range(200):
        port = secrets.choice(PORTS)
        if reserve_port(port, host, kind):
            return port
    raise RuntimeError(f"no free port of {host} between {PORTS[0]} and {PORTS[-1]}")


def reserve_port(
    port: int, host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM
) -> bool:
    """Whether nobody listens on this port; then it is ours, as one of `free_port` is."""
    if not _reservations.take(port):
        return False
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as probe, contextlib.suppress(OSError):
        if kind is socket.SOCK_STREAM:  # as servers do: a port in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    _reservations.leave(port)
    return False
