"""A forwarder on aiohttp's application and client session."""

from __future__ import annotations

import sys
from importlib.metadata import version

from tests.bench.children import start
from tests.bench.contenders.base import Place, Running


class AiohttpForwarder:
    """`tests/bench/apps/aiohttp_forwarder.py`, as an ordinary user would write it."""

    name = "aiohttp"
    note = "web.Application + ClientSession, logging, prometheus_client"
    id_header = "X-Correlation-ID"

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return f"aiohttp {version('aiohttp')}"

    def start(self, place: Place) -> Running:
        access_log = place.workdir / "access.log"
        argv = [
            sys.executable,
            "-m",
            "tests.bench.apps.aiohttp_forwarder",
            str(place.listen_port),
            str(place.upstream_port),
            str(access_log),
        ]
        child = start(self.name, argv, core=place.core, workdir=place.workdir)
        return Running(child, access_log, f"http://127.0.0.1:{place.listen_port}/metrics")
