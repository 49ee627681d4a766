"""nginx: one worker, keep-alive to the upstream, bodies streamed and not collected."""

from __future__ import annotations

import os
import re
import shutil

from tests.bench.children import start
from tests.bench.contenders.base import ID_PATTERN, POOL, Place, Running, first_line

_CONFIG = """\
daemon off;
worker_processes 1;
error_log stderr warn;
pid {workdir}/nginx.pid;
{user}
events {{ worker_connections 4096; }}
http {{
  client_body_temp_path {workdir}; proxy_temp_path {workdir}; fastcgi_temp_path {workdir};
  uwsgi_temp_path {workdir}; scgi_temp_path {workdir};

  # The client's ID when it is usable, else a new one.
  map $http_x_correlation_id $correlation_id {{
    "~{id_pattern}" $http_x_correlation_id;
    default $request_id;
  }}
  log_format json escape=json
    '{{"timestamp":"$time_iso8601","level":"INFO","message":"access",'
    '"correlation_id":"$correlation_id","listener":"bench","method":"$request_method",'
    '"path":"$uri","status":$status,"duration_s":"$request_time","target":"$upstream_addr",'
    '"upstream_s":"$upstream_response_time","bytes_in":$request_length,'
    '"bytes_out":$bytes_sent,"client":"$remote_addr:$remote_port"}}';
  # Collected and written together, as the others do.
  access_log {workdir}/access.log json buffer=64k flush=1s;

  keepalive_timeout 75s;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  upstream app {{
    server 127.0.0.1:{upstream_port};
    keepalive {pool};
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{listen_port} backlog=1024;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Correlation-ID $correlation_id;
      add_header X-Correlation-ID $correlation_id always;
      proxy_buffering off;
      proxy_request_buffering off;
      {buffers}
    }}
  }}
  server {{
    listen 127.0.0.1:{extra_port};
    access_log off;
    location /metrics {{ stub_status; }}
  }}
}}
"""


class Nginx:
    """`buffer`: size of its body buffers, a figure as nginx writes it; None leaves its defaults."""

    id_header = "X-Correlation-ID"

    def __init__(self, name: str = "nginx", buffer: str | None = None) -> None:
        self.name = name
        self.note = (
            "JSON access log, $request_id, stub_status; proxy_buffering and "
            "proxy_request_buffering off"
            + (f", body buffers {buffer}" if buffer else ", body buffers as by default")
        )
        self._buffers = (
            f"proxy_buffer_size {buffer}; proxy_buffers 8 {buffer}; "
            f"client_body_buffer_size {buffer};"
            if buffer
            else ""
        )

    def available(self) -> str | None:
        return None if shutil.which("nginx") else "nginx is not installed"

    def version(self) -> str:
        found = re.search(r"nginx/([\d.]+)", first_line("nginx", "-v"))
        return f"nginx {found[1]}" if found else "nginx"

    def start(self, place: Place) -> Running:
        path = place.workdir / "nginx.conf"
        path.write_text(
            _CONFIG.format(
                workdir=place.workdir,
                user="user root;" if os.geteuid() == 0 else "",
                id_pattern=ID_PATTERN,
                upstream_port=place.upstream_port,
                listen_port=place.listen_port,
                extra_port=place.extra_port,
                pool=POOL,
                buffers=self._buffers,
            )
        )
        argv = ["nginx", "-e", "stderr", "-c", str(path)]
        child = start(self.name, argv, core=place.core, workdir=place.workdir)
        return Running(
            child,
            place.workdir / "access.log",
            f"http://127.0.0.1:{place.extra_port}/metrics",
        )
