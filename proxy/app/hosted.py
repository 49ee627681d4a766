"""Applications that run in the proxy's process, each on a unix socket that nobody else can reach.

aiohttp applications run on aiohttp's own runner, ASGI ones on uvicorn, where that is installed.
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

#: What `sockaddr_un` holds on Linux, the zero at its end taken off.
_LONGEST_PATH = 107

#: Seconds that requests in progress get when an application is stopped.
SHUTDOWN_TIMEOUT = 2.0


class HostedApp(Protocol):
    """An application that is served."""

    async def stop(self) -> None:
        """End it, its own clean-up included."""
        ...


class SocketDirectory:
    """A directory for sockets that only this user can enter; gone with `remove`."""

    def __init__(self) -> None:
        self._holder = tempfile.TemporaryDirectory(prefix="reliability-proxy-")
        if len(self._holder.name) > _LONGEST_PATH - 20:
            self._holder.cleanup()
            self._holder = tempfile.TemporaryDirectory(prefix="rp-", dir="/tmp")
        self._made = 0

    def new(self) -> Path:
        """The path of one more socket."""
        self._made += 1
        return Path(self._holder.name, f"{self._made}.sock")

    def remove(self) -> None:
        """Delete it, with what is left in it."""
        self._holder.cleanup()


async def host(app: object, path: Path) -> HostedApp:
    """Serve an `aiohttp.web.Application` or an ASGI application on a unix socket, or None: then the
    socket is there, and refuses every connection. Raises what the application's start-up raises,
    `TypeError` for what is neither, `RuntimeError` without uvicorn. A function without parameters
    is asked for the application, as `make_app` of a target is."""
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
    """As a service that is not running, whose port nobody else can take meanwhile."""

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
                """Signals belong to the program around it."""
                yield

            async def until_stopped(self) -> None:
                """What it says by ending the process is an exception here."""
                with contextlib.suppress(SystemExit):
                    await self.serve(sockets=[listening])

        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(path))
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]  # that it is callable is all that can be known
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
