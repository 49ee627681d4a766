"""The demo from start to end: start the world, give the tour, print addresses, stop."""

from __future__ import annotations

import asyncio
import signal
import sys

from proxy.demo.processes import ChildFailed
from proxy.demo.redis_server import RedisNotFound
from proxy.demo.tour import tour
from proxy.demo.tour.narrator import Narrator
from proxy.demo.world import World


def main(once: bool) -> int:
    """Run the demo. Returns the exit code. See `proxy.demo.run`."""
    try:
        return asyncio.run(_main(once))
    except (ChildFailed, RedisNotFound) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


async def _main(once: bool) -> int:
    """0 if every step passed; 1 if one failed or the tour was interrupted."""
    showing = asyncio.create_task(_show(once), name="demo")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Cancelling closes the world, which stops every child and removes every file.
        loop.add_signal_handler(number, showing.cancel)
    try:
        return await showing
    except asyncio.CancelledError:
        return 1


async def _show(once: bool) -> int:
    narrator = Narrator()
    narrator.line("Starting Redis, the stand-in services and the proxy ...")
    async with World() as world:
        passed = await tour.give(world, narrator)
        if not passed:
            for child in world.children.values():
                narrator.line(f"--- {child.name}: last lines of its log")
                narrator.line(child.tail())
            return 1
        if once:
            narrator.line("Every step did what it should.")
            return 0
        _print_addresses(world, narrator)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            narrator.line("Stopping ...")
    return 0


def _print_addresses(world: World, narrator: Narrator) -> None:
    audio, at = world.folder / "voice.mp3", world.at
    narrator.line()
    narrator.line(f"callers -> make-video   {world.ingress}")
    narrator.line(f"status page             {at.url('ADMIN')}/  (open it in a browser)")
    narrator.line(f"admin                   {at.url('ADMIN')}")
    narrator.line(f"metrics                 {world.metrics}")
    narrator.line(f"Redis                   {world.redis.url}")
    narrator.line(f"logs                    {world.folder}/*.log")
    narrator.line()
    narrator.line("Try, in another terminal:")
    narrator.line(f"  curl -i -F audio_file=@{audio} {world.ingress}/make-video")
    narrator.line(f"  curl -s '{world.ingress}/jobs?limit=3'")
    narrator.line(f"  curl -s {world.metrics} | grep http_requests_total")
    narrator.line()
    narrator.line("Ctrl-C ends everything and removes every file.")
