"""Forty uploads at once through the real proxy: each its own result, memory flat, nothing left."""

from __future__ import annotations

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.http1 import wait_until
from tests.uploads.audio import encode, wav_header
from tests.uploads.drive import form, part
from tests.uploads.site import UploadSite, chunked, head

MIB = 2**20
AT_ONCE = 40


def corpus() -> dict[str, bytes]:
    """Raw requests of megabytes each, by the expected result."""
    good = form(part(wav_header(5 * MIB) + bytes(5 * MIB)))
    mp3 = form(part(encode("mp3", 120, 8000, silent=True)))
    long = form(part(wav_header(10_560_000) + bytes(10_560_000)))
    pdf = form(part(b"%PDF-1.7\n" + bytes(5 * MIB)))
    large = form(part(wav_header(5 * MIB) + bytes(5 * MIB)))
    return {
        "accepted": head(len(good)) + good,
        "accepted ": head(None) + chunked(mp3, 700),
        "upload_too_long": head(len(long)) + long,
        "upload_type_rejected": head(None) + chunked(pdf),
        "upload_too_large": head(None, path="/small") + chunked(large),
        "upload_malformed": head(None) + chunked(good[:-9]),
    }


@pytest.mark.slow
def test_forty_at_once(tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    """Mixed good and bad, twice: every result right, no bad one complete at the app, and the
    second wave needs no memory that the first has not taken."""
    wanted = list(corpus().items())
    with UploadSite(tmp_path, app={"pool": {"max_connections": 64}}) as site:
        waves = []
        for _ in range(2):
            peak, over = [site.proxy.memory()], threading.Event()

            def watch(peak: list[int] = peak, over: threading.Event = over) -> None:
                while not over.wait(0.02):
                    peak.append(site.proxy.memory())

            watcher = threading.Thread(target=watch, name="memory")
            watcher.start()
            try:
                with ThreadPoolExecutor(AT_ONCE) as clients:
                    answers = list(
                        clients.map(
                            lambda number: site.ask(wanted[number % len(wanted)][1]),
                            range(AT_ONCE),
                        )
                    )
            finally:
                over.set()
                watcher.join()
            waves.append(max(peak))
            for number, answer in enumerate(answers):
                verdict = wanted[number % len(wanted)][0].strip()
                assert answer.status == (202 if verdict == "accepted" else 400), answer.body
                if verdict != "accepted":
                    assert f'"{verdict}"'.encode() in answer.body
        accepted = sum(wanted[number % len(wanted)][0][:8] == "accepted" for number in range(40))
        site.settle()
        assert Counter(arrived.complete for arrived in site.app.arrived)[True] == 2 * accepted
        # 40 x (what waits for the disk, a MiB or two, and a quarter MiB each way), not 40 x 10 MiB;
        # how many buffers are full at once is a matter of chance
        assert waves[1] - waves[0] < AT_ONCE * MIB
        assert waves[1] < 250 * MIB
        wait_until(lambda: not site.probes(), "the end of the probes")
        wait_until(
            lambda: site.metric("proxy_uploads_total", verdict="accepted") == 2 * accepted,
            "the counts",
        )
        lag = re.findall(
            r'proxy_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)',
            site.proxy.admin("/metrics")[1],
        )
        record_property("peak_mib", [round(peak / MIB) for peak in waves])
        record_property("event_loop_lag", lag)
        print("\npeak MiB:", [round(peak / MIB) for peak in waves], "\nlag (le, count):", lag)
        site.check()
