"""The proxy before an app that keeps jobs in a real Redis: what the tests of the whole stand on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from proxy.demo.redis_server import RedisServer, free_port
from tests.http1.client import RawClient
from tests.http1.message import PATIENCE, Request, Response
from tests.http1.process import ProxyProcess, wait_until
from tests.http1.site import get, post
from tests.http1.upstream import Connection, Upstream, respond
from tests.jobs_kit import INDEX, PREFIX, job

JSON = "Content-Type: application/json"
PATIENT = "tests.patient_proxy"
NOT_FOUND = {"error": "HTTP_ERROR", "message": "Job not found"}


def client_of(server: RedisServer) -> Any:
    """A synchronous client that gives up soon. `Any`, as redis-py's types mix in coroutines."""
    return redis.Redis.from_url(
        server.url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
    )


def new(job_id: str, status: str = "queued", progress: float = 0.0, **more: Any) -> bytes:
    """A document of the current shape, created now."""
    return job(job_id, status, progress, created_at=datetime.now(UTC).isoformat(), **more)


class App:
    """A make-video of scripts: keeps jobs in Redis as the real one does, and fails to order.

    `lying`: accepts without writing the key. `status`: every answer is this error. `silent`: while
    set, no request is answered. `accepts`: what a creation answers with, instead of the usual.
    """

    def __init__(self, server: RedisServer, port: int = 0) -> None:
        self.server = server
        self.redis = client_of(server)
        self.upstream = Upstream(port=port)
        self.upstream.handler = self.serve
        self.answering = threading.Event()
        self._lock = threading.Lock()
        self.created = 0
        self.well()

    def well(self) -> None:
        """No trouble from now on."""
        self.lying = False
        self.status: int | None = None
        self.accepts: Callable[[str], bytes] | None = None
        self.answering.set()

    def serve(self, connection: Connection, request: Request) -> None:
        """One request."""
        connection.body(request)
        self.answering.wait(PATIENCE)
        if self.status is not None:
            body = b'{"error":"INTERNAL_ERROR"}'
            connection.send(respond(body, f"{self.status} Trouble", JSON))
            return
        try:
            status, document = self._answer(request)
        except redis.RedisError as error:
            status, document = "500 Internal Server Error", {"error": str(error)}
        if isinstance(document, bytes):
            connection.send(document)
            return
        body = json.dumps(document).encode()
        if request.method == "HEAD":
            body = b""
        connection.send(respond(body, status, JSON))

    def _answer(self, request: Request) -> tuple[str, Any]:
        path, _, query = request.target.partition("?")
        if request.method == "POST":
            with self._lock:
                self.created += 1
                job_id = f"mv_{self.created:08d}"
            if not self.lying:
                self.redis.set(PREFIX + job_id, new(job_id), ex=86400)
            self.redis.zadd(INDEX, {job_id: time.time()})
            if self.accepts is not None:
                return "", self.accepts(job_id)
            return "202 Accepted", {"status": "accepted", "job_id": job_id}
        if path == "/jobs":
            ids = self.redis.zrevrange(INDEX, 0, -1)
            found = [self.redis.get(PREFIX + one.decode()) for one in ids]
            jobs = [json.loads(one) for one in found if one is not None]
            return "200 OK", {"status": "success", "total": len(jobs), "jobs": jobs, "q": query}
        job_id = unquote(path).rsplit("/", 1)[1]
        try:
            raw = self.redis.get(PREFIX + job_id)
        except redis.RedisError:
            raw = None  # as the real one: Redis down reads as "not found"
        if raw is None:
            return "404 Not Found", NOT_FOUND
        if request.method == "DELETE":
            self.redis.delete(PREFIX + job_id)
            return "200 OK", {"status": "deleted", "job_id": job_id, "message": "x"}
        return "200 OK", {"job_id": job_id, "from": "app", "status": json.loads(raw)["status"]}

    def stop(self) -> None:
        """Answer what waits, and close."""
        self.answering.set()
        self.upstream.stop()
        self.redis.close()


class StandIn:
    """The demo's make-video in a process of its own; `options` are its switches."""

    def __init__(self, directory: Path, server: RedisServer, *options: str) -> None:
        self._directory = directory
        self._port = free_port()
        self._command = [
            *(sys.executable, "-m", "proxy.demo.make_video.service", "--port", str(self._port)),
            *("--redis-url", server.url, "--data", str(directory), *options),
        ]
        self.url = f"http://127.0.0.1:{self._port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it listens."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "app.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._listens, "the stand-in")

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None


def routes(fallback_after: str = "300ms", **creates: Any) -> list[dict[str, Any]]:
    """The routes of the ready config, by role; reads answer HEAD as well."""
    role = {"mirror": "make_video"}
    waits = {"fallback_after": fallback_after}
    one = {"upstream": "app", "path": "/jobs/{job_id}"}
    return [
        {"name": "create", "upstream": "app", "path": "/make-video",
         "job": {**role, "creates": True, **creates}},
        {"name": "status", **one, "methods": ["GET", "HEAD"],
         "job": {**role, "reads": "job_id", **waits}},
        {"name": "delete", **one, "methods": ["DELETE"], "job": {**role, "deletes": "job_id"}},
        {"name": "list", "upstream": "app", "path": "/jobs", "methods": ["GET"],
         "job": {**role, "lists": True, **waits}},
        {"name": "other", "upstream": "app", "path": "/{rest:*}"},
    ]  # fmt: skip


class JobSite:
    """A proxy with a mirror. `target` is the app's address; `mirror` changes its settings,
    `more` adds entries to sections of the config."""

    def __init__(
        self,
        directory: Path,
        server: RedisServer,
        target: str,
        *,
        route_list: list[dict[str, Any]] | None = None,
        mirror: dict[str, Any] | None = None,
        upstream: dict[str, Any] | None = None,
        live: bool = True,
        more: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.server = server
        self.redis = client_of(server)
        self.address = ("127.0.0.1", free_port())
        self.sqlite = directory / "jobs.db"
        self.config: dict[str, Any] = {
            "listeners": {
                "front": {
                    "bind": f"127.0.0.1:{self.address[1]}",
                    "routes": routes() if route_list is None else route_list,
                }
            },
            "upstreams": {
                "app": {"targets": [target], "connect_patience": "0s", **(upstream or {})}
            },
            "redis": {"url": server.url},
            "mirrors": {
                "make_video": {
                    "key": PREFIX + "{job_id}", "index": INDEX, "sqlite": str(self.sqlite),
                    "app_breaker": "2s", **(mirror or {}),
                }
            },
            "drain_timeout": "2s",
        }  # fmt: skip
        for section, entries in (more or {}).items():
            self.config.setdefault(section, {}).update(entries)
        self.proxy = ProxyProcess(directory, self.config, module=PATIENT)
        if live:
            self.wait_live()

    def kill_proxy(self) -> None:
        """kill -9."""
        self.proxy.process.kill()
        self.proxy.process.wait(PATIENCE)

    def start_proxy(self) -> None:
        """Again, on the same port and file."""
        self.proxy = ProxyProcess(self.directory, self.config, module=PATIENT)

    def __enter__(self) -> JobSite:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.proxy.stop()
        self.redis.close()

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, raw: bytes) -> Response:
        """One request on a connection of its own."""
        with RawClient(self.address) as client:
            client.send_lenient(raw)
            return client.response(raw.split(b" ", 1)[0].decode())

    def create(self, body: bytes = b"audio") -> Response:
        """POST /make-video."""
        return self.ask(post(body, "/make-video"))

    def created(self) -> str:
        """A job that was accepted; its ID."""
        response = self.create()
        assert response.status == 202, response.body
        return str(json.loads(response.body)["job_id"])

    def read(self, job_id: str, method: str = "GET") -> Response:
        """GET or HEAD /jobs/{id}."""
        return self.ask(get(f"/jobs/{job_id}", method=method))

    def delete(self, job_id: str) -> Response:
        """DELETE /jobs/{id}."""
        return self.ask(get(f"/jobs/{job_id}", method="DELETE"))

    def listed(self, query: str = "") -> Response:
        """GET /jobs."""
        return self.ask(get(f"/jobs{query}"))

    # --- what the mirror knows -------------------------------------------------------------------

    def admin(self, path: str, document: object = None) -> tuple[int, Any]:
        """The admin API's answer: GET, or POST of `document`."""
        data = None if document is None else json.dumps(document).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{self.proxy.admin_port}{path}", data)
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def state(self) -> dict[str, Any]:
        """The mirror's state, as `/api/jobs` shows it."""
        answer: dict[str, Any] = self.admin("/api/jobs?limit=1")[1]["mirrors"][0]
        return answer

    def shown(self, job_id: str) -> dict[str, Any]:
        """All that the mirror knows of a job; `{}` for nothing."""
        status, answer = self.admin(f"/api/jobs/make_video/{job_id}")
        return dict(answer) if status == 200 else {}

    def wait_live(self, seconds: float = PATIENCE) -> None:
        """Until the mirror follows Redis, has put back what was lost, and has compared."""

        def live() -> bool:
            state = self.state()
            return bool(state["whole"] and state["last_sync"] and not state["restoring"])

        wait_until(live, "a mirror that follows Redis", seconds)

    def wait_down(self) -> None:
        """Until the mirror has noticed that Redis is away or hung."""
        wait_until(lambda: self.state()["redis"] == "down", "a mirror without Redis")

    def wait_known(self, job_id: str, status: str | None = None) -> None:
        """Until the mirror knows the job (in that status)."""
        wait_until(
            lambda: (shown := self.shown(job_id)) != {} and status in (None, shown.get("status")),
            f"{job_id} in the mirror",
        )

    @contextlib.contextmanager
    def redis_away(self) -> Iterator[None]:
        """Redis killed, and started empty afterwards."""
        self.server.kill()
        try:
            self.wait_down()
            yield
        finally:
            self.server.start()

    @contextlib.contextmanager
    def redis_hung(self) -> Iterator[None]:
        """Redis stopped with SIGSTOP, noticed, and continued afterwards."""
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            self.wait_down()
            yield
        finally:
            os.kill(self.server.pid, signal.SIGCONT)
