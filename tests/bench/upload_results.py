"""`python -m tests.bench.upload_results`: how long after the last byte the result comes.

Files that may just pass: ten minutes of noise, which nothing compresses, at the highest bit rate
that fits into 50 MB, one of each family. Each is sent over loopback by one client after the other,
then by forty at once. The figure is the proxy's own, from its access lines.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from proxy.demo.redis_server import free_port
from tests.bench.stats import quantile
from tests.bench.uploads import noise, transfers, upstream
from tests.http1 import ProxyProcess
from tests.uploads.drive import form, part

_MINUTES = 599.0
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "1000000"}

FILES: dict[str, Callable[[], bytes]] = {
    "WAV": lambda: noise("wav", "pcm_s16le", 280, {}),
    "MP3": lambda: noise("mp3", "libmp3lame", _MINUTES, {}),
    "M4A, index last": lambda: noise("ipod", "aac", _MINUTES, {}),
    "M4A, index first": lambda: noise("ipod", "aac", _MINUTES, {"movflags": "faststart"}),
    "M4A, fragments": lambda: noise("ipod", "aac", _MINUTES, _FRAGMENTS),
    "AAC": lambda: noise("adts", "aac", _MINUTES, {}),
    "Opus": lambda: noise("ogg", "libopus", _MINUTES, {}, 48_000, 510_000),
    "Vorbis": lambda: noise("ogg", "vorbis", _MINUTES, {}, 44_100, 450_000),
    "FLAC": lambda: noise("flac", "flac", 270, {}),
    "WebM": lambda: noise("webm", "libopus", _MINUTES, {}, 48_000, 510_000),
}

TYPES = [f"audio/{name}" for name in ("mpeg", "wav", "mp4", "ogg", "flac", "webm", "aac")]


def config(port: int, app: int) -> dict[str, object]:
    """One route with the default limits, for every family."""
    route = {
        "name": "checked",
        "path": "/",
        "upstream": "app",
        "upload": {"field": "audio_file", "types": TYPES},
    }
    return {
        "listeners": {"front": {"bind": f"127.0.0.1:{port}", "routes": [route]}},
        "upstreams": {"app": {"targets": [f"http://127.0.0.1:{app}"]}},
        "spool": {"max_size": "4GB"},  # all forty come from one client, who may have four fifths
    }


def delays(proxy: ProxyProcess, port: int, body: bytes, at_once: int, rounds: int) -> list[float]:
    """Milliseconds, shortest first."""
    seen, wanted = len(proxy.log()), at_once * rounds
    for _ in range(rounds):
        transfers(port, "/", body, at_once, 0)
    found: list[float] = []
    until = time.monotonic() + 10
    while len(found) < wanted and time.monotonic() < until:  # lines are written in batches
        time.sleep(0.05)
        lines = proxy.log()[seen:]
        found = [one["upload_validation_ms"] for one in lines if one.get("upload_verdict")]
    return sorted(found)


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="files with this in their name")
    parser.add_argument("--rounds", type=int, default=30, help="one at a time (%(default)s)")
    parser.add_argument("--at-once", type=int, default=40)
    options = parser.parse_args()
    print("| file | MB | alone: median, p95, ms | at once: median, p95, ms | load |")
    print("|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name, upstream("tests.bench.upstream", Path(name)) as app:
        port = free_port()
        proxy = ProxyProcess(Path(name), config(port, app))
        try:
            for title, made in FILES.items():
                if options.only not in title:
                    continue
                body = form(part(made()))
                cells = []
                for at_once, rounds in ((1, options.rounds), (options.at_once, 2)):
                    found = delays(proxy, port, body, at_once, rounds)
                    cells.append(f"{quantile(found, 0.5):.0f}, {quantile(found, 0.95):.0f}")
                load = os.getloadavg()[0]
                print(f"| {title} | {len(body) / 1e6:.0f} | {' | '.join(cells)} | {load:.1f} |")
                sys.stdout.flush()
        finally:
            proxy.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
