"""systemd integration: inherited sockets, readiness notifications, the watchdog.

The protocols are `sd_listen_fds(3)` and `sd_notify(3)`. Both are controlled by environment
variables; without them nothing happens.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

_log = logging.getLogger("proxy.core.process.systemd")

#: The first inherited descriptor.
_FIRST = 3

#: The only fields that are ever sent.
_FIELDS = frozenset(
    {"READY", "RELOADING", "STOPPING", "MAINPID", "WATCHDOG", "STATUS", "MONOTONIC_USEC"}
)


def given_sockets(
    environment: MutableMapping[str, str] = os.environ,
) -> list[tuple[str, socket.socket]]:
    """The sockets that this process was given, with their names (`FileDescriptorName=`). The
    variables are removed from the environment, because they are not for child processes.

    Raises `OSError` for anything but a TCP socket.
    """
    count = environment.pop("LISTEN_FDS", "")
    pid = environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for number in range(int(count)):
        name = names[number] if number < len(names) and names[number] else "unknown"
        found.append((name, listening_socket(_FIRST + number, f"the socket {name!r}")))
    return found


def listening_socket(descriptor: int, what: str) -> socket.socket:
    """The TCP socket behind an inherited descriptor. Raises `OSError`."""
    try:
        os.set_inheritable(descriptor, False)
        one = socket.socket(fileno=descriptor)
    except OSError as error:
        raise OSError(
            f"{what} (descriptor {descriptor}) is not a socket: {error.strerror}"
        ) from None
    if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
        one.detach()
        raise OSError(f"{what} (descriptor {descriptor}) is not a TCP socket")
    one.setblocking(False)
    return one


class Notifier:
    """Notifies the service manager, if there is one. Never raises or blocks."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address[:1] not in ("/", "@"):
            self._address = ""
        #: Seconds between two watchdog messages, half of systemd's timeout; None without a
        #: watchdog.
        self.watchdog: float | None = None
        pid = environment.get("WATCHDOG_PID") or str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        if self._address and usec.isdigit() and int(usec) > 0 and pid == str(os.getpid()):
            self.watchdog = int(usec) / 2e6

    def notify(self, **fields: str | int) -> None:
        """Send `READY=1` and its like."""
        assert fields.keys() <= _FIELDS
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        # A leading @ means an abstract socket name.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.setblocking(False)
                one.connect(address)
                one.send(text.encode())
        except OSError as error:
            _log.warning("service manager not notified", extra={"error": str(error)})
