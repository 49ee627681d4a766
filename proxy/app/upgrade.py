"""Hands the running proxy over to a new process of the program on disk.

This is the old process' side. `core/process/handover.py` describes the steps and the messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from proxy.app.lifecycle import HANDOVER_PATIENCE, Lifecycle
from proxy.app.parts import Parts
from proxy.core.process.handover import HandoverFailed, Successor, ends_its_container

logger = logging.getLogger(__name__)

#: Seconds in which kept connections are closed with a response. Closing them between two responses
#: could cut off a request that is on its way. Callers do not wait for it.
EASE = 2.0

#: Seconds that exchanges with jobs have to end before their stores change hands.
SETTLE = 2.0


class Upgrade:
    """Hands over all parts, or takes them back and goes on as before."""

    def __init__(self, parts: Parts, lifecycle: Lifecycle) -> None:
        self._parts = parts
        self._lifecycle = lifecycle

    async def run(self, handed_over: Callable[[int], None] | None) -> int:
        """Hand over and return the pid of the new process, with which `handed_over` is called
        first. Raises `HandoverFailed`: then nothing has changed."""
        lifecycle = self._lifecycle
        if lifecycle.changing.locked():
            raise HandoverFailed("a reload or another upgrade is in progress")
        async with lifecycle.changing:
            if lifecycle.draining or lifecycle.starting:
                raise HandoverFailed("the proxy is starting or stopping")
            if handed_over is None:
                raise HandoverFailed(
                    "the proxy is embedded in another program: replace that program instead"
                )
            if ends_its_container():
                raise HandoverFailed(
                    "this process is the first of its container, which ends with it: start a new"
                    " container instead"
                )
            try:
                pid = await self._hand_over()
            except HandoverFailed as error:
                logger.error("upgrade failed", extra={"reason": str(error)})
                raise
            logger.info("handed over", extra={"to_pid": pid})
        handed_over(pid)
        return pid

    async def _hand_over(self) -> int:
        parts, lifecycle = self._parts, self._lifecycle
        labelled = [*parts.given.named(), *parts.sockets.labelled(), *parts.admin.labelled()]
        successor = await Successor.start(labelled)
        paused = False
        try:
            await successor.prepared()
            await parts.sockets.ease(EASE)
            paused = True
            parts.sockets.pause()
            parts.admin.pause()
            await self._jobs_settled()
            await lifecycle.stop_writers()
            taken = await successor.take_over()
        except BaseException as error:
            await successor.end()
            if not isinstance(error, Exception):  # we are about to stop
                await parts.sockets.resume()
                await parts.admin.resume()
                raise
            if paused:
                await self._take_back()
            raise HandoverFailed(str(error) or type(error).__name__) from error
        successor.leave()
        lifecycle.draining = lifecycle.handed_over = True
        parts.admin.release()
        await parts.sockets.release(taken)
        return successor.pid

    async def _jobs_settled(self) -> None:
        """Wait until no exchange needs the stores: every open connection is in an exchange that
        has nothing to do with jobs. New connections wait meanwhile, so there is a limit; an
        exchange that outlasts it gets the app's response without a confirmation."""
        parts = self._parts
        with_jobs = {
            (name, route.name)
            for name, listener in parts.config.listeners.items()
            for route in listener.routes
            if route.job is not None
        }
        end = parts.clock.monotonic() + SETTLE
        while parts.clock.monotonic() < end:
            others = sum(
                tally.in_flight
                for tally in parts.metrics.route_tallies()
                if (tally.listener, tally.endpoint) not in with_jobs
            )
            if parts.sockets.clients() <= others:
                return
            await asyncio.sleep(0.01)  # no event announces that a client has left

    async def _take_back(self) -> None:
        """The successor is gone: go on as before."""
        parts = self._parts
        parts.app_telemetry.forget()
        parts.app_telemetry = parts.new_app_telemetry(parts.config)
        try:
            await self._lifecycle.start_writers(HANDOVER_PATIENCE)
        except OSError as error:
            logger.error("upgrade rolled back only in part", extra={"reason": str(error)})
        finally:
            self._lifecycle.starting = ""
            await parts.sockets.resume()
            await parts.admin.resume()
