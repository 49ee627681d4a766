"""The process around the proxy: signals in, exit code out."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import uvloop

from proxy.app.composition import CannotStart, Proxy
from proxy.config.load import load_config
from proxy.config.problems import ConfigError
from proxy.core.memory.allocator import collect_rarely, keep_freed_memory
from proxy.core.process.handover import HandoverFailed, Predecessor
from proxy.core.process.systemd import Notifier, given_sockets
from proxy.core.tasks import Supervised
from proxy.server.listening import Given
from proxy.telemetry.logs.outputs import fill_standard_descriptors
from proxy.telemetry.logs.setup import Logs

logger = logging.getLogger(__name__)


_FATAL = "fatal: "
_HANDED_OVER = "handed over"

#: Requests that do not end the process and may be repeated.
_WHILE_SERVING = frozenset({"reload", "upgrade"})


class CannotGoOn(Exception):
    """A vital background task cannot be kept alive."""


def run(file: Path) -> int:
    """Run until SIGTERM or SIGINT and return the exit code: 0, or 1 if the proxy could not start or
    go on.

    Raises `ConfigError`.
    """
    try:
        predecessor = Predecessor.from_environment()
        given = Given(given_sockets(), predecessor.sockets if predecessor else ())
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        config = load_config(file)
    except ConfigError as error:
        if predecessor is not None:
            predecessor.failed(str(error))
        raise
    keep_freed_memory()
    fill_standard_descriptors()
    try:
        logs = Logs(config.logging.level, config.logging.output)
    except OSError as error:
        print(f"cannot open the log {config.logging.output}: {error}", file=sys.stderr)
        return 1
    try:
        uvloop.run(_run(partial(Proxy, file, config, logs, given=given), logs, predecessor))
    except (CannotStart, CannotGoOn) as error:
        if predecessor is not None:
            predecessor.failed(str(error))
        print(error, file=sys.stderr)
        return 1
    finally:
        logs.close()
    return 0


async def _run(proxy: Callable[[], Proxy], logs: Logs, predecessor: Predecessor | None) -> None:
    """First SIGTERM or SIGINT: drain, then stop. Second: stop at once. SIGHUP: reload. SIGUSR1:
    reopen the log file. SIGUSR2: hand over to a new process."""
    running = proxy()
    notifier = Notifier()
    loop = asyncio.get_running_loop()
    asked = asyncio.Queue[str]()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.put_nowait, "stop")
    loop.add_signal_handler(signal.SIGHUP, asked.put_nowait, "reload")
    loop.add_signal_handler(signal.SIGUSR1, logs.reopen)
    loop.add_signal_handler(signal.SIGUSR2, asked.put_nowait, "upgrade")
    running.vitals.tasks.fatal = lambda name: asked.put_nowait(f"{_FATAL}{name}")

    def handed_over(pid: int) -> None:
        notifier.notify(MAINPID=pid)
        asked.put_nowait(_HANDED_OVER)

    running.on_handed_over = handed_over
    what = await _started(running, asked, predecessor)
    collect_rarely()
    watchdog = Supervised("watchdog", partial(_feed_watchdog, notifier), running.vitals.tasks)
    if what is None or what in _WHILE_SERVING:
        if predecessor is not None:
            predecessor.serving(running.taken_over())
        else:
            notifier.notify(READY=1)
        if notifier.watchdog is not None:
            watchdog.start()
        what = await _serve(running, asked, notifier, what)
    if what != _HANDED_OVER:
        notifier.notify(STOPPING=1)
    try:
        await _end(running, asked, what)
    finally:
        await watchdog.stop()


async def _serve(
    proxy: Proxy, asked: asyncio.Queue[str], notifier: Notifier, what: str | None
) -> str:
    """Serve until something ends the process; returns what did."""
    upgrade: asyncio.Task[None] | None = None
    while what is None or what in _WHILE_SERVING:
        if what == "reload":
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            notifier.notify(RELOADING=1, MONOTONIC_USEC=now)
            await proxy.reload()
            notifier.notify(READY=1)
        elif what == "upgrade" and (upgrade is None or upgrade.done()):
            upgrade = asyncio.create_task(_upgrade(proxy), name="upgrade")
        what = await asked.get()
    if what != _HANDED_OVER and upgrade is not None:
        upgrade.cancel()
        await asyncio.wait({upgrade})
    return what


async def _upgrade(proxy: Proxy) -> None:
    with suppress(HandoverFailed):  # logged; everything is as before
        await proxy.upgrade()


async def _feed_watchdog(notifier: Notifier) -> None:
    """Show systemd that the event loop runs; otherwise it restarts us."""
    assert notifier.watchdog is not None
    while True:
        notifier.notify(WATCHDOG=1)
        await asyncio.sleep(notifier.watchdog)


async def _end(proxy: Proxy, asked: asyncio.Queue[str], what: str) -> None:
    """Drain unless the proxy is broken, then stop. Raises `CannotGoOn`."""
    if what.startswith(_FATAL):
        await proxy.stop()
        raise CannotGoOn(f"background task {what.removeprefix(_FATAL)} cannot be kept alive")
    draining = asyncio.create_task(proxy.drain(), name="drain")
    again = asyncio.create_task(_second_stop(asked), name="second signal")
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, again):
        task.cancel()
    await asyncio.gather(draining, again, return_exceptions=True)
    await proxy.stop()
    logger.info("stopped")


async def _started(
    proxy: Proxy, asked: asyncio.Queue[str], predecessor: Predecessor | None
) -> str | None:
    """Start; a request to stop cancels the start and is returned. A reload or upgrade waits for the
    end of the start and is returned then. Raises `CannotStart`."""
    start = asyncio.create_task(proxy.start(predecessor), name="start")
    later = None
    while True:
        asking = asyncio.create_task(asked.get(), name="signals during the start")
        await asyncio.wait({start, asking}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            if asking.done():
                asked.put_nowait(asking.result())
            asking.cancel()
            await start
            return later
        what = asking.result()
        if what in _WHILE_SERVING:
            later = what
            continue
        logger.info("asked to stop during the start")
        start.cancel()
        await asyncio.wait({start})
        return what


async def _second_stop(asked: asyncio.Queue[str]) -> None:
    while await asked.get() != "stop":
        pass
