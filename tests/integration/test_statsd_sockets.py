"""Statsd over real sockets: ordinary clients, floods, and the life of the socket's file."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import statsd
from datadog.dogstatsd import DogStatsd

from proxy.app_telemetry.statsd.line import Result
from proxy.app_telemetry.statsd.listener import MAX_PACKET, StatsdListener
from proxy.app_telemetry.statsd.series import StatsdSeries
from proxy.config.telemetry import Statsd
from proxy.telemetry.metrics.registry import Metrics


class Site:
    """A listener on UDP and a unix socket."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.path = folder / "statsd.sock"
        self.config = Statsd.model_validate(
            {"bind": "127.0.0.1:0", "socket": str(self.path), **keys}
        )
        self.series = StatsdSeries(self.config)
        self.metrics = Metrics("1")
        self.metrics.registry.register(self.series)
        self.listener = StatsdListener(self.config, self.series)

    @property
    def port(self) -> int:
        assert self.listener.address is not None
        return self.listener.address[1]

    def value(self, name: str, **labels: str) -> float | None:
        """One sample as exposed now; None if there is none."""
        for family in self.metrics.collect():
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None

    async def until(self, name: str, wanted: float, **labels: str) -> None:
        """Return once the sample has the value; fails after 30 s."""
        await until(lambda: self.value(name, **labels) == wanted)


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fails after 30 s."""
    deadline = asyncio.get_running_loop().time() + 30
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A started listener."""
    site = Site(tmp_path)
    site.listener.start()
    yield site
    site.listener.stop()


# --- ordinary clients ---------------------------------------------------------------------------


def documented() -> str:
    """The Python example of docs/how-to/report-from-the-worker.md."""
    page = (Path(__file__).parents[2] / "docs/how-to/report-from-the-worker.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return str(example)


async def test_the_example_of_the_documentation(site: Site) -> None:
    """As it stands there, but for the port, with Datadog's own client."""
    ran: list[bool] = []
    names: dict[str, Any] = {"run_ffmpeg": lambda: ran.append(True)}
    exec(documented().replace("8125", str(site.port)), names)
    client: DogStatsd = names["statsd"]
    client.flush()
    client.close_socket()
    await site.until("ocr_frames_processed_total", 120)
    await site.until("video_processing_duration_seconds_count", 1, operation="concat")
    assert ran
    assert (site.value("video_processing_duration_seconds_sum", operation="concat") or 0) < 5


async def test_lines_may_end_in_cr_lf(site: Site) -> None:
    """Within a packet and at its end; neither a number nor a label keeps the CR."""
    packet = (
        b"ocr.frames_processed:2|c\r\nvideo.processing:1|ms|#operation:concat\r\n"
        b"\r\nvideo.processing:1|ms|##operation:concat\r"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(packet, ("127.0.0.1", site.port))
    await site.until("video_processing_duration_seconds_count", 2, operation="concat")
    assert site.value("ocr_frames_processed_total") == 2
    assert site.series.lines[Result.ACCEPTED] == 3
    assert site.series.lines[Result.MALFORMED] == 0


async def test_datadog_s_client_over_the_unix_socket(site: Site) -> None:
    """The same two reports; what that client sends about itself, unasked, is ignored."""
    client = DogStatsd(use_ms=True, telemetry_min_flush_interval=0, socket_path=str(site.path))
    client.increment("ocr.frames_processed", 120)
    with client.timed("video.processing", tags=["operation:concat"]):
        pass
    client.flush()
    client.close_socket()
    await site.until("ocr_frames_processed_total", 120)
    await site.until("video_processing_duration_seconds_count", 1, operation="concat")
    await until(lambda: site.series.lines[Result.IGNORED] > 0)
    assert site.series.lines[Result.ACCEPTED] == 2
    assert sum(site.series.lines.values()) == 2 + site.series.lines[Result.IGNORED]
    assert site.value("proxy_statsd_packets_total", transport="unix", result="accepted")


async def test_datadog_seconds_need_a_word_in_the_config(tmp_path: Path) -> None:
    """Without `use_ms` that client sends seconds as `ms`; `unit: seconds` reads them so."""
    family = {"type": "histogram", "unit": "seconds", "names": ["step"], "buckets": [1, 10]}
    site = Site(tmp_path, metrics={"step_seconds": family})
    site.listener.start()
    client = DogStatsd("127.0.0.1", site.port, disable_telemetry=True)
    client.timing("step", 4)
    client.flush()
    client.close_socket()
    await site.until("step_seconds_sum", 4)
    site.listener.stop()


async def test_the_plain_statsd_client(site: Site) -> None:
    """Names instead of tags, sample rates, pipelines of several lines in one packet."""
    client = statsd.StatsClient("127.0.0.1", site.port)
    client.timing("video.processing.trim", 2500)
    with client.pipeline() as pipe:
        pipe.incr("ocr.frames_processed", 5)
        pipe.incr("ocr.frames_processed", 6)
        pipe.timing("ocr.processing", 40)
    client.close()
    await site.until("video_processing_duration_seconds_sum", 2.5, operation="trim")
    await site.until("ocr_frames_processed_total", 11)
    await site.until("ocr_processing_duration_seconds_count", 1)
    assert site.value("proxy_statsd_packets_total", transport="udp", result="accepted") == 2


async def test_several_senders_at_once(site: Site) -> None:
    """Ten threads over the unix socket, where the kernel makes senders wait: nothing is lost."""

    def work() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(site.path))
            for _ in range(300):
                sender.send(b"ocr.frames_processed:1|c\nocr.confidence:0.5|h")

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(10)))
    await site.until("ocr_frames_processed_total", 3000)
    await site.until("ocr_confidence_score_count", 3000)


# --- floods and nonsense ------------------------------------------------------------------------


async def test_long_packets_are_dropped_as_a_whole(site: Site) -> None:
    """8 KiB are read; a byte more is counted as oversized, and nothing of it counts."""
    line = b"ocr.frames_processed:1|c\n"
    fits = line * (MAX_PACKET // len(line))
    fits += b"\n" * (MAX_PACKET - len(fits))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", site.port))
        sender.send(fits + b"\n")
        sender.send(b"")
        sender.send(fits)
    await site.until("ocr_frames_processed_total", MAX_PACKET // len(line))
    assert site.value("proxy_statsd_packets_total", transport="udp", result="oversized") == 1
    assert site.value("proxy_statsd_packets_total", transport="udp", result="accepted") == 2


async def test_a_flood_leaves_the_loop_its_turns(site: Site) -> None:
    """While a thread sends as fast as it can, turns are cut short, the rest of the loop goes on,
    what the kernel drops is counted, and the number of series stays bounded."""
    stop = threading.Event()
    sent = [0]

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", site.port))
            while not stop.is_set():
                number = sent[0]
                packet = b"\n".join(
                    b"video.processing:%d|ms|#operation:op%d\nx%d:1|c\n\xff:|\x00" % (n, n, n)
                    for n in range(number, number + 40)
                )
                sender.send(packet)
                sent[0] += 1

    flooding = asyncio.create_task(asyncio.to_thread(flood))
    await until(lambda: site.series.throttled >= 50)
    before = site.series.throttled
    turns = 0
    while site.series.throttled < before + 20:  # the loop's other work, between turns of reading
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20
    await until(lambda: (site.value("proxy_statsd_packets_dropped_total") or 0) > 0)
    stop.set()
    await flooding

    def all_accounted() -> bool:
        read = site.value("proxy_statsd_packets_total", transport="udp", result="accepted")
        lost = site.value("proxy_statsd_packets_dropped_total")
        return read is not None and lost is not None and read + lost == sent[0]

    await until(all_accounted)
    assert (site.value("proxy_statsd_series") or 0) <= 3 + 34
    lines = site.series.lines
    packets = site.value("proxy_statsd_packets_total", transport="udp", result="accepted")
    for result in (Result.ACCEPTED, Result.UNDECLARED, Result.MALFORMED):
        await until(lambda result=result: lines[result] == 40 * packets > 0)  # the last one's rest


async def test_what_is_left_of_a_packet_is_read_after_the_rest(site: Site) -> None:
    """A packet of more lines than a turn takes is read to its end, with nothing behind it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"\n".join([b"ocr.confidence:1|h"] * 430), ("127.0.0.1", site.port))
    await site.until("ocr_confidence_score_count", 430)
    assert site.series.throttled == 4


# --- the sockets themselves ---------------------------------------------------------------------


async def test_the_socket_file_has_its_permissions_and_goes(tmp_path: Path) -> None:
    """Whatever umask is; and it is gone after `stop`."""
    site = Site(tmp_path, socket_mode="0666")
    before = os.umask(0o077)
    try:
        site.listener.start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(site.path.stat().st_mode) == 0o666
    assert os.listdir(tmp_path) == ["statsd.sock"]
    site.listener.stop()
    site.listener.stop()
    assert os.listdir(tmp_path) == []


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed proxy left behind is no obstacle."""
    site = Site(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(site.path))
    site.listener.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"ocr.frames_processed:1|c", str(site.path))
    await site.until("ocr_frames_processed_total", 1)
    site.listener.stop()


async def test_what_belongs_to_others_stays(tmp_path: Path) -> None:
    """A socket that is read, or a file that is none, refuses the start and is left as it is; and a
    file that took our place is not removed at the end."""
    first, second = Site(tmp_path), Site(tmp_path)
    first.listener.start()
    with pytest.raises(OSError, match="another process reads from it"):
        second.listener.start()
    assert second.listener.address is None
    first.path.unlink()
    first.path.write_text("mine")
    first.listener.stop()
    assert first.path.read_text() == "mine"
    with pytest.raises(OSError, match="not a socket"):
        second.listener.start()
    assert first.path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["statsd.sock"]


async def test_a_port_in_use_is_reported(site: Site, tmp_path: Path) -> None:
    """With the address; nothing is left open."""
    other = Site(tmp_path / "other", bind=f"127.0.0.1:{site.port}")
    with pytest.raises(OSError, match=f"statsd: cannot listen on 127.0.0.1:{site.port}"):
        other.listener.start()
    assert not other.path.exists()


@pytest.mark.parametrize("bind", ["[::1]:0", ":0"])
async def test_ipv6_and_every_address(tmp_path: Path, bind: str) -> None:
    """An IPv6 address, and an empty host, which listens on both families."""
    site = Site(tmp_path, bind=bind, allow_remote=True)
    site.listener.start()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"ocr.frames_processed:1|c", ("::1", site.port))
    await site.until("ocr_frames_processed_total", 1)
    if bind == ":0":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"ocr.frames_processed:1|c", ("127.0.0.1", site.port))
        await site.until("ocr_frames_processed_total", 2)
    site.listener.stop()


async def test_every_address_without_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without IPv6, every address is every IPv4 address."""
    made = socket.socket

    class Refusing(made):
        def __init__(self, family: int = -1, *arguments: Any, **keys: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **keys)

    site = Site(tmp_path, bind=":0", allow_remote=True)
    with monkeypatch.context() as without:
        without.setattr("proxy.app_telemetry.statsd.listener.socket.socket", Refusing)
        site.listener.start()
    assert site.listener.address is not None
    assert site.listener.address[0] == "0.0.0.0"
    site.listener.stop()
