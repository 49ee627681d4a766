"""Listening sockets: bound here or passed in by another process, and closed without resets.

The kernel completes connections before the process accepts them. Closing a listening socket resets
the connections in its queue, although their clients already see them as established. A socket is
therefore closed in three steps: stop taking connections (`stop_taking`), accept from the queue
until it is empty (`waiting`), then close.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Iterable

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

#: `TCP_CLOSE` in `net/tcp_states.h`: the first byte of `struct tcp_info`.
_TCP_CLOSE = 7

#: Offset of `tcpi_unacked` in `struct tcp_info`; for a listening socket, the length of its queue.
_UNACKED = 24


def bound(bind: Bind, *, reuse_port: bool = False) -> list[socket.socket]:
    """Sockets bound to that address, for IPv4 and IPv6 if it names no host. Raises `OSError`."""
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


class Given:
    """Listening sockets that were passed to this process: `named` by systemd, for `fd:NAME`, and
    `inherited` from a predecessor, by their labels (see `label`). An inherited socket is handed out
    once. Named sockets belong to others, so their queues are never emptied."""

    def __init__(
        self,
        named: Iterable[tuple[str, socket.socket]] = (),
        inherited: Iterable[tuple[str, socket.socket]] = (),
    ) -> None:
        self._named: dict[str, list[socket.socket]] = {}
        self._inherited: dict[str, list[socket.socket]] = {}
        self.taken: list[str] = []  #: labels of inherited sockets that are in use
        for name, one in named:
            self._named.setdefault(name, []).append(one)
        for known, one in inherited:
            if known.startswith(_NAMED):
                self._named.setdefault(known.removeprefix(_NAMED), []).append(one)
            else:
                self._inherited.setdefault(known, []).append(one)

    def open(self, who: str, bind: Bind, *, reuse_port: bool = False) -> list[socket.socket]:
        """The sockets for `bind`: named, inherited or new. Raises `OSError`."""
        if bind.given:
            found = self._named.get(bind.given)
            if found is None:
                names = ", ".join(sorted(self._named)) or "none"
                raise OSError(
                    f"no socket of this name was given to the process (given: {names}); see"
                    " FileDescriptorName in the .socket unit"
                )
            return [duplicate(one) for one in found]
        wanted = label(who, bind)
        if wanted not in self._inherited and bind.port:  # another listener may have had the address
            address = f" {bind}"
            wanted = next((one for one in self._inherited if one.endswith(address)), wanted)
        if wanted in self._inherited:
            self.taken.append(wanted)
            return self._inherited.pop(wanted)
        return bound(bind, reuse_port=reuse_port)

    def named(self) -> list[tuple[str, socket.socket]]:
        """The sockets for `fd:NAME`, with their labels."""
        return [(f"{_NAMED}{name}", one) for name, many in self._named.items() for one in many]

    def close_rest(self) -> None:
        """Close the inherited sockets that are not used."""
        for many in self._inherited.values():
            for one in many:
                one.close()
        self._inherited.clear()


#: Prefix of the label of a socket for `fd:NAME`.
_NAMED = "fd "


def label(who: str, bind: Bind) -> str:
    """The label by which a successor finds a listener's sockets. It contains the listener's name,
    because several listeners may ask for any port (0)."""
    return f"{who} {bind}"


def duplicate(listening: socket.socket) -> socket.socket:
    """Another descriptor of the same socket: the kernel has one queue for both."""
    again = listening.dup()
    again.setblocking(False)
    return again


def stop_taking(listening: socket.socket) -> None:
    """Make the kernel ignore new connection attempts; those in progress are still completed.

    A new client gets no answer to its SYN and retransmits it after a second; by then it is refused
    or reaches a successor. Not for a socket that others continue to use.
    """
    program = b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
    held = ctypes.create_string_buffer(program)
    option = struct.pack("HL", len(_NO_SYN), ctypes.addressof(held))
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
    except OSError as error:  # a kernel without socket filters: shorten the queue instead
        logger.info("no socket filter", extra={"error": str(error)})
        listening.listen(0)


def waiting(listening: socket.socket) -> int:
    """The number of connections waiting to be accepted."""
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    return int(struct.unpack_from("I", info, _UNACKED)[0])


def was_reset(connection: socket.socket) -> bool:
    """Whether the client has reset this accepted TCP connection, so that nobody would read an
    answer. One that has only ended its half may still wait for one."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:  # a unix socket, or a system that does not say
        return False
