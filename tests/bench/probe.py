"""`python -m tests.bench.probe`: what one probe process costs, in CPU time a megabyte.

Each file is sent to a process of its own, forked as the proxy's are, as fast as it takes it. CPU
time, unlike throughput, hardly depends on what else the machine does. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from dataclasses import dataclass

from proxy.upload import probe
from proxy.upload.families import NAMES
from proxy.upload.session import Job
from proxy.upload.sniff import Sniffer
from tests.bench.uploads import noise, samples
from tests.uploads.sending import send_file


@dataclass(frozen=True)
class Cost:
    """One file through one process: seconds of CPU time there and on the sender's side, seconds
    from the last byte to the verdict, the verdict, and the bytes that were sent."""

    probe: float
    sender: float
    delay: float
    verdict: dict[str, object]
    crossed: int


def cost(data: bytes, sniffer: Sniffer) -> Cost:
    """Send `data` to a new process. Raises `ValueError` where there is no verdict."""
    job = Job(tuple(dict.fromkeys(family.media_type for family in NAMES.values())), 2**30, None)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            probe._examine_upload(theirs, sniffer, probe._open_spool())
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        before = time.process_time()
        ours.sendall(job.encode())
        verdict, delay, crossed = send_file(ours, data)
        sent = time.process_time() - before
    usage = os.wait4(pid, 0)[2]
    if "duration" not in verdict:
        raise ValueError(f"no duration: {verdict}")
    return Cost(usage.ru_utime + usage.ru_stime, sent, delay, verdict, crossed)


def more_samples() -> dict[str, bytes]:
    """Three minutes each of what else there is."""
    rows = {
        "M4A (AAC), index first": ("ipod", "aac", {"movflags": "faststart"}),
        "M4A (AAC), fragments": ("ipod", "aac", {"movflags": "frag_keyframe+empty_moov"}),
        "MP3, 128 kbit/s": ("mp3", "libmp3lame", {}),
        "Ogg (Opus)": ("ogg", "libopus", {}),
        "Ogg (FLAC)": ("ogg", "flac", {}),
    }
    rates = {"MP3, 128 kbit/s": 128_000, "Ogg (Opus)": 96_000}
    return {
        title: noise(
            form, codec, 180, options, 48_000 if codec == "libopus" else 44_100,
            rates.get(title, 256_000),
        )
        for title, (form, codec, options) in rows.items()
    }  # fmt: skip


def main(rounds: int) -> None:
    """Print the table."""
    sniffer = probe.prepare()
    print(
        "| file | MB | crosses, MB | probe, CPU ms | sender, CPU ms "
        "| verdict after the last byte, ms | seconds of sound |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for title, data in (samples() | more_samples()).items():
        costs = [cost(data, sniffer) for _ in range(rounds)]
        cells = [
            statistics.median(values) * 1000
            for values in zip(*((c.probe, c.sender, c.delay) for c in costs), strict=True)
        ]
        shown = " | ".join(f"{cell:.1f}" for cell in cells)
        duration = costs[0].verdict.get("duration")
        crossed = statistics.median(one.crossed for one in costs) / 1e6
        sizes = f"{len(data) / 1e6:.1f} | {crossed:.1f}"
        print(f"| {title} | {sizes} | {shown} | {duration} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    main(parser.parse_args().rounds)
