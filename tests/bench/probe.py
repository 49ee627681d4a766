"""`python -m tests.bench.probe`: what one probe process costs, and how soon it has its result.

Each file is given, whole, to a process of its own that was forked as the proxy's are. That is the
worst that an upload can meet: usually its process has kept pace with the client and has little left
to do when the last byte comes. CPU time, unlike throughput, hardly depends on what else the machine
does. Medians over the rounds, and the 95th percentile of the delay.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from dataclasses import dataclass

from proxy.uploads.formats.families import NAMES
from proxy.uploads.probe import process as probe
from proxy.uploads.probe.task import ProbeTask
from tests.bench.stats import quantile
from tests.bench.uploads import noise, samples


@dataclass(frozen=True)
class Cost:
    """One file through one process: seconds of CPU time there, seconds from the fork to the
    verdict, the verdict."""

    probe: float
    delay: float
    result: dict[str, object]


def cost(data: bytes, sniffer: probe.Sniffer) -> Cost:
    """Give `data` to a new process. Raises `ValueError` where there is no duration."""
    job = ProbeTask(tuple(dict.fromkeys(family.media_type for family in NAMES.values())), None)
    file = os.memfd_create("upload")
    os.write(file, data)
    ours, theirs = socket.socketpair()
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            probe.examine_upload(theirs, sniffer, confined=True)
        finally:
            os._exit(0)
    theirs.close()
    output = b""
    with ours:
        socket.send_fds(ours, [job.encode(len(data), whole=True)], [file])
        while more := ours.recv(65_536):
            output += more
    delay = time.perf_counter() - began
    os.close(file)
    usage = os.wait4(pid, 0)[2]
    result = json.loads(output.splitlines()[-1]) if output else {}
    if "duration" not in result:
        raise ValueError(f"no duration: {result}")
    return Cost(usage.ru_utime + usage.ru_stime, delay, result)


def more_samples() -> dict[str, bytes]:
    """Ten minutes each of what else there is."""
    rows = {
        "M4A (AAC), index first": ("ipod", "aac", {"movflags": "faststart"}),
        "M4A (AAC), fragments": ("ipod", "aac", {"movflags": "frag_keyframe+empty_moov"}),
        "MP3, 128 kbit/s": ("mp3", "libmp3lame", {}),
        "Ogg (Opus)": ("ogg", "libopus", {}),
        "Ogg (FLAC)": ("ogg", "flac", {}),
        "FLAC": ("flac", "flac", {}),
        "WebM (Opus)": ("webm", "libopus", {}),
        "AAC": ("adts", "aac", {}),
    }
    rates = {"MP3, 128 kbit/s": 128_000, "Ogg (Opus)": 96_000}
    return {
        title: noise(
            form, codec, 600, options, 48_000 if codec == "libopus" else 44_100,
            rates.get(title, 256_000),
        )
        for title, (form, codec, options) in rows.items()
    }  # fmt: skip


def main(rounds: int) -> None:
    """Print the table."""
    sniffer = probe.prepare()
    print(
        "| file | MB | probe, CPU ms | verdict, ms (median, p95) | seconds of sound |\n"
        "|---|--:|--:|--:|--:|"
    )
    for title, data in (samples() | more_samples()).items():
        costs = [cost(data, sniffer) for _ in range(rounds)]
        cpu = statistics.median(one.probe for one in costs) * 1000
        delays = [one.delay * 1000 for one in costs]
        shown = f"{cpu:.1f} | {statistics.median(delays):.1f}, {quantile(delays, 0.95):.1f}"
        duration = costs[0].result.get("duration")
        print(f"| {title} | {len(data) / 1e6:.1f} | {shown} | {duration} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    main(parser.parse_args().rounds)
