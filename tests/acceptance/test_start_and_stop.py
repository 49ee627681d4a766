"""What a proxy answers before it is up, and what becomes of clients that come as it stops."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.http1 import ProxyProcess, Site, free_port, get, wait_until

# The probe process alone hangs, as one does whose libraries are on a file system that is away.
HANGS = """
import sys, time
if "proxy.uploads.probe.process" in sys.orig_argv:
    time.sleep(600)
"""


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyProcess]:
    """A proxy that does not get beyond its upload probes."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    route: dict[str, Any] = {"name": "u", "methods": ["POST"], "path": "/", "upstream": "app"}
    route["upload"] = {"field": "f", "max_size": "1MiB"}
    config = {
        "listeners": {"front": {"bind": f"127.0.0.1:{free_port()}", "routes": [route]}},
        "upstreams": {"app": {"targets": ["http://127.0.0.1:2"]}},
        "metrics": {"bind": f"127.0.0.1:{free_port()}"},
    }
    proxy = ProxyProcess(tmp_path, config, ready=False)
    yield proxy
    proxy.stop()


def test_doors_answer_from_the_first_moment(hanging: ProxyProcess) -> None:
    """`/readyz` says 503 and names what the start waits for; probes work, the API says why not."""
    wait_until(lambda: "upload probes" in hanging.admin("/readyz")[1], "the part that hangs")
    status, text = hanging.admin("/readyz")
    assert status == 503
    assert json.loads(text)["checks"]["listeners"] == {
        "ok": False,
        "detail": "starting: upload probes",
    }
    assert hanging.admin("/livez")[0] == 200
    assert hanging.metric("proxy_client_connections", listener="front") is None
    assert hanging.admin("/metrics")[0] == 200
    for path in ("/api/jobs", "/api/breakers", "/api/status", "/api/trace/x", "/api/config"):
        status, text = hanging.admin(path)
        assert (status, json.loads(text)["code"]) == (503, "starting")
    assert hanging.admin_post("/api/reload")[0] == 503


def test_sigterm_ends_a_start_at_once(hanging: ProxyProcess) -> None:
    """Nobody waits for the 20 s after which the start would have failed; a reload asked for
    before does not matter."""
    wait_until(lambda: "upload probes" in hanging.admin("/readyz")[1], "the part that hangs")
    hanging.signal(signal.SIGHUP)
    hanging.signal(signal.SIGTERM)
    assert hanging.process.wait(60) == 0  # and not 1: it did not fail
    assert "asked to stop during the start" in hanging.output()
    assert "Traceback" not in hanging.output()


@contextlib.contextmanager
def stopped(proxy: ProxyProcess) -> Iterator[None]:
    """The process does nothing meanwhile: the kernel alone takes connections."""
    proxy.signal(signal.SIGSTOP)
    wait_until(
        lambda: "\nState:\tT" in Path(f"/proc/{proxy.pid}/status").read_text(), "a stopped process"
    )
    try:
        yield
    finally:
        proxy.signal(signal.SIGCONT)


def test_connections_in_the_backlog_are_served(tmp_path: Path) -> None:
    """Who was connected by the kernel when the stop was asked for gets an answer; who says nothing
    is closed without a reset; who comes later is refused."""
    with Site(tmp_path, drain_timeout="60s") as site, contextlib.ExitStack() as stack:
        with stopped(site.proxy):
            asking = [stack.enter_context(site.connect()) for _ in range(200)]
            silent = [stack.enter_context(site.connect()) for _ in range(10)]
            for client in asking:
                client.send(get())
            site.proxy.signal(signal.SIGTERM)
        for client in asking:
            response = client.response()
            assert response.status == 200
            assert not response.keeps_alive
            client.assert_closed()
        for client in silent:
            client.assert_closed()
        assert site.proxy.process.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            site.connect()


def test_connections_in_the_backlog_of_a_tls_listener_are_served(tmp_path: Path) -> None:
    """The same before a handshake."""
    authority = trustme.CA()
    pair = tmp_path / "pair.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pair)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    listeners = {"front": {"tls": {"cert": str(pair), "key": str(pair)}}}
    with Site(tmp_path, listeners, drain_timeout="60s") as site, contextlib.ExitStack() as stack:
        with stopped(site.proxy):
            waiting = [
                stack.enter_context(socket.create_connection(site.addresses["front"]))
                for _ in range(40)
            ]
            site.proxy.signal(signal.SIGTERM)
        for raw in waiting:
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as secure:
                secure.sendall(get())
                assert secure.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert site.proxy.process.wait(60) == 0
