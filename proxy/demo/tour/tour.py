"""The guided tour: steps in a running world, each of which reports what it saw or why it failed.

To add a step, write it in steps.py and add it to `STEPS`.
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
    ("Reject files that are not acceptable audio", steps.refuse_uploads),
    ("Kill Redis: no job is lost", steps.survive_redis),
    ("Kill the worker: the next one gets its job", steps.kill_worker),
    ("Kill a microservice: its circuit opens, and closes by itself", steps.trip_breaker),
    ("What happened, by its ID", steps.show_timelines),
    ("One correlation ID in header and log", steps.show_log),
    ("An error of the proxy's own", steps.show_errors),
    ("Metrics", steps.show_metrics),
)


async def give(world: World, narrator: Narrator) -> bool:
    """Run the steps in order, up to the first that fails. Returns whether all passed."""
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
