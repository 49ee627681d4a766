"""A proxy with upload routes between a raw client and an upstream that keeps what reaches it."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.http1 import PATIENCE, Connection, RawClient, Request, Site, Truncated, get, respond
from tests.uploads.drive import CONTENT_TYPE

KB = 1000
SMALL = 100 * KB

ROUTES: list[dict[str, Any]] = [
    {"name": "create-video", "methods": ["POST"], "path": "/make-video", "upstream": "app",
     "upload": {}},
    {"name": "small", "path": "/small", "upstream": "app", "upload": {"max_size": SMALL}},
    {"name": "raw", "path": "/raw", "upstream": "app", "upload": {"field": None}},
    {"name": "report", "path": "/report", "upstream": "app",
     "upload": {"mode": "report", "max_size": SMALL}},
    {"name": "other", "path": "/{rest:*}", "upstream": "app"},
]  # fmt: skip


@dataclass
class Arrived:
    """One request as the app got it: its body, or what came of it before it was cut."""

    request: Request
    body: bytes
    complete: bool


@dataclass
class RecordingApp:
    """An upstream's handler: keeps every body, complete or cut, and answers 202."""

    arrived: list[Arrived] = field(default_factory=list)

    def __call__(self, connection: Connection, request: Request) -> None:
        try:
            body = connection.body(request)
        except Truncated as cut:
            self.arrived.append(Arrived(request, cut.partial, complete=False))
            raise
        self.arrived.append(Arrived(request, body, complete=True))
        connection.send(respond(b'{"status":"accepted"}', "202 Accepted"))


class UploadSite(Site):
    """A `Site` whose routes check uploads; `app.arrived` has what the app got since `fresh`."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        super().__init__(directory, {"front": {"routes": ROUTES}}, **settings)
        self.fresh()

    def fresh(self) -> None:
        """Forget what arrived."""
        self.settle()
        self.upstream.fresh()
        self.app = RecordingApp()
        self.upstream.handler = self.app

    def settle(self) -> None:
        """Until the app has seen all that the proxy did: every connection that was opened, and the
        end of every one that was closed."""
        opened = self.metric("proxy_upstream_connect_seconds_count", upstream="app")
        left = sum(
            self.metric("proxy_upstream_connections", upstream="app", state=state)
            for state in ("idle", "active")
        )
        self.upstream.wait(
            lambda: self.upstream.accepted >= opened and self.upstream.open <= left,
            "the end of every connection",
        )

    def only_arrival(self) -> Arrived:
        """The one request of this test, once the app has its end or lost it."""
        self.upstream.wait(lambda: bool(self.app.arrived), "a request that ended")
        assert len(self.app.arrived) == 1
        return self.app.arrived[0]

    def assert_nothing_arrived(self) -> None:
        """The app was not asked for anything."""
        self.settle()
        assert self.app.arrived == []

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample at /metrics; 0 where it is not there."""
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        for line in self.proxy.admin("/metrics")[1].splitlines():
            found, _, value = line.rpartition(" ")
            found, _, inside = found.partition("{")
            if found == name and wanted <= set(inside.removesuffix("}").split(",")):
                return float(value)
        return 0.0

    def probes(self) -> list[psutil.Process]:
        """The processes that examine uploads now."""
        return at_work(psutil.Process(self.proxy.pid))


def at_work(proxy: psutil.Process) -> list[psutil.Process]:
    """The probe processes that have an upload, which is when their time is limited; not their
    parent. (Not told by the sandbox: in a container all have one.)"""
    found = []
    for process in proxy.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            probe = "proxy.uploads.probe.process" in process.cmdline()
            alive = process.status() != psutil.STATUS_ZOMBIE
            if probe and alive and time_limit(process) != time_limit(proxy):
                found.append(process)
    return found


def time_limit(process: psutil.Process) -> str:
    """How much of a processor's time it may use: soft and hard limit, as the kernel shows them."""
    limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    return next((line for line in limits if line.startswith("Max cpu time")), "ended")


def head(
    length: int | None, *fields: str, path: str = "/make-video", method: str = "POST"
) -> bytes:
    """The head of an upload; chunked without `length`. `fields` may replace the form's type."""
    if not any(line.lower().startswith("content-type:") for line in fields):
        fields = (f"Content-Type: {CONTENT_TYPE.decode()}", *fields)
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return get(path, *fields, framing, method="POST")


def chunked(body: bytes, size: int = 65_536) -> bytes:
    """`body` in chunks of `size` bytes, with the last chunk."""
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def answered(client: RawClient) -> bool:
    """Whether the proxy has sent something that was not read yet."""
    client.sock.settimeout(0.001)
    try:
        client.sock.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    finally:
        client.sock.settimeout(PATIENCE)
    return True
