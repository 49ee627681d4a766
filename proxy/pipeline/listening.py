"""Listening sockets: bound here, taken from somebody who gave them, and closed without a reset.

The kernel completes connections before anybody accepts them. Closing a listening socket resets
those that wait in its queue, though their clients have been told that they are connected. So a
socket that is to be closed first stops taking connections (`stop_taking`), then its queue is
accepted until it is empty (`waiting`), and only then it is closed.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct

from proxy.config.units import Bind

logger = logging.getLogger(__name__)

#: `asm-generic/socket.h`; Python does not name it.
_SO_ATTACH_FILTER = 26

#: A classic BPF program over the TCP header: drop what has SYN and no ACK, pass the rest.
#: (code, jump if true, jump if false, operand)
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)

#: Where `tcpi_unacked` is in `struct tcp_info`: of a listening socket, the length of its queue.
_UNACKED = 24


def bound(bind: Bind, *, reuse_port: bool = False) -> list[socket.socket]:
    """Sockets at that address, of IPv4 and IPv6 where it is every one. Raises `OSError`."""
    hosts = [bind.host] if bind.host else ["0.0.0.0", "::"]  # noqa: S104 (what the config says)
    found: list[socket.socket] = []
    for host in hosts:
        try:
            found.append(_bound(host, bind.port, reuse_port))
        except OSError as error:
            if found and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # this host has no IPv6
            for one in found:
                one.close()
            raise
    return found


def _bound(host: str, port: int, reuse_port: bool) -> socket.socket:
    flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
    ((family, kind, protocol, _, address),) = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=flags
    )
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def duplicate(listening: socket.socket) -> socket.socket:
    """Another descriptor of the same socket: the kernel has one queue for both."""
    again = listening.dup()
    again.setblocking(False)
    return again


def stop_taking(listening: socket.socket) -> None:
    """From now on the kernel begins no connection for it, and finishes those that it has begun.

    A client that comes now hears nothing, asks again after a second, as TCP does, and is refused
    then or finds a successor. Not for a socket that others go on using.
    """
    program = b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
    held = ctypes.create_string_buffer(program)
    option = struct.pack("HL", len(_NO_SYN), ctypes.addressof(held))
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
    except OSError as error:  # a kernel without socket filters: the queue is shortened instead
        logger.info("no socket filter", extra={"error": str(error)})
        listening.listen(0)


def waiting(listening: socket.socket) -> int:
    """Connections that wait to be accepted."""
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    return int(struct.unpack_from("I", info, _UNACKED)[0])
