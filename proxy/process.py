"""The process around the proxy: signals in, exit code out."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop

from proxy.app import CannotStart, Proxy
from proxy.config.load import load_config
from proxy.config.schema import Config
from proxy.memory import collect_rarely, keep_freed_memory
from proxy.tasks import TASKS
from proxy.telemetry.logs import Logs
from proxy.telemetry.outputs import fill_standard_descriptors

logger = logging.getLogger(__name__)


_FATAL = "fatal: "


class CannotGoOn(Exception):
    """A part that the proxy cannot work without does not stay alive."""


def run(file: Path) -> int:
    """Run until SIGTERM or SIGINT and return the exit code: 0, or 1 when it could not start
    or go on.

    Raises `ConfigError`.
    """
    config = load_config(file)
    keep_freed_memory()
    fill_standard_descriptors()
    try:
        logs = Logs(config.logging.level, config.logging.output)
    except OSError as error:
        print(f"cannot open the log {config.logging.output}: {error}", file=sys.stderr)
        return 1
    try:
        uvloop.run(_run(file, config, logs))
    except (CannotStart, CannotGoOn) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        logs.close()
    return 0


async def _run(file: Path, config: Config, logs: Logs) -> None:
    """First SIGTERM or SIGINT: drain, then stop. Second: stop at once. SIGHUP: reload.
    SIGUSR1: open the log file anew."""
    proxy = Proxy(file, config, logs)
    loop = asyncio.get_running_loop()
    asked = asyncio.Queue[str]()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.put_nowait, "stop")
    loop.add_signal_handler(signal.SIGHUP, asked.put_nowait, "reload")
    loop.add_signal_handler(signal.SIGUSR1, logs.reopen)
    TASKS.fatal = lambda name: asked.put_nowait(f"{_FATAL}{name}")
    what = await _started(proxy, asked)
    collect_rarely()
    while what is None or what == "reload":
        if what == "reload":
            await proxy.reload()
        what = await asked.get()
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


async def _started(proxy: Proxy, asked: asyncio.Queue[str]) -> str | None:
    """Start, unless something is asked before the end that cannot wait for it; returns that. A
    reload can. Raises `CannotStart`."""
    start = asyncio.create_task(proxy.start(), name="start")
    reload = None
    while True:
        asking = asyncio.create_task(asked.get(), name="signals during the start")
        await asyncio.wait({start, asking}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            if asking.done():
                asked.put_nowait(asking.result())
            asking.cancel()
            await start
            return reload
        what = asking.result()
        if what == "reload":
            reload = what
            continue
        logger.info("asked to stop during the start")
        start.cancel()
        await asyncio.wait({start})
        return what


async def _second_stop(asked: asyncio.Queue[str]) -> None:
    while await asked.get() != "stop":
        pass
