"""What the proxy exposes about the app, as a user starts it: statsd, the app's page, resources."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from datadog.dogstatsd import DogStatsd
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)

from proxy.demo.redis_server import free_port
from tests.http1 import PATIENCE
from tests.http1.process import ProxyProcess, wait_until

PAGE = b"""\
# TYPE app_clips_total counter
app_clips_total 3
# TYPE proxy_errors_total counter
proxy_errors_total 1e9
"""


class App:
    """An app with a metrics page, which the test can change, slow down or take away."""

    def __init__(self) -> None:
        self.page = PAGE
        self.hold = threading.Event()
        self.hold.set()
        app = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                app.hold.wait(20)
                self.send_response(200)
                self.send_header("Content-Length", str(len(app.page)))
                self.end_headers()
                self.wfile.write(app.page)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def app() -> Iterator[App]:
    """A running app."""
    app = App()
    yield app
    app.stop()


def config(app: App, folder: Path, port: int) -> dict[str, Any]:
    """A config with all three sections."""
    route = {"name": "all", "path": "/{rest:*}", "upstream": "app"}
    return {
        "listeners": {"front": {"bind": f"127.0.0.1:{free_port()}", "routes": [route]}},
        "upstreams": {"app": {"targets": [app.url.removesuffix("/metrics")]}},
        "statsd": {"bind": f"127.0.0.1:{port}", "socket": str(folder / "statsd.sock")},
        "app_metrics": {"url": app.url, "every": "1s", "timeout": "1s"},
        "resources": {
            "every": "1s",
            "directories": {"data": str(folder / "data")},
            "temp": {"directories": [str(folder / "data")]},
            "processes": {"ffmpeg": ["reliability-ffmpeg"]},
        },
    }


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path, app: App) -> None:
    """A client's reports, the app's page and the machine's resources are on one scrape, in both
    formats; the app may hang, speak nonsense and go; the end removes the socket."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "clip.mp4").write_bytes(b"x" * 100_000)
    program = tmp_path / "reliability-ffmpeg"
    shutil.copy(shutil.which("sleep") or "", program)
    port = free_port(kind=socket.SOCK_DGRAM)
    proxy = ProxyProcess(tmp_path, config(app, tmp_path, port))
    ffmpeg = subprocess.Popen([program, "60"])
    try:
        for where in (
            {"host": "127.0.0.1", "port": port},
            {"socket_path": str(tmp_path / "statsd.sock")},
        ):
            client = DogStatsd(use_ms=True, disable_telemetry=True, **where)
            client.increment("ocr.frames_processed", 120)
            client.timing("video.processing", 1500, tags=["operation:concat"])
            client.flush()
            client.close_socket()
        operation = {"operation": "concat"}
        wait_until(
            lambda: proxy.metric("video_processing_duration_seconds_sum", **operation) == 3.0,
            "the client's reports",
        )
        assert proxy.metric("ocr_frames_processed_total") == 240
        wait_until(lambda: proxy.metric("app_clips_total") == 3, "the app's page")
        assert proxy.metric("proxy_app_metrics_left_out", reason="collision") == 1
        assert proxy.metric("proxy_errors_total") is None
        wait_until(lambda: proxy.metric("resource_ffmpeg_processes") == 1, "ffmpeg")
        wait_until(lambda: proxy.metric("resource_temp_files_count") == 1, "the temporary file")
        assert (proxy.metric("resource_disk_usage_bytes", directory="data") or 0) >= 100_000
        assert (proxy.metric("resource_memory_usage_bytes", component="proxy") or 0) > 10_000_000
        ask = urllib.request.Request(
            f"http://127.0.0.1:{proxy.admin_port}/metrics",
            headers={"Accept": "application/openmetrics-text"},
        )
        with urllib.request.urlopen(ask, timeout=PATIENCE) as answer:
            families = {family.name for family in parse_openmetrics(answer.read().decode())}
        assert {"app_clips", "ocr_frames_processed", "resource_disk_free_bytes"} <= families

        app.page = b"<html>"
        wait_until(lambda: fetches(proxy, "malformed") >= 1, "a page that is none")
        app.hold.clear()
        wait_until(lambda: fetches(proxy, "timeout") >= 1, "an app that hangs")
        wait_until(lambda: proxy.metric("app_clips_total") is None, "the old page to be dropped")
        assert proxy.metric("proxy_app_metrics_up") == 0
        app.page = b"app_clips_total 4\n"
        app.hold.set()
        wait_until(lambda: proxy.metric("app_clips_total") == 4, "the app's return")
        ffmpeg.kill()
        ffmpeg.wait()
        wait_until(lambda: proxy.metric("resource_ffmpeg_processes") == 0, "ffmpeg's end")
        proxy.assert_sane()
    finally:
        ffmpeg.kill()
        ffmpeg.wait()
        assert proxy.stop() == 0
    assert not (tmp_path / "statsd.sock").exists()


def fetches(proxy: ProxyProcess, result: str) -> float:
    """How many fetches of the app's page ended so."""
    return proxy.metric("proxy_app_metrics_fetches_total", result=result) or 0


def test_a_flood_does_not_delay_requests(tmp_path: Path, app: App) -> None:
    """While packets come as fast as a thread can send them, requests and scrapes are answered, and
    what the kernel dropped is told."""
    port = free_port(kind=socket.SOCK_DGRAM)
    settings = config(app, tmp_path, port)
    del settings["app_metrics"], settings["resources"]
    proxy = ProxyProcess(tmp_path, settings)
    stop = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", port))
            number = 0
            while not stop.is_set():
                number += 1
                line = b"video.processing:1|ms|#operation:op%d\n" % number
                sender.send(line * 30 + b"junk\n\xff\n")

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        wait_until(
            lambda: (proxy.metric("proxy_statsd_packets_dropped_total") or 0) > 1000, "drops"
        )
        front = settings["listeners"]["front"]["bind"]
        for _ in range(20):
            with urllib.request.urlopen(f"http://{front}/metrics", timeout=PATIENCE) as answer:
                assert answer.read() == PAGE
        assert (proxy.metric("proxy_statsd_throttled_total") or 0) > 0
        assert (proxy.metric("proxy_statsd_series") or 0) <= 3 + 34
    finally:
        stop.set()
        flooding.join()
    proxy.assert_sane()
    assert proxy.stop() == 0


def test_a_reload_of_other_things_keeps_the_counts(tmp_path: Path, app: App) -> None:
    """The app's telemetry restarts only if one of its sections changes."""
    port = free_port(kind=socket.SOCK_DGRAM)
    settings = config(app, tmp_path, port)
    proxy = ProxyProcess(tmp_path, settings)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"ocr.frames_processed:5|c", ("127.0.0.1", port))
    wait_until(lambda: proxy.metric("ocr_frames_processed_total") == 5, "the report")
    proxy.write(proxy.config | {"drain_timeout": "3s"})
    assert proxy.admin_post("/api/reload")[0] == 200
    assert proxy.metric("ocr_frames_processed_total") == 5
    assert proxy.stop() == 0


def test_a_killed_proxy_s_socket_is_no_obstacle(tmp_path: Path, app: App) -> None:
    """kill -9 leaves the file behind; the next start replaces it, and a second proxy is refused."""
    settings = config(app, tmp_path, free_port(kind=socket.SOCK_DGRAM))
    killed = ProxyProcess(tmp_path, settings)
    killed.signal(signal.SIGKILL)
    killed.process.wait()
    assert (tmp_path / "statsd.sock").exists()
    proxy = ProxyProcess(tmp_path, settings)
    (tmp_path / "second").mkdir()
    second = config(app, tmp_path, free_port(kind=socket.SOCK_DGRAM))
    other = ProxyProcess(tmp_path / "second", second, ready=False)
    assert other.process.wait(PATIENCE) == 1
    assert "another process reads from it" in other.output()
    assert "Traceback" not in other.output()
    assert proxy.metric("proxy_statsd_series") == 3
    assert proxy.stop() == 0
