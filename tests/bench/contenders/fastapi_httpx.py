"""A forwarder on FastAPI and httpx, under uvicorn."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version

from tests.bench.children import start
from tests.bench.contenders.base import Place, Running

_NEEDED = ("fastapi", "httpx", "uvicorn")


class FastapiHttpx:
    """`tests/bench/apps/fastapi_httpx.py`, as an ordinary user would write it."""

    name = "fastapi-httpx"
    note = "FastAPI + httpx.AsyncClient, logging, prometheus_client"
    id_header = "X-Correlation-ID"

    def available(self) -> str | None:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else None

    def version(self) -> str:
        return " + ".join(f"{name} {version(name)}" for name in _NEEDED)

    def start(self, place: Place) -> Running:
        access_log = place.workdir / "access.log"
        argv = [
            sys.executable,
            "-m",
            "tests.bench.apps.fastapi_httpx",
            str(place.listen_port),
            str(place.upstream_port),
            str(access_log),
        ]
        child = start(self.name, argv, core=place.core, workdir=place.workdir)
        return Running(child, access_log, f"http://127.0.0.1:{place.listen_port}/metrics")
