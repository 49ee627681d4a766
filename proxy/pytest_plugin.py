"""Fixtures for tests of an app behind the proxy. See docs/how-to/testing.md.

They are plain functions and work with every plugin for asynchronous tests. The proxy is imported
only when a test uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.demo.redis_server import RedisServer
    from proxy.embed import ReliabilityProxy, Source


@pytest.fixture
def reliability_proxy(tmp_path: Path) -> Callable[..., ReliabilityProxy]:
    """A factory of proxies: `async with reliability_proxy(config, apps={"app": app}) as proxy:`.

    Its parameters are those of `proxy.embed.ReliabilityProxy`. Ports are free ones unless
    `free_ports=False`; SQLite files are in the test's `tmp_path`.
    """
    from proxy.embed import ReliabilityProxy

    def make(
        config: Source,
        overrides: Mapping[str, object] | None = None,
        *,
        apps: Mapping[str, object] | None = None,
        free_ports: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> ReliabilityProxy:
        return ReliabilityProxy(
            config,
            overrides,
            apps=apps,
            free_ports=free_ports,
            directory=tmp_path,
            environ=environ,
        )

    return make


@pytest.fixture
def reliability_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A real, empty redis-server for this test: `url`, and `kill()` and `start()` for a restart
    that loses all data. Needs redis-server on the PATH, or `pip install "reliability-proxy[test]"`;
    without either, the test is skipped."""
    from proxy.demo.redis_server import RedisNotFound, RedisServer

    server = RedisServer(tmp_path / "redis")
    try:
        server.start()
    except RedisNotFound as error:
        pytest.skip(str(error))
    yield server
    server.kill()
