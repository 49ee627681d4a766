"""Runs the applications that a config names as targets: `aiohttp:package.module:make_app`.

Each is created once, runs as long as an upstream names it, and listens on a private unix socket.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from proxy.app.hosted import HostedApp, SocketDirectory, host
from proxy.config.imports import CannotImport, load_object
from proxy.config.schema import Config
from proxy.config.units import TargetAddress

logger = logging.getLogger(__name__)


class AppTargets:
    """The applications of one proxy. `place` fills in their addresses in a config, `start` starts
    those that do not run yet, `keep` stops those that are no longer named."""

    def __init__(self) -> None:
        self._sockets: SocketDirectory | None = None
        self._paths: dict[str, Path] = {}
        self._running: dict[str, HostedApp] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def place(self, config: Config) -> Config:
        """`config` with each application's socket as its address."""
        changed = {
            name: upstream.model_copy(
                update={"targets": tuple(map(self._placed, upstream.targets))}
            )
            for name, upstream in config.upstreams.items()
            if any(target.app is not None for target in upstream.targets)
        }
        if not changed:
            return config
        return config.model_copy(update={"upstreams": {**config.upstreams, **changed}})

    def _placed(self, target: TargetAddress) -> TargetAddress:
        if target.app is None:
            return target
        if target.app not in self._paths:
            if self._sockets is None:
                self._sockets = SocketDirectory()
            self._paths[target.app] = self._sockets.new()
        return replace(target, path=str(self._paths[target.app]))

    async def start(self, config: Config) -> None:
        """Start those that `config` names. Raises `RuntimeError` with the name of one that does not
        start, and stops those that this call has started."""
        begun: list[str] = []
        try:
            for name in _named(config):
                if name not in self._running:
                    self._running[name] = await self._served(name)
                    begun.append(name)
        except BaseException:
            for name in begun:
                await self._running.pop(name).stop()
            raise

    async def _served(self, name: str) -> HostedApp:
        try:
            app = load_object(name)
            if not isinstance(app, web.Application) and callable(app):
                app = app()
                if inspect.isawaitable(app):
                    app = await app
            if not isinstance(app, web.Application):
                raise TypeError(f"expected an aiohttp.web.Application, found {type(app).__name__}")
            self._paths[name].unlink(missing_ok=True)
            hosted = await host(app, self._paths[name])
        except CannotImport as error:
            raise RuntimeError(f"aiohttp:{error}") from error
        except (Exception, SystemExit) as error:
            logger.exception("application did not start", extra={"app": name})
            text = f"aiohttp:{name} did not start: {type(error).__name__}: {error}"
            raise RuntimeError(text) from error
        logger.info("application started", extra={"app": name})
        return hosted

    def keep(self, config: Config) -> None:
        """Stop those that `config` does not name, after their requests in progress."""
        for name in self._running.keys() - _named(config):
            hosted = self._running.pop(name)
            task = asyncio.get_running_loop().create_task(hosted.stop(), name="leaving application")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def stop(self) -> None:
        """Stop all of them."""
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for name in list(self._running):
            try:
                await self._running.pop(name).stop()
            except Exception:  # of the application's own clean-up; the others must have theirs
                logger.exception("application did not stop", extra={"app": name})
        if self._sockets is not None:
            self._sockets.remove()
            self._sockets = None


def _named(config: Config) -> dict[str, None]:
    """The named applications, each once, in the order of the file."""
    return {
        target.app: None
        for upstream in config.upstreams.values()
        for target in upstream.targets
        if target.app is not None
    }
