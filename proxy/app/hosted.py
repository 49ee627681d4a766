"""Runs applications in the proxy's process, each on a private unix socket.

aiohttp applications run on aiohttp's own runner, ASGI applications on uvicorn, if it is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

#: The longest path in `sockaddr_un` on Linux, without the terminating zero.
_LONGEST_PATH = 107

#: Seconds that requests in progress have to end when an application is stopped.
SHUTDOWN_TIMEOUT = 2.0


class HostedApp(Protocol):
    """A running application."""

    async def stop(self) -> None:
        """Stop it, including its own clean-up."""
        ...


class SocketDirectory:
    """A directory for sockets that only this user can enter, until `remove`."""

    def __init__(self) -> None:
        self._holder = tempfile.TemporaryDirectory(prefix="reliability-proxy-")
        if len(self._holder.name) > _LONGEST_PATH - 20:
            self._holder.cleanup()
            self._holder = tempfile.TemporaryDirectory(prefix="rp-", dir="/tmp")
        self._made = 0

    def new(self) -> Path:
        """The path for a new socket."""
        self._made += 1
        return Path(self._holder.name, f"{self._made}.sock")

    def remove(self) -> None:
        """Delete the directory and its content."""
        self._holder.cleanup()


async def host(app: object, path: Path) -> HostedApp:
    """Serve an `aiohttp.web.Application` or an ASGI application on a unix socket; None makes a
    socket that refuses every connection. A function without parameters is called to make the
    application. Raises what the application's start-up raises, `TypeError` for anything else, and
    `RuntimeError` without uvicorn."""
    if app is None:
        return _Nobody(path)
    if inspect.isfunction(app) and not inspect.signature(app).parameters:
        app = app()
        if inspect.isawaitable(app):
            app = await app
    if isinstance(app, web.Application):
        return await _AiohttpApp.start(app, path)
    if callable(app):
        return await _AsgiApp.start(app, path)
    raise TypeError(f"expected an aiohttp or ASGI application, found {type(app).__name__}")


class _Nobody:
    """A service that is not running, but whose address nobody else can take."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))

    async def stop(self) -> None:
        self._socket.close()


class _AiohttpApp:
    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner

    @classmethod
    async def start(cls, app: web.Application, path: Path) -> _AiohttpApp:
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT
        )
        try:
            await runner.setup()
            await web.UnixSite(runner, path).start()
        except BaseException:
            await runner.cleanup()
            raise
        return cls(runner)

    async def stop(self) -> None:
        await self._runner.cleanup()


class _AsgiApp:
    def __init__(self, server: Any, task: asyncio.Task[None]) -> None:
        self._server = server
        self._task = task

    @classmethod
    async def start(cls, app: object, path: Path) -> _AsgiApp:
        try:
            import uvicorn
        except ImportError as error:
            raise RuntimeError("an ASGI application needs uvicorn: pip install uvicorn") from error

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Leave signals to the surrounding program."""
                yield

            async def until_stopped(self) -> None:
                """uvicorn exits the process on errors; here that must only end the server."""
                with contextlib.suppress(SystemExit):
                    await self.serve(sockets=[listening])

        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(path))
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]  # all we know is that it is callable
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(SHUTDOWN_TIMEOUT),
        )
        server = Server(config)
        task = asyncio.create_task(server.until_stopped(), name="ASGI application")
        hosted = cls(server, task)
        try:
            while not server.started:
                if task.done():
                    task.result()
                    raise RuntimeError("the ASGI application did not start; its log says why")
                await asyncio.wait({task}, timeout=0.01)
        except BaseException:
            await hosted.stop()
            listening.close()
            raise
        return hosted

    async def stop(self) -> None:
        self._server.should_exit = True
        await asyncio.gather(self._task, return_exceptions=True)
