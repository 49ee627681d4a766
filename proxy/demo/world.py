"""Everything that the demo runs: Redis, the stand-ins, the worker, and the proxy in front."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import TracebackType

import proxy
from proxy.demo.guard import Guard
from proxy.demo.microservices import MICROSERVICES
from proxy.demo.ports import free_port, reserve_port
from proxy.demo.processes import Child, ChildFailed
from proxy.demo.redis_server import RedisServer

CONFIG = Path(proxy.__file__).parent.parent / "config" / "demo.yaml"
SPEED = 10.0
BREAKER_OPEN_FOR = 3.0  # seconds; `app_breaker` in config/demo.yaml

_PREFERRED = {
    # name: port if it is free; also DEMO_<NAME>_PORT in config/demo.yaml
    "INGRESS": 8000,
    "EGRESS_YOUTUBE_SEARCH": 9003,
    "EGRESS_VIDEO_DOWNLOADER": 9002,
    "EGRESS_AUDIO_TRANSCRIBER": 9004,
    "MAKE_VIDEO": 8005,
    "YOUTUBE_SEARCH": 8003,
    "VIDEO_DOWNLOADER": 8002,
    "AUDIO_TRANSCRIBER": 8004,
    "ADMIN": 9901,
    "METRICS": 9464,
    "REDIS": 6390,
    "STATSD": 8125,  # UDP
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """The port of each server, by name."""

    ports: dict[str, int]

    def url(self, name: str) -> str:
        """`http://127.0.0.1:PORT` for a name."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def environment(self, state: Path) -> dict[str, str]:
        """What config/demo.yaml interpolates."""
        variables = {f"DEMO_{name}_PORT": str(port) for name, port in self.ports.items()}
        return {**variables, "DEMO_STATE": str(state)}


def choose_ports() -> Addresses:
    """The usual ports, with free ones in place of those that are taken. They stay reserved until
    this process exits, so that demos started at the same time do not collide."""
    ports: dict[str, int] = {}
    for name, preferred in _PREFERRED.items():
        kind = socket.SOCK_DGRAM if name == "STATSD" else socket.SOCK_STREAM
        ports[name] = preferred if reserve_port(preferred, kind=kind) else free_port(kind=kind)
    return Addresses(ports)


def find_config() -> Path:
    """`config/demo.yaml` of the checkout, or the copy in the wheel.

    Raises `ChildFailed` if there is neither.
    """
    if CONFIG.is_file():
        return CONFIG
    with suppress(PackageNotFoundError):
        for file in files("reliability-proxy") or ():
            if file.match("share/reliability-proxy/demo.yaml"):
                return Path(str(file.locate()))
    raise ChildFailed(
        f"{CONFIG} is missing, and so is share/reliability-proxy/demo.yaml of a wheel"
    )


class World:
    """An asynchronous context manager: starts everything, and leaves nothing behind."""

    def __init__(self) -> None:
        self._config = find_config()
        self.folder = Path(tempfile.mkdtemp(prefix="reliability-proxy-demo-"))
        self.at = choose_ports()
        self._guard = Guard(self.folder)
        self.redis = RedisServer(self.folder / "redis", self.at.ports["REDIS"])
        self.children = self._children()

    @property
    def ingress(self) -> str:
        """Where callers connect."""
        return self.at.url("INGRESS")

    @property
    def metrics(self) -> str:
        """The metrics page."""
        return self.at.url("METRICS") + "/metrics"

    @property
    def proxy_log(self) -> Path:
        """The proxy's log, one JSON object per line."""
        return self.children["proxy"].log

    async def start_redis(self) -> None:
        """Start an empty Redis server."""
        await asyncio.to_thread(self.redis.start)
        assert self.redis.pid is not None
        self._guard.watch(self.redis.pid)

    async def kill_redis(self) -> None:
        """Kill it with SIGKILL; all its data is lost."""
        pid = self.redis.pid
        await asyncio.to_thread(self.redis.kill)
        if pid is not None:
            self._guard.forget(pid)

    async def __aenter__(self) -> World:
        try:
            await self.start_redis()
            async with asyncio.TaskGroup() as group:
                for child in self.children.values():
                    group.create_task(child.start(), name=f"start-{child.name}")
        except BaseException as error:
            await self._stop()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        # The worker is killed, since its job would fail as the others stop.
        async with asyncio.TaskGroup() as group:
            for child in self.children.values():
                end = child.kill if child.name == "worker" else child.stop
                group.create_task(end(), name=f"stop-{child.name}")
        await self.kill_redis()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        await asyncio.to_thread(self._guard.close)

    def _children(self) -> dict[str, Child]:
        python = [sys.executable, "-m"]
        data = self.folder / "make-video"
        app = ["--redis-url", self.redis.url, "--data", str(data)]
        # The real breakers stay open for a minute, which is too long for the tour.
        app += ["--breaker-open-for", str(BREAKER_OPEN_FOR)]
        ports = self.at.ports
        children = [
            self._child(
                "make-video",
                [
                    *python,
                    "proxy.demo.make_video.service",
                    *app,
                    "--port",
                    str(ports["MAKE_VIDEO"]),
                ],
                ready_url=self.at.url("MAKE_VIDEO") + "/health",
                # Together with interpreter start-up, about the 2.2 s of the real one.
                restart_after=1.5,
            ),
            self._child(
                "worker",
                [*python, "proxy.demo.make_video.worker", *app, "--speed", str(SPEED)],
                environment={
                    "STATSD_HOST": "127.0.0.1",
                    "STATSD_PORT": str(ports["STATSD"]),
                    **{
                        f"{_variable(name)}_URL": self.at.url(f"EGRESS_{_variable(name)}")
                        for name in MICROSERVICES
                    },
                },
                restart_after=1.5,
            ),
            self._child(
                "proxy",
                [*python, "proxy", "run", "--config", str(self._config)],
                environment=self.at.environment(self.folder),
                ready_url=self.at.url("ADMIN") + "/readyz",
            ),
        ]
        for name in MICROSERVICES:
            port = ports[_variable(name)]
            work = str(5.0 / SPEED)
            command = [*python, "proxy.demo.microservices", name, "--port", str(port)]
            ready_url = self.at.url(_variable(name)) + "/health"
            children.append(self._child(name, [*command, "--work", work], ready_url=ready_url))
        return {child.name: child for child in children}

    def _child(
        self,
        name: str,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        ready_url: str | None = None,
        restart_after: float | None = None,
    ) -> Child:
        return Child(
            name,
            command,
            self.folder / f"{name}.log",
            self._guard,
            environment=environment or {},
            ready_url=ready_url,
            restart_after=restart_after,
        )


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")
