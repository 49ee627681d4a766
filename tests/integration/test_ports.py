"""Ports for servers that are still to come."""

from __future__ import annotations

import socket
import subprocess
import sys

from proxy.demo.ports import reserve_port

#: Another process that draws ports, and keeps them until it hears something.
DRAWS = """
from proxy.demo import ports
ports.PORTS = range(17_000, 19_000)
print(*(ports.free_port() for _ in range(50)), flush=True)
input()
"""


def test_no_port_is_given_twice() -> None:
    """Neither here nor in another process: what one has drawn is nobody else's, though nobody
    listens there. Two hundred of two thousand: without an agreement some would be the same."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", DRAWS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    given = [int(port) for child in children for port in read_line(child).split()]
    first = given[0]
    assert len(set(given)) == 200
    assert not reserve_port(first), "the other process still has it"
    for child in children:
        child.communicate("\n")
    assert reserve_port(first), "its process has ended"
    assert not reserve_port(first), "once"


def read_line(child: subprocess.Popen[str]) -> str:
    """What a child says."""
    assert child.stdout is not None
    return child.stdout.readline()


def test_a_port_in_use_is_not_given() -> None:
    """Whoever listens there need not have asked here; nobody's reservation is left behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not reserve_port(port)
        assert reserve_port(port, kind=socket.SOCK_DGRAM), "UDP has ports of its own"
    assert port not in range(20_000, 32_000)
