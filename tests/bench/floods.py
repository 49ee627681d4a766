"""Floods: what one client's bytes cost everybody else, beside nginx and HAProxy where installed.

    python -m tests.bench.floods --only reliability-proxy,nginx,haproxy --seconds 2

Somebody sends one of `FLOODS` as fast as a process can, while a neighbour asks for something small
every few milliseconds on a kept connection and on a new one, and asks the upstream itself each
time as well. Shown is by how much the neighbour's slowest answer was slower than the slowest of
those, and the proxy's highest resident memory. Each contender is started anew for each flood.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy.demo.redis_server import free_port
from tests.bench import contenders
from tests.bench.children import Child, ChildError, Cores, module, running, start
from tests.bench.contenders.base import Contender, Place

_CONTENDERS = ("reliability-proxy", "nginx", "haproxy")
_NEIGHBOUR = b"GET /neighbour HTTP/1.1\r\nHost: neighbour\r\n\r\n"
_EVERY = 0.004
_MIB = 1024 * 1024


def _request(line: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join((f"{line} HTTP/1.1", "Host: flood", *fields, "", "")).encode() + body


@dataclass(frozen=True, slots=True)
class Flood:
    """`first` once, then `again` for ever on each of `connections`; one that ends is opened anew.

    `piece` bytes go out at a time; `reads` says whether answers are taken. `resets`: `first` and a
    reset instead, from so many addresses in turn, on one connection after the other.
    """

    about: str
    first: bytes = b""
    again: bytes = b""
    connections: int = 1
    piece: int = 256 * 1024
    reads: bool = True
    resets: int = 0


_CHUNKED = _request("POST /upload", "Transfer-Encoding: chunked")
FLOODS: dict[str, Flood] = {
    "trace": Flood("pipelined TRACE", again=_request("TRACE /") * 2000),
    "many-trace": Flood("the same on 200", again=_request("TRACE /") * 500, connections=200),
    "options": Flood("pipelined OPTIONS *", again=_request("OPTIONS *") * 2000),
    "empty-posts": Flood(
        "pipelined POSTs without body", again=_request("POST /", "Content-Length: 0") * 2000
    ),
    "tiny-posts": Flood(
        "pipelined POSTs of a byte", again=_request("POST /", "Content-Length: 1", body=b"x") * 2000
    ),
    "chunked-posts": Flood(
        "pipelined empty chunked POSTs",
        again=_request("POST /", "Transfer-Encoding: chunked", body=b"0\r\n\r\n") * 2000,
    ),
    "gets": Flood("pipelined GETs", again=_request("GET /") * 2000),
    "tiny-chunks": Flood("chunks of a byte", first=_CHUNKED, again=b"1\r\nx\r\n" * 40_000),
    "many-tiny-chunks": Flood(
        "the same on 100", first=_CHUNKED, again=b"1\r\nx\r\n" * 10_000, connections=100
    ),
    "dribbled-heads": Flood(
        "heads of 8 KB in packets of a byte",
        again=_request("GET /", *[f"X-{n}: {'y' * 100}" for n in range(75)]),
        connections=20,
        piece=1,
    ),
    "empty-lines": Flood("empty lines", again=b"\r\n" * 100_000, connections=20),
    "bad-heads": Flood("400s, and the connection again", again=b"\0" * 1000, connections=50),
    "unfinished-heads": Flood(
        "16 KB of a head, held",
        first=_request("GET /")[:-2] + b"X-a: " + b"y" * 16_000,
        connections=1000,
    ),
    "unread-answers": Flood(
        "pipelined GETs of 100 KB, not read",
        again=_request("GET /bytes/100000") * 500,
        connections=200,
        reads=False,
    ),
    "uploads-not-taken": Flood(
        "100 fast uploads into an upstream that hardly reads",
        first=_request("POST /hardly", "Content-Length: 100000000"),
        again=b"\0" * 256 * 1024,
        connections=100,
    ),
    "drip": Flood("answers in chunks of a byte", first=_request("GET /drip"), connections=20),
    "interim": Flood("30 interim answers each", again=_request("GET /interim") * 200),
    "connects": Flood("connections without a request", connections=300, again=b""),
    "resets": Flood(
        "GETs, each followed by a reset, from 8 addresses", first=_request("GET /"), resets=8
    ),
}


# --- the upstream -------------------------------------------------------------------------------


def upstream(port: int) -> None:
    """Serve for ever, a thread each: small answers, and what the floods ask for."""
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        while True:
            threading.Thread(target=_serve, args=(listener.accept()[0],), daemon=True).start()


def _serve(sock: socket.socket) -> None:
    ahead = b""
    try:
        while True:
            while b"\r\n\r\n" not in ahead:
                data = sock.recv(65536)
                if not data:
                    return
                ahead += data
            head, _, ahead = ahead.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            ahead = _read_body(sock, head.lower(), ahead, slowly=path == b"/hardly")
            for part in _answer(path):
                sock.sendall(part)
    except OSError:
        pass
    finally:
        sock.close()


def _read_body(sock: socket.socket, head: bytes, ahead: bytes, *, slowly: bool) -> bytes:
    """What stands behind the body. A chunked one ends with its last chunk in one piece."""
    if b"chunked" in head:
        while b"0\r\n\r\n" not in ahead:
            data = sock.recv(1 << 20)
            if not data:
                raise OSError
            ahead = ahead[-4:] + data
        return ahead.partition(b"0\r\n\r\n")[2]
    _, found, rest = head.partition(b"content-length:")
    left = int(rest.split(b"\r\n")[0]) if found else 0
    while len(ahead) < left:
        left -= len(ahead)
        ahead = sock.recv(1000 if slowly else 1 << 20)
        if not ahead:
            raise OSError
        if slowly:
            time.sleep(0.1)
    return ahead[left:]


def _answer(path: bytes) -> Iterator[bytes]:
    ok = b"HTTP/1.1 200 OK\r\n"
    if path.startswith(b"/bytes/"):
        size = int(path[7:])
        yield ok + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    elif path == b"/drip":
        yield ok + b"Transfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"1\r\nx\r\n" * 20_000
    else:
        if path == b"/interim":
            yield b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 30
        yield ok + b"Content-Length: 2\r\n\r\nok"


# --- the attacker -------------------------------------------------------------------------------


def attack(flood: Flood, port: int) -> None:
    """Send for ever."""
    selector = selectors.DefaultSelector()
    opened = 0
    print("flooding", flush=True)
    while flood.resets:
        _reset_some(flood, port)
    while True:
        while opened < flood.connections:
            try:
                sock = socket.create_connection(("127.0.0.1", port), timeout=1.0)
            except OSError:
                time.sleep(0.01)
                break
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            events = selectors.EVENT_WRITE | (selectors.EVENT_READ if flood.reads else 0)
            selector.register(sock, events, _pieces(flood))
            opened += 1
        for key, events in selector.select(0.1):
            sock = key.fileobj  # type: ignore[assignment]
            try:
                if events & selectors.EVENT_READ and not sock.recv(1 << 20):
                    raise OSError
                if events & selectors.EVENT_WRITE:
                    sent, piece = key.data.send(None)
                    if piece is None:
                        if not flood.first:
                            raise OSError  # nothing to say: come again
                        selector.modify(sock, selectors.EVENT_READ, key.data)
                    else:
                        sent.append(sock.send(piece))
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(sock)
                sock.close()
                opened -= 1


def _reset_some(flood: Flood, port: int) -> None:
    for last in range(2, 2 + flood.resets):
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.settimeout(1.0)
            sock.bind((f"127.0.0.{last}", 0))
            sock.connect(("127.0.0.1", port))
            sock.sendall(flood.first)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _pieces(flood: Flood) -> Generator[tuple[list[int], memoryview | None], None, None]:
    """What to send next, and where to note how much of it went; None when there is no more."""
    sent: list[int] = []
    for data in _for_ever(flood):
        left = memoryview(data)
        while left:
            yield sent, left[: flood.piece]
            left = left[sum(sent) :]
            sent.clear()
    while True:
        yield sent, None


def _for_ever(flood: Flood) -> Iterator[bytes]:
    if flood.first:
        yield flood.first
    while flood.again:
        yield flood.again


# --- the neighbour ------------------------------------------------------------------------------


def ask(sock: socket.socket) -> None:
    """One small request and its whole answer."""
    sock.sendall(_NEIGHBOUR)
    got = b""
    while not got.endswith(b"\r\n\r\nok"):
        data = sock.recv(65536)
        if not data:
            raise OSError("the neighbour was cut off")
        got += data


class Neighbour:
    """Asks on a kept connection, every fourth time on a new one. `took` are seconds."""

    def __init__(self, port: int) -> None:
        self.took: list[float] = []
        self._port = port
        self._kept = socket.create_connection(("127.0.0.1", port), timeout=30)

    def ask(self) -> None:
        """Once."""
        began = time.monotonic()
        if len(self.took) % 4 == 3:
            with socket.create_connection(("127.0.0.1", self._port), timeout=30) as fresh:
                ask(fresh)
        else:
            ask(self._kept)
        self.took.append(time.monotonic() - began)

    def worst(self) -> float:
        """The longest."""
        return max(self.took)


def neighbours(ports: tuple[int, int], seconds: float) -> list[Neighbour]:
    """Two who ask in turns: one the proxy, one the upstream."""
    both = [Neighbour(port) for port in ports]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for one in both:
            one.ask()
        time.sleep(_EVERY)
    return both


# --- the race -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """Of one contender under one flood: milliseconds more than past it, and mebibytes."""

    worst: float
    memory: float
    asked: int

    def __str__(self) -> str:
        return f"{self.worst:.0f} ms ({self.asked} asked), {self.memory:.0f} MB"


def measure(contender: Contender, name: str, seconds: float, cores: Cores, workdir: Path) -> Found:
    port, behind = free_port(), free_port()
    argv = module("tests.bench.floods", "--upstream", str(behind))
    with running(start("upstream", argv, core=cores.upstream, workdir=workdir), behind):
        place = Place(port, free_port(), behind, workdir, cores.proxy)
        with running(contender.start(place).child, port) as proxy:
            argv = module("tests.bench.floods", "--attack", name, "--port", str(port))
            flooder: Child = start("flood", argv, core=cores.load, workdir=workdir)
            try:
                _until_it_floods(flooder)
                through, direct = neighbours((port, behind), seconds)
                if flooder.process.poll() is not None:
                    raise ChildError(f"the flood ended: {flooder.last_words()}")
            finally:
                flooder.stop(grace=0.5)
            return Found(
                worst=max(0.0, through.worst() - direct.worst()) * 1000,
                memory=proxy.rss_peak() / _MIB,
                asked=len(through.took),
            )


def _until_it_floods(flooder: Child) -> None:
    """A Python that starts beside others takes its time. Raises `ChildError`."""
    deadline = time.monotonic() + 20.0
    while not flooder.output.read_text():
        if flooder.process.poll() is not None or time.monotonic() > deadline:
            raise ChildError(f"no flood: {flooder.last_words()}")
        time.sleep(0.02)


def main() -> int:
    """0, or 1 when a neighbour of ours waited longer than `--worst` milliseconds more."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.floods", description=__doc__)
    parser.add_argument("--only", default=",".join(_CONTENDERS), metavar="NAME,…")
    parser.add_argument("--flood", default=",".join(FLOODS), metavar="NAME,…")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--worst", type=float, default=250.0, metavar="MS")
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.upstream:
        upstream(given.upstream)
    if given.attack:
        os.nice(5)  # the neighbour's own waiting for a processor is not what is measured
        attack(FLOODS[given.attack], given.port)
    chosen = [one for one in contenders.chosen(given.only.split(",")) if one.available() is None]
    cores, failed = Cores.of_machine(), False
    print("| flood | what | " + " | ".join(one.name for one in chosen) + " |")
    print("|---|---|" + "---|" * len(chosen))
    for name in given.flood.split(","):
        cells = []
        for contender in chosen:
            with tempfile.TemporaryDirectory(prefix="floods-") as workdir:
                try:
                    found = measure(contender, name, given.seconds, cores, Path(workdir))
                except (ChildError, OSError) as error:
                    cells.append(f"failed: {error}")
                    failed = failed or contender.name == contenders.OURS
                    continue
            cells.append(str(found))
            failed = failed or (contender.name == contenders.OURS and found.worst > given.worst)
        print(f"| {name} | {FLOODS[name].about} | " + " | ".join(cells) + " |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
