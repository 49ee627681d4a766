"""The upstream of the small GETs: nginx's `return 200`, or a bare uvloop protocol without nginx."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from pathlib import Path
from typing import cast

import uvloop

# About a hundred bytes, like the answer to a poll of a job's status.
BODY = (
    '{"job_id":"mv_0123456789","status":"processing","progress":42.0,'
    '"stage":"assemble_video","error":null}'
)

_NGINX = """\
daemon off;
worker_processes 1;
error_log stderr warn;
pid {workdir}/upstream-nginx.pid;
{user}
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_body_temp_path {workdir}; proxy_temp_path {workdir}; fastcgi_temp_path {workdir};
  uwsgi_temp_path {workdir}; scgi_temp_path {workdir};
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ default_type application/json; return 200 '{body}'; }}
  }}
}}
"""


def command(port: int, workdir: Path, *, root: bool) -> list[str]:
    """The argv that serves `BODY` on `port`."""
    nginx = shutil.which("nginx")
    if nginx is None:
        return [sys.executable, "-m", "tests.bench.small_upstream", "--port", str(port)]
    config = workdir / "upstream-nginx.conf"
    config.write_text(
        _NGINX.format(workdir=workdir, port=port, body=BODY, user="user root;" if root else "")
    )
    return [nginx, "-e", "stderr", "-c", str(config)]


_ANSWER = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n{BODY}"
).encode()


class _Small(asyncio.Protocol):
    """Answers once per blank line: right for GETs without a body, which is all it gets."""

    def __init__(self) -> None:
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of its own class: an isinstance check would fail.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        count = data.count(b"\r\n\r\n")
        if count:
            self._transport.write(_ANSWER * count)
            data = data[data.rindex(b"\r\n\r\n") + 4 :]
        self._tail = data


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Small, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))
