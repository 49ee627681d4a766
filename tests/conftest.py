"""Fixtures that more than one kind of test needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.redis_server import RedisServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real redis-server, started; the test may kill and restart it."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()
