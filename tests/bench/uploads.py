"""`python -m tests.bench.uploads`: good 50 MB uploads, with and without `upload:`.

Checked and unchecked routes of one proxy take turns, three rounds by default; tables show the
median (lowest-highest). Nothing is pinned to a core: the probe processes run where the kernel puts
them, as in use. The verdict's delay is the proxy's own figure, from its access lines.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
from av.audio.stream import AudioStream

from proxy.demo.redis_server import free_port
from proxy.uploads.formats.families import NAMES
from tests.bench.children import Child, module, running
from tests.bench.rawhttp import connect
from tests.bench.stats import Summary, quantile
from tests.http1 import ProxyProcess
from tests.uploads.audio import wav_header
from tests.uploads.drive import CONTENT_TYPE, form, part

SIZE = 50_000_000
UPSTREAMS = {
    "kernel": "tests.bench.upstream",  # throws bodies away unread, inside the kernel
    "uvicorn": "tests.bench.apps.upload_reader",  # an app that reads them
}
_SECONDS = 1.5


def samples() -> dict[str, bytes]:
    """Files of about 50 MB: PCM, MP3, an MP4 whose index stands at its end, and one that is demuxed
    packet by packet."""
    wav = wav_header(SIZE - 44, 44_100) + os.urandom(SIZE - 44)
    minute = noise("mp3", "libmp3lame", 60, {"write_xing": "0", "id3v2_version": "0"})
    return {
        "WAV": wav,
        "MP3, 320 kbit/s": minute * (SIZE // len(minute)),
        "M4A (ALAC)": noise("ipod", "alac", 190, {}),
        "Ogg (FLAC)": noise("ogg", "flac", 300, {}),
    }


def noise(
    container_name: str,
    codec: str,
    seconds: float,
    options: dict[str, str],
    rate: int = 44_100,
    bit_rate: int = 320_000,
) -> bytes:
    """Stereo noise, which nothing compresses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "noise")
        with av.open(str(path), "w", format=container_name, options=options) as container:
            stream = container.add_stream(codec, rate=rate, layout="stereo")
            assert isinstance(stream, AudioStream)
            stream.bit_rate = bit_rate
            stream.codec_context.options = {"strict": "experimental"}  # FFmpeg's own Vorbis
            for at in range(0, round(rate * seconds), 1152):
                frame = av.AudioFrame(format="s16p", layout="stereo", samples=1152)
                for plane in frame.planes:
                    plane.update(os.urandom(plane.buffer_size))
                frame.sample_rate, frame.pts = rate, at
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


def transfers(port: int, path: str, body: bytes, parallel: int, seconds: float) -> float:
    """MB/s (10^6 bytes) of uploads to `path`, repeated on `parallel` connections."""
    content = os.memfd_create("upload")
    os.write(content, body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {CONTENT_TYPE.decode()}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    ends: list[float] = []
    errors: list[BaseException] = []
    done: list[int] = []
    together = threading.Barrier(parallel)
    began: list[float] = []

    def one() -> None:
        try:
            client = connect(port)
            together.wait(30)
            began.append(time.monotonic())
            while not ends or time.monotonic() - began[0] < seconds:
                client.sock.sendall(head)
                at = 0
                while at < len(body):
                    at += os.sendfile(client.sock.fileno(), content, at, len(body) - at)
                answer = client.read_head()
                text = client.read_body(answer)
                if answer.start[1] != "200":
                    raise ValueError(f"{path} answered {answer.start[1]}: {text[:300]!r}")
                done.append(len(body))
                ends.append(time.monotonic())
            client.sock.close()
        except BaseException as error:
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=one) for _ in range(parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(content)
    if errors:
        raise errors[0]
    return sum(done) / (max(ends) - min(began)) / 1e6


@contextlib.contextmanager
def upstream(name: str, folder: Path) -> Iterator[int]:
    """Start the module `name`; its port."""
    port, output = free_port(), folder / f"{name}.out"
    with output.open("ab") as out:
        process = subprocess.Popen(
            module(name, "--port", str(port)), stdout=out, stderr=out, start_new_session=True
        )
    with running(Child(name, process, output), port):
        yield port


@contextlib.contextmanager
def bench(folder: Path) -> Iterator[tuple[ProxyProcess, int]]:
    """Both upstreams, and a proxy before them with two routes to each; the proxy and its port."""
    port = free_port()
    rules = {"max_size": "60MB", "max_duration": "24h", "types": list(NAMES)}
    with contextlib.ExitStack() as started:
        ports = {name: started.enter_context(upstream(name, folder)) for name in UPSTREAMS.values()}
        config = {
            "listeners": {
                "bench": {
                    "bind": f"127.0.0.1:{port}",
                    "routes": [
                        {"name": f"{name}-{kind}", "path": f"/{name}/{kind}", "upstream": name}
                        | ({"upload": rules} if kind == "checked" else {})
                        for name in UPSTREAMS
                        for kind in ("plain", "checked")
                    ],
                }
            },
            "upstreams": {
                name: {"targets": [f"http://127.0.0.1:{ports[started_as]}"]}
                for name, started_as in UPSTREAMS.items()
            },
            "spool": {"max_size": "4GB"},  # one client sends it all, and may have four fifths
        }
        proxy = ProxyProcess(folder, config)
        started.callback(proxy.stop)
        yield proxy, port


def shown(values: list[float], digits: int = 0) -> str:
    """`median (lowest-highest)`."""
    summary = Summary.of(values)
    assert summary is not None
    return f"{summary.median:.{digits}f} ({summary.low:.{digits}f}-{summary.high:.{digits}f})"


def main(rounds: int, seconds: float, only: str, at_once: list[int]) -> None:
    """Print the table. The goal is a ratio of at least 0.5, and a result within 100 ms."""
    print(f"load average before: {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    print(
        "| file | upstream | at once | plain MB/s | checked MB/s | ratio | verdict after the last "
        "byte, ms (median, p95, worst) |\n|---|---|--:|--:|--:|--:|--:|"
    )
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder)) as (proxy, port):
        for title, audio in samples().items():
            if only not in title:
                continue
            body = form(part(audio))
            for name in UPSTREAMS:
                for parallel in at_once:
                    row = compare(proxy, port, name, body, parallel, rounds, seconds)
                    print(f"| {title}, {len(body) / 1e6:.0f} MB | {name} | {parallel} | {row} |")
                    sys.stdout.flush()


def compare(
    proxy: ProxyProcess,
    port: int,
    name: str,
    body: bytes,
    parallel: int,
    rounds: int,
    seconds: float,
) -> str:
    """The measured cells of one row."""
    plain: list[float] = []
    checked: list[float] = []
    seen = len(proxy.log())
    for kind in ("plain", "checked"):
        transfers(port, f"/{name}/{kind}", body, 1, 0)  # to warm up
    for _ in range(rounds):
        plain.append(transfers(port, f"/{name}/plain", body, parallel, seconds))
        checked.append(transfers(port, f"/{name}/checked", body, parallel, seconds))
    time.sleep(0.2)  # log lines are written in batches
    delays = [
        line["upload_validation_ms"]
        for line in proxy.log()[seen:]
        if line.get("upload_verdict") == "accepted"
    ]
    ratio = statistics.median(checked) / statistics.median(plain)
    return (
        f"{shown(plain)} | {shown(checked)} | {ratio:.2f} "
        f"| {quantile(delays, 0.5):.1f}, {quantile(delays, 0.95):.1f}, {max(delays):.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=_SECONDS)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 40])
    parser.add_argument("--only", default="", help="files with this in their title")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.only, arguments.at_once)
