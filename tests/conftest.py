"""Fixtures that more than one kind of test needs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from proxy.demo.redis_server import RedisServer

# Tests start the program hundreds of times. Where the environment forbids bytecode, each start
# would compile its 270 modules anew, and each worker all the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The same examples in every run, against no clock: a build fails neither by chance nor because the
# machine is slow. `--hypothesis-profile=explore` draws others each time, to find what these do not.
slow_is_fine = [HealthCheck.too_slow]
settings.register_profile("explore", deadline=None, suppress_health_check=slow_is_fine)
settings.register_profile("build", settings.get_profile("explore"), derandomize=True)
settings.load_profile("build")

# There is no current event loop unless a test makes one. Where nobody has said so, asking for it
# makes one that nobody closes: its sockets are then found in the middle of some other test.
asyncio.set_event_loop(None)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real redis-server, started; the test may kill and restart it."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()
