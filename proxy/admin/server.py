"""Serves the admin applications on their addresses."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from proxy.admin.applications import EndpointGroup, admin_app, metrics_app
from proxy.admin.backend import AdminBackend
from proxy.admin.connections import Connections
from proxy.admin.large_answers import ANSWERS, Answers
from proxy.config.schema import Config
from proxy.config.units import Bind
from proxy.core.errors import cannot_listen
from proxy.core.memory.budget import MemoryBudget
from proxy.server.listening import Given, duplicate, label

#: Bytes of a request line or of one field, and fields of a head.
_LINE, _FIELDS = 8190, 64

SHUTDOWN_TIMEOUT = 2.0  # seconds that a request in progress has when the door closes

logger = logging.getLogger(__name__)


def _one_line(record: logging.LogRecord) -> bool:
    """What is not HTTP is the client's fault, and a scanner's daily bread: no error with a stack of
    ours, as aiohttp has it, but a line with the reason."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "unreadable admin request", ()
        record.exc_info = None
        record.detail = error.message[:200]
    return logger.isEnabledFor(record.levelno)


logger.addFilter(_one_line)


class AdminServer:
    """Start it, stop it; once each. `connections` bounds what the clients of `app` may hold."""

    def __init__(self, app: web.Application, connections: Connections, name: str = "admin") -> None:
        self._name = name
        self._connections = connections
        self._servers: list[asyncio.Server] = []
        self.sockets: list[socket.socket] = []
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=logger,
            handle_signals=False,
            keepalive_timeout=30.0,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
            max_line_size=_LINE,
            max_field_size=_LINE,
            max_headers=_FIELDS,
        )

    async def start(self, bind: Bind, given: Given | None = None) -> Bind:
        """Listen; returns the address with its real port. Raises `OSError`, port in use among
        them, and then needs no `stop`."""
        await self._runner.setup()
        try:
            self.sockets = (given or Given()).open(self._name, bind)
            await self.resume()
        except OSError:
            await self.stop()
            raise
        return Bind(bind.host, self.sockets[0].getsockname()[1])

    def pause(self) -> None:
        """Accept nothing, but keep the sockets; requests in progress go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def resume(self) -> None:
        """Accept. Raises `OSError`."""
        assert self._runner.server is not None
        protocol = self._connections.bounded(self._runner.server)
        for one in self.sockets:
            self._servers.append(
                await asyncio.get_running_loop().create_server(protocol, sock=duplicate(one))
            )

    def release(self) -> None:
        """A successor answers here from now on: close our descriptors, and what is idle."""
        self.pause()
        for one in self.sockets:
            one.close()
        self.sockets = []
        self._connections.close_idle()

    async def stop(self) -> None:
        """Stop listening, and wait for requests in progress, a little."""
        self.pause()
        for one in self.sockets:
            one.close()
        await self._runner.cleanup()
        self._connections.close()


class AdminServers:
    """Both doors of a running proxy. `parts` are endpoints beyond those of the proxy as a whole.

    Addresses, token and host names are those of the start: a reload does not move the doors.
    """

    def __init__(
        self,
        operated: AdminBackend,
        parts: Sequence[EndpointGroup] = (),
        given: Given | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self._given = given
        self._operated = operated
        self._parts = parts
        self._servers: list[AdminServer] = []
        self._binds: list[tuple[str, Bind]] = []
        #: What the clients of each port hold.
        self._answers = Answers(memory or MemoryBudget())
        self.connections = {
            "admin": Connections(self._answers),
            "metrics": Connections(self._answers),
        }
        self.addresses: list[Bind] = []  #: where they listen, the admin's first

    async def start(self, config: Config) -> None:
        """Listen. Raises `OSError` that names the address; `stop` is needed even then."""
        app = admin_app(config.admin, self._operated, self._parts)
        await self._open("admin", config.admin.bind, app)
        if config.metrics is not None:
            bind = config.metrics.bind
            await self._open("metrics", bind, metrics_app(bind, self._operated))

    async def _open(self, port: str, bind: Bind, app: web.Application) -> None:
        connections = self.connections[port]
        app[ANSWERS] = self._answers
        app.middlewares.insert(0, connections.middleware())
        server = AdminServer(app, connections, port)
        try:
            self.addresses.append(await server.start(bind, self._given))
        except OSError as error:
            raise cannot_listen(port, bind, error) from error
        self._servers.append(server)
        self._binds.append((port, bind))

    def labelled(self) -> list[tuple[str, socket.socket]]:
        """Every socket, for a successor."""
        return [
            (label(port, bind), one)
            for (port, bind), server in zip(self._binds, self._servers, strict=True)
            for one in server.sockets
        ]

    def pause(self) -> None:
        """Accept nothing: who comes now waits in the kernel."""
        for server in self._servers:
            server.pause()

    async def resume(self) -> None:
        """Accept again. Raises `OSError`."""
        for server in self._servers:
            await server.resume()

    def release(self) -> None:
        """A successor answers from now on."""
        for server in self._servers:
            server.release()

    async def stop(self) -> None:
        """Stop listening, and wait for requests in progress, a little."""
        while self._servers:
            await self._servers.pop().stop()
