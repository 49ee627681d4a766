"""HAProxy: one thread, JSON access lines on its standard output, which is a file here."""

from __future__ import annotations

import re
import shutil

from tests.bench.children import start
from tests.bench.contenders.base import ID_PATTERN, Place, Running, first_line

# The `json(utf8s)` converter escapes what a client may choose; the rest HAProxy made itself.
_LINE = (
    '{"timestamp":"%[date,ltime(%Y-%m-%dT%H:%M:%S%z)]","level":"INFO","message":"access",'
    '"correlation_id":"%[var(txn.correlation_id),json(utf8s)]","listener":"%f",'
    '"method":"%[var(txn.method),json(utf8s)]","path":"%[var(txn.path),json(utf8s)]",'
    '"status":%ST,"duration_ms":%Ta,"target":"%s","upstream_ms":%Tr,"bytes_in":%U,'
    '"bytes_out":%B,"client":"%ci:%cp"}'
)

_CONFIG = """\
global
  nbthread 1
  maxconn 4096
  # Lines go straight to the file behind standard output, one write each: HAProxy's cheapest sink
  # that ends in a file (rings only lead on to a syslog server).
  log stdout len 4096 format raw local0 info

defaults
  mode http
  log global
  timeout connect 5s
  timeout client 75s
  timeout server 60s
  option http-keep-alive
  http-reuse always
  log-format '{line}'

frontend bench
  bind 127.0.0.1:{listen_port} backlog 1024
  option forwardfor
  http-request set-header X-Correlation-ID %[uuid()] unless {{ req.hdr(X-Correlation-ID) -m reg {id_pattern} }}
  http-request set-var(txn.correlation_id) req.hdr(X-Correlation-ID)
  http-request set-var(txn.method) method
  http-request set-var(txn.path) path
  http-request set-header X-Forwarded-Proto http
  http-after-response set-header X-Correlation-ID %[var(txn.correlation_id)]
  default_backend app

backend app
  server app 127.0.0.1:{upstream_port} maxconn 4096 pool-max-conn -1

frontend metrics
  bind 127.0.0.1:{extra_port}
  no log
  http-request use-service prometheus-exporter if {{ path /metrics }}
"""  # noqa: E501


class Haproxy:
    """One process, one thread, no master."""

    name = "haproxy"
    note = "JSON log-format to a file, ID by uuid(), Prometheus exporter"
    id_header = "X-Correlation-ID"

    def available(self) -> str | None:
        return None if shutil.which("haproxy") else "haproxy is not installed"

    def version(self) -> str:
        found = re.search(r"version ([\d.]+)", first_line("haproxy", "-v"))
        return f"HAProxy {found[1]}" if found else "HAProxy"

    def start(self, place: Place) -> Running:
        path = place.workdir / "haproxy.cfg"
        path.write_text(
            _CONFIG.format(
                line=_LINE,
                id_pattern=ID_PATTERN,
                listen_port=place.listen_port,
                upstream_port=place.upstream_port,
                extra_port=place.extra_port,
            )
        )
        argv = ["haproxy", "-db", "-f", str(path)]
        log = place.workdir / "access.log"
        child = start(self.name, argv, core=place.core, workdir=place.workdir, stdout=log)
        return Running(child, log, f"http://127.0.0.1:{place.extra_port}/metrics")
