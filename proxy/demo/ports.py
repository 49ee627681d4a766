"""Free ports for servers started later, in tests and in the demo.

A port that was free a moment ago may be taken by now, unless everyone reserves ports here:

1. Ports come from a range that the kernel does not use for outgoing connections.
2. A port stays reserved for this process until it exits or has reserved `_MOST` others. The
   reservation is a socket of that name in the abstract namespace, which leaves no file and belongs
   to the network namespace, like ports. So a port stays free even while no server listens on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket

#: Below the ports of outgoing connections (from 32768 on Linux).
PORTS = range(20_000, 32_000)

#: Reservations per process; each takes a descriptor.
_MOST = 200


class _Reservations:
    """The reserved ports (rule 2), oldest first."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}  # descriptors
        self._pid = os.getpid()

    def take(self, port: int) -> bool:
        """Reserve the port. Returns whether it was free."""
        if self._pid != os.getpid():  # forked: the reservations are the parent's
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
        self._held[port] = held.detach()  # never closed by the garbage collector
        if len(self._held) > _MOST:
            self.leave(next(iter(self._held)))
        return True

    def leave(self, port: int) -> None:
        """Cancel the reservation."""
        os.close(self._held.pop(port))


#: One per process, since ports are global.
_reservations = _Reservations()


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of `PORTS` on which nothing listens, reserved for this process. Raises `RuntimeError`
    if there is none."""
    for _ in range(200):
        port = secrets.choice(PORTS)
        if reserve_port(port, host, kind):
            return port
    raise RuntimeError(f"no free port of {host} between {PORTS[0]} and {PORTS[-1]}")


def reserve_port(
    port: int, host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM
) -> bool:
    """Reserve this port like `free_port`. Returns False if something listens on it."""
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
