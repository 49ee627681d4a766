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

SHUTDOWN_TIMEOUT = 2.0  # seconds that requests in progress have to end when the server stops

logger = logging.getLogger(__name__)


def _one_line(record: logging.LogRecord) -> bool:
    """Shorten the log of malformed requests, which scanners send all the time: one line with the
    reason, where aiohttp logs an error with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "unreadable admin request", ()
        record.exc_info = None
        record.detail = error.message[:200]
    return logger.isEnabledFor(record.levelno)


logger.addFilter(_one_line)


class AdminServer:
    """One server; start and stop it once. `connections` bounds what its clients may hold."""

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
        """Listen; returns the address with the actual port. Raises `OSError`, for example for a
        port in use, and needs no `stop` then."""
        await self._runner.setup()
        try:
            self.sockets = (given or Given()).open(self._name, bind)
            await self.resume()
        except OSError:
            await self.stop()
            raise
        return Bind(bind.host, self.sockets[0].getsockname()[1])

    def pause(self) -> None:
        """Accept no connections but keep the sockets; requests in progress go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def resume(self) -> None:
        """Accept connections. Raises `OSError`."""
        assert self._runner.server is not None
        protocol = self._connections.bounded(self._runner.server)
        for one in self.sockets:
            self._servers.append(
                await asyncio.get_running_loop().create_server(protocol, sock=duplicate(one))
            )

    def release(self) -> None:
        """A successor answers from now on: close our descriptors and idle connections."""
        self.pause()
        for one in self.sockets:
            one.close()
        self.sockets = []
        self._connections.close_idle()

    async def stop(self) -> None:
        """Stop listening; requests in progress get `SHUTDOWN_TIMEOUT` to end."""
        self.pause()
        for one in self.sockets:
            one.close()
        await self._runner.cleanup()
        self._connections.close()


class AdminServers:
    """The admin and metrics ports of a running proxy. `groups` are further groups of endpoints.

    Addresses, token and host names are those of the start; a reload does not change them.
    """

    def __init__(
        self,
        backend: AdminBackend,
        groups: Sequence[EndpointGroup] = (),
        given: Given | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self._given = given
        self._backend = backend
        self._groups = groups
        self._servers: list[AdminServer] = []
        self._binds: list[tuple[str, Bind]] = []
        #: Bounds what the clients of each port hold.
        self._answers = Answers(memory or MemoryBudget())
        self.connections = {
            "admin": Connections(self._answers),
            "metrics": Connections(self._answers),
        }
        self.addresses: list[Bind] = []  #: the addresses of both, the admin's first

    async def start(self, config: Config) -> None:
        """Listen. Raises `OSError` that names the address; call `stop` even then."""
        app = admin_app(config.admin, self._backend, self._groups)
        await self._open("admin", config.admin.bind, app)
        if config.metrics is not None:
            bind = config.metrics.bind
            await self._open("metrics", bind, metrics_app(bind, self._backend))

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
        """Accept no connections; new ones wait in the kernel."""
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
        """Stop listening; requests in progress get `SHUTDOWN_TIMEOUT` to end."""
        while self._servers:
            await self._servers.pop().stop()
