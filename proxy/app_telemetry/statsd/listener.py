"""The sockets that receive statsd packets, read in turns so that a flood cannot block the loop.

1. A turn reads at most `_LINES` lines, about half a millisecond. If more are waiting, the socket
   pauses for `_REST` times as long as the turn took. So a flood gets at most a sixth of the loop;
   the kernel drops the rest (UDP, counted) or makes senders wait (unix).
2. A packet has at most 8 KiB, the maximum of DogStatsD clients. A longer one is counted and dropped
   as a whole, because a truncated one would be wrong.
3. The unix socket is created with its permissions under a temporary name, and then renamed over a
   stale one. So it is never missing, and never open to others.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path

from proxy.app_telemetry.statsd.series import StatsdSeries
from proxy.config.telemetry import Statsd
from proxy.core.errors import cannot_listen

_log = logging.getLogger(__name__)

MAX_PACKET = 8192
_LINES = 100
_REST = 5
_RECEIVE_BUFFER = 1024 * 1024  # the kernel caps it at net.core.rmem_max
_SO_MEMINFO = 55  # Linux 4.12; nine numbers, the last one is packets dropped
_MEMINFO = struct.Struct("9I")


class StatsdListener:
    """Reads packets into `series` from `start` to `stop`."""

    def __init__(self, config: Statsd, series: StatsdSeries) -> None:
        self._config = config
        self._series = series
        self._readers: list[_Reader] = []
        self._udp: socket.socket | None = None
        self._dropped = 0
        self._file: _SocketFile | None = None
        series.dropped = self.dropped

    @property
    def address(self) -> tuple[str, int] | None:
        """The UDP address; None without UDP."""
        if self._udp is None:
            return None
        host, port = self._udp.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Open the sockets. Raises `OSError`; none is left open then."""
        try:
            if self._config.bind is not None:
                self._udp = _udp_socket(self._config.bind.host, self._config.bind.port)
                self._readers.append(_Reader(self._udp, "udp", self._series))
            if self._config.socket is not None:
                self._file = _SocketFile(self._config.socket, int(self._config.socket_mode, 8))
                self._readers.append(_Reader(self._file.socket, "unix", self._series))
        except OSError as error:
            wants_udp = self._config.bind is not None and self._udp is None
            self.stop()
            where = self._config.bind if wants_udp else self._config.socket
            raise cannot_listen("statsd", where, error) from error
        for reader in self._readers:
            reader.start()

    def stop(self) -> None:
        """Close everything and remove the socket's file."""
        self._dropped = self.dropped()
        for reader in self._readers:
            reader.stop()
        self._readers.clear()
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        if self._file is not None:
            self._file.remove()
            self._file = None

    def dropped(self) -> int:
        """UDP packets that the kernel dropped so far; called by the scrape's thread as well."""
        udp = self._udp
        if udp is not None:
            # The socket was closed meanwhile, or the kernel is older: keep the last count.
            with suppress(OSError, struct.error):
                memory = udp.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
                self._dropped = _MEMINFO.unpack(memory)[-1]
        return self._dropped


class _Reader:
    """One socket on the event loop."""

    def __init__(self, source: socket.socket, transport: str, series: StatsdSeries) -> None:
        self._socket = source
        self._series = series
        self._accepted = (transport, "accepted")
        self._oversized = (transport, "oversized")
        series.packets.setdefault(self._accepted, 0)
        series.packets.setdefault(self._oversized, 0)
        self._loop = asyncio.get_running_loop()
        self._left: list[bytes] = []
        self._resting: asyncio.TimerHandle | None = None
        self._failing = False

    def start(self) -> None:
        self._loop.add_reader(self._socket, self._turn)

    def stop(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._socket)

    def _turn(self) -> None:
        budget, began = _LINES, time.perf_counter()
        while budget > 0:
            lines = self._left or self._next()
            if lines is None:
                return
            taken, self._left = lines[:budget], lines[budget:]
            for line in taken:
                if line:
                    self._series.line(line)
            budget -= len(taken)
        self._series.throttled += 1
        self._loop.remove_reader(self._socket)
        took = time.perf_counter() - began
        self._resting = self._loop.call_later(_REST * took, self._wake)

    def _wake(self) -> None:
        self._resting = None
        self._loop.add_reader(self._socket, self._turn)
        if self._left:  # lines of a packet that has been read from the socket
            self._turn()

    def _next(self) -> list[bytes] | None:
        """The lines of the next packet, at least one, because an empty packet also costs a line of
        the turn; None if there is no packet."""
        try:
            packet = self._socket.recv(MAX_PACKET + 1)
        except BlockingIOError:
            return None
        except OSError as error:
            if not self._failing:
                self._failing = True
                _log.warning("statsd socket failed", extra={"reason": str(error)})
            return None
        if len(packet) > MAX_PACKET:
            self._series.packets[self._oversized] += 1
            return [b""]
        self._series.packets[self._accepted] += 1
        if b"\r" in packet:  # from Windows, and from clients that use HTTP's line ends
            packet = packet.replace(b"\r\n", b"\n").removesuffix(b"\r")
        return packet.split(b"\n")


def _udp_socket(host: str, port: int) -> socket.socket:
    """A bound socket, non-blocking. `""` is every address, of IPv4 alone on a machine without IPv6.
    Raises `OSError`."""
    if host:
        return _bound(socket.AF_INET6 if ":" in host else socket.AF_INET, host, port)
    try:
        return _bound(socket.AF_INET6, "::", port, both=True)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bound(socket.AF_INET, "0.0.0.0", port)  # noqa: S104 (only where the config says so)


def _bound(
    family: socket.AddressFamily, host: str, port: int, *, both: bool = False
) -> socket.socket:
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        udp.setblocking(False)
        udp.bind((host, port))
    except OSError:
        udp.close()
        raise
    return udp


class _SocketFile:
    """A unix datagram socket and its file."""

    def __init__(self, path: Path, mode: int) -> None:
        """Raises `OSError`, also if something other than a stale socket is in the way."""
        _make_way(path)
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        passing = path.with_name(f"{path.name}.{os.getpid() % 100_000}")
        try:
            with suppress(FileNotFoundError):
                passing.unlink()
            self.socket.setblocking(False)
            os.fchmod(
                self.socket.fileno(), mode
            )  # Linux: the file is created with these, less the umask
            self.socket.bind(str(passing))
            passing.chmod(mode)  # and now with the bits that the umask removed
            passing.rename(path)
            self._inode = path.stat().st_ino
        except OSError:
            self.socket.close()
            with suppress(OSError):
                passing.unlink()
            raise

    def remove(self) -> None:
        """Close, and remove the file if it is still ours."""
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass  # somebody else has removed it
        except OSError as error:
            _log.warning("statsd socket not removed", extra={"reason": str(error)})
        self.socket.close()


def _make_way(path: Path) -> None:
    """Raises `OSError` unless `path` is free or a socket that nobody reads any more."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "the file is not a socket", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "another process reads from it", str(path))
