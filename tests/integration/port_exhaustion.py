"""In a network namespace of its own: a proxy whose host has no local port left for an upstream.

Run by test_own_shortage.py as `unshare -rn python -m tests.integration.port_exhaustion DIRECTORY`.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import threading
from pathlib import Path

from tests.http1 import Connection, Request, Site, assert_problem, get, respond, wait_until
from tests.integration.test_own_shortage import WATCHED, assert_not_blamed, events

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def loopback_up() -> None:
    """A new namespace has its loopback down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        flags = struct.unpack("16sh14x", answer)[1] | _IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


def main(directory: Path) -> None:
    """Hold two calls, which take both ports to the upstream, and make a third."""
    loopback_up()
    go_on = threading.Event()
    waiting = threading.Semaphore(0)

    def holds(connection: Connection, request: Request) -> None:
        if request.target == "/hold":
            waiting.release()
            go_on.wait(30)
        connection.send(respond())

    # Without health checks, whose own connections would take ports now and then.
    watched = {key: value for key, value in WATCHED.items() if key != "health"}
    with Site(directory, {"one": {}, "two": {}}, app=watched) as site:
        site.upstream.handler = holds
        wide = _RANGE.read_text()
        _RANGE.write_text("60000 60001")
        with site.connect("one") as first, site.connect("one") as second:
            for client in (first, second):
                client.send(get("/hold"))
                assert waiting.acquire(timeout=30)
            with site.connect("two") as third:
                third.send(get("/"))
                answer = third.response()
                problem = assert_problem(answer, 503, "overloaded")
                assert "local port" in problem["detail"], problem
                assert answer.get("Retry-After") == "1"
                _RANGE.write_text(wide)
                go_on.set()
                assert [client.response().status for client in (first, second)] == [200, 200]
                third.send(get("/"))
                assert third.response().status == 200
        assert_not_blamed(site)
        wait_until(lambda: bool(events(site, "shortage")), "a line about the shortage")
        assert [line["reason"] for line in events(site, "shortage")] == ["no_local_ports"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
