"""A real uvicorn as make-video runs it, under a supervisor.

It takes ten connections and tasks, ends itself after so many requests, and is brought back after a
pause. As a program it is the app itself:

    python -m tests.restarting_app PORT LIMIT_MAX_REQUESTS JOBS_FILE
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.demo.redis_server import free_port


def app(jobs: Path) -> Starlette:
    """Polls, and uploads that leave a line in `jobs` before they are answered."""

    async def job(_request: Request) -> Response:
        await asyncio.sleep(0.005)
        return JSONResponse({"status": "processing"})

    async def create(request: Request) -> Response:
        body = await request.body()
        with jobs.open("a", encoding="utf-8") as file:
            file.write(f"{request.headers['x-upload']} {len(body)}\n")
        await asyncio.sleep(0.02)
        return JSONResponse({"status": "accepted"}, 202)

    return Starlette(
        routes=[
            Route("/jobs/{job_id}", job),
            Route("/make-video", create, methods=["POST"]),
        ]
    )


class Supervised:
    """The app in processes of its own, one after the other. `downtime` seconds lie between them."""

    def __init__(self, jobs: Path, *, limit_max_requests: int, downtime: float) -> None:
        self.port = free_port()
        self.restarts = -1
        self._command = [
            *(sys.executable, "-m", "tests.restarting_app"),
            *(str(self.port), str(limit_max_requests), str(jobs)),
        ]
        self._downtime = downtime
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor")

    def __enter__(self) -> Supervised:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join()

    def _supervise(self) -> None:
        while not self._over.is_set():
            self.restarts += 1
            self._process = subprocess.Popen(self._command)
            self._process.wait()
            self._over.wait(self._downtime)


if __name__ == "__main__":
    uvicorn.run(
        app(Path(sys.argv[3])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        limit_concurrency=10,
        limit_max_requests=int(sys.argv[2]),
        timeout_keep_alive=5,
        log_level="error",
    )
