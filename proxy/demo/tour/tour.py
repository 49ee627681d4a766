"""The guided tour: steps on a running world, each of which says what it saw or why it failed.

To add a step, write it in steps.py and enter it in `STEPS`; nothing else knows the list.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable

import aiohttp

from proxy.demo.tour import steps
from proxy.demo.tour.guide import StepFailed, Tour
from proxy.demo.tour.narrator import Narrator
from proxy.demo.world import World

Step = Callable[[Tour], Awaitable[str]]

STEPS: tuple[tuple[str, Step], ...] = (
    ("Find and download short videos", steps.find_shorts),
    ("Upload a real audio file", steps.upload_audio),
    ("Follow the job until it is completed", steps.follow_job),
    ("Download the finished video", steps.fetch_video),
    ("Refuse what is no such audio file", steps.refuse_uploads),
    ("Kill Redis: no job is lost", steps.survive_redis),
    ("Kill the worker: its job is given to the next", steps.kill_worker),
    ("Kill a microservice: its circuit opens, and closes by itself", steps.trip_breaker),
    ("What happened, by its ID", steps.tell_stories),
    ("One correlation ID in header and log", steps.show_log),
    ("An error of the proxy's own", steps.show_errors),
    ("Metrics", steps.show_metrics),
)


async def give(world: World, narrator: Narrator) -> bool:
    """Every step in order; whether all did what they should. Stops at the first that did not."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        tour = Tour(world, http, narrator)
        for number, (title, step) in enumerate(STEPS, 1):
            name = step.__name__.replace("_", "-")
            tour.correlation_id = f"demo-{name}-{secrets.token_hex(4)}"
            tour.answered.clear()
            narrator.step(number, len(STEPS), title)
            started = time.monotonic()
            try:
                narrator.saw(await step(tour))
                for correlation_id in tour.answered:
                    narrator.saw(f"correlation ID {correlation_id}")
            except (StepFailed, aiohttp.ClientError, TimeoutError) as error:
                narrator.failed(str(error) or repr(error))
                return False
            narrator.passed(time.monotonic() - started)
    return True
