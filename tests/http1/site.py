"""A proxy between a raw client and a scripted upstream: what most tests stand on."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.http1.client import RawClient
from tests.http1.message import Response
from tests.http1.process import ProxyProcess, free_port, wait_until
from tests.http1.upstream import Upstream

CATCH_ALL: list[dict[str, Any]] = [{"name": "all", "path": "/{rest:*}", "upstream": "app"}]


def get(path: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A well-formed request without a body."""
    return "\r\n".join(
        [f"{method} {path} HTTP/{version}", "Host: example.test", *fields, "", ""]
    ).encode("latin-1")


def post(body: bytes = b"hello", path: str = "/", *fields: str, method: str = "POST") -> bytes:
    """A well-formed request with `Content-Length`."""
    return get(path, *fields, f"Content-Length: {len(body)}", method=method) + body


class Site:
    """One upstream `app`, one proxy process, one or several listeners.

    `listeners` maps a name to settings beyond `bind` (routes default to a catch-all), `app` are
    settings of the upstream beyond its target, `upstreams` further ones. `module` and
    `descriptors`: see `ProxyProcess`.
    """

    def __init__(
        self,
        directory: Path,
        listeners: dict[str, dict[str, Any]] | None = None,
        *,
        app: dict[str, Any] | None = None,
        upstreams: dict[str, Any] | None = None,
        upstream: Upstream | None = None,
        module: str | None = None,
        descriptors: int | None = None,
        **settings: Any,
    ) -> None:
        self.upstream = upstream or Upstream()
        self.addresses: dict[str, tuple[str, int]] = {}
        built: dict[str, Any] = {}
        for name, given in (listeners or {"front": {}}).items():
            host = given.get("host", "127.0.0.1")
            port = free_port(host)
            self.addresses[name] = (host, port)
            shown = f"[{host}]" if ":" in host else host
            built[name] = {"bind": f"{shown}:{port}", "routes": CATCH_ALL} | {
                key: value for key, value in given.items() if key != "host"
            }
        self.config: dict[str, Any] = {
            "listeners": built,
            "upstreams": {"app": {"targets": [self.upstream.url]} | (app or {})}
            | (upstreams or {}),
        } | settings
        try:
            self.proxy = ProxyProcess(
                directory, self.config, module=module, descriptors=descriptors
            )
        except BaseException:
            self.upstream.stop()
            raise

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.proxy.process.poll() is None:
                for name in self.config["listeners"]:
                    wait_until(lambda name=name: self._open(name) == 0, f"no client at {name}")
        finally:
            code = self.proxy.stop()
            self.upstream.stop()
        assert kind is not None or code == 0, f"the proxy did not drain and stop: {code}"

    def _open(self, listener: str) -> float | None:
        """Client connections that the proxy counts as open."""
        return self.proxy.metric("proxy_client_connections", listener=listener)

    def connect(self, listener: str = "front", **options: Any) -> RawClient:
        """A new client connection to a listener."""
        return RawClient(self.addresses[listener], **options)

    def ask(self, raw: bytes, listener: str = "front", method: str | None = None) -> Response:
        """Send `raw` on a connection of its own and read one final response."""
        with self.connect(listener) as client:
            client.send_lenient(raw)
            return client.response(method or raw.split(b" ", 1)[0].decode("latin-1"))

    def check(self) -> None:
        """After a test: the upstream saw nothing malformed, the proxy lives and logged no bug."""
        assert self.upstream.faults == [], self.upstream.faults
        self.proxy.assert_sane()


def assert_problem(response: Response, status: int, code: str) -> dict[str, Any]:
    """`response` is an error of our own in the contract's form; its document."""
    assert response.status == status, f"{response.raw_head!r} {response.body[:300]!r}"
    assert response.get("Content-Type") == "application/problem+json"
    document: dict[str, Any] = json.loads(response.body)
    assert document["status"] == status
    assert document["code"] == code
    assert document["message"] == document["detail"]
    assert document["title"]
    assert document["correlation_id"] == response.get("X-Correlation-ID")
    return document
