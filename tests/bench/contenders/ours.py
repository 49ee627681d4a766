"""The proxy of this project, every standard feature on."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import yaml

import proxy
from tests.bench.children import ROOT, start
from tests.bench.contenders.base import POOL, Place, Running


class Ours:
    """One ingress listener, one catch-all route, JSON access log to a file, correlation IDs,
    metrics, admin API."""

    name = "reliability-proxy"
    note = "JSON access log, correlation ID, metrics, admin API"
    id_header = "X-Correlation-ID"

    def available(self) -> str | None:
        if importlib.util.find_spec("proxy.cli.main") is None:
            return "proxy.cli.main does not exist"
        return None

    def version(self) -> str:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        return f"reliability-proxy {proxy.__version__}" + (f" ({commit})" if commit else "")

    def start(self, place: Place) -> Running:
        access_log = place.workdir / "access.log"
        config = {
            "listeners": {
                "bench": {
                    "bind": f"127.0.0.1:{place.listen_port}",
                    "direction": "ingress",
                    "limits": {"body": None},  # as the others; one scene sends 500 MB
                    "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "app"}],
                }
            },
            "upstreams": {
                "app": {
                    "targets": [f"http://127.0.0.1:{place.upstream_port}"],
                    "pool": {"max_connections": POOL, "keepalive": "60s"},
                }
            },
            "admin": {"bind": f"127.0.0.1:{place.extra_port}"},
            "logging": {"level": "INFO", "output": str(access_log)},
        }
        path = place.workdir / "proxy.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        argv = [sys.executable, "-m", "proxy", "run", "--config", str(path)]
        child = start(self.name, argv, core=place.core, workdir=place.workdir)
        return Running(child, access_log, f"http://127.0.0.1:{place.extra_port}/metrics")
