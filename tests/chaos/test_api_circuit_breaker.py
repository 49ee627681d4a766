"""Scripted outages of the microservices: a job that survives them without the proxy survives them
with it, and all that are shorter than 25 s are survived. Circuits open during the long ones and
close after them. The upstreams are those of config/make-video.yaml, ten times as fast."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import yaml

from proxy.demo.redis_server import RedisServer
from tests.http1 import ProxyProcess, free_port
from tests.outages import Microservice, Outage, finishes, scaled

READY = Path(__file__).parents[2] / "config" / "make-video.yaml"


def polls(method: str, path: str) -> bool:
    """GET /jobs/{id}, as the worker polls."""
    return method == "GET" and path.startswith("/jobs/")


OUTAGES = {
    "transcriber-25": Outage("audio-transcriber", 25),
    "transcriber-40": Outage("audio-transcriber", 40),
    "transcriber-90": Outage("audio-transcriber", 90),
    "transcriber-90-says-well": Outage("audio-transcriber", 90, health=200),
    "transcriber-polls-20": Outage("audio-transcriber", 20, fails=polls),
    "search-down-10": Outage("youtube-search", 10, refuses=True),
    "search-503-20": Outage("youtube-search", 20),
    "search-503-24": Outage("youtube-search", 24),
    "search-polls-1.5": Outage("youtube-search", 1.5, fails=polls),
    "search-polls-10": Outage("youtube-search", 10, fails=polls),
    "search-polls-10-says-well": Outage("youtube-search", 10, fails=polls, health=200),
    "search-polls-20-without-health": Outage("youtube-search", 20, fails=polls, health=404),
    "search-third": Outage("youtube-search", 1000, share=0.3, health=200),
    "downloader-down-3": Outage("video-downloader", 3, refuses=True),
    "downloader-down-20": Outage("video-downloader", 20, refuses=True),
    "downloader-down-24": Outage("video-downloader", 24, refuses=True),
    "downloader-third": Outage("video-downloader", 1000, share=0.3, health=200),
}


def config(outages: dict[str, Outage], ports: dict[str, int], redis_url: str) -> dict[str, Any]:
    """A listener and an upstream for each outage, with the rules of the service that it strikes."""
    ready = yaml.safe_load(READY.read_text(encoding="utf-8"))
    listeners: dict[str, Any] = {}
    upstreams: dict[str, Any] = {}
    for name, outage in outages.items():
        key = name.replace(".", "-")
        upstreams[key] = {
            **scaled(ready["upstreams"][outage.service]),
            "targets": [f"http://127.0.0.1:{ports[name]}"],
        }
        listeners[key] = {
            "bind": f"127.0.0.1:{free_port()}",
            "direction": "egress",
            "routes": [
                {**route, "upstream": key} for route in ready["listeners"][outage.service]["routes"]
            ],
        }
    return {"listeners": listeners, "upstreams": upstreams, "redis": {"url": redis_url}}


def transitions(proxy: ProxyProcess) -> tuple[set[str], set[str]]:
    """The outages whose circuit opened, and those whose circuit closed again."""
    made = "circuit_breaker_transitions_total"
    return (
        {n for n in OUTAGES if proxy.metric(made, service=n, from_state="closed", to_state="open")},
        {
            n
            for n in OUTAGES
            if proxy.metric(made, service=n, from_state="half_open", to_state="closed")
        },
    )


async def test_no_outage_costs_a_job_that_survives_without_us(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Each outage twice at the same time: the worker alone, and the worker behind the proxy."""
    async with AsyncExitStack() as closing:
        pairs: dict[str, tuple[Microservice, Microservice]] = {}
        for name, outage in OUTAGES.items():
            pairs[name] = (Microservice(outage), Microservice(outage))
            for microservice in pairs[name]:
                closing.push_async_callback(microservice.stop)
        built = config(OUTAGES, {n: pair[1].port for n, pair in pairs.items()}, redis_server.url)
        proxy = await asyncio.to_thread(ProxyProcess, tmp_path, built)
        try:
            through = {
                name: int(built["listeners"][name.replace(".", "-")]["bind"].rpartition(":")[2])
                for name in OUTAGES
            }
            for pair in pairs.values():
                for microservice in pair:
                    await microservice.start()
            alone, behind = await asyncio.gather(
                asyncio.gather(*(finishes(OUTAGES[n], pairs[n][0].port) for n in OUTAGES)),
                asyncio.gather(*(finishes(OUTAGES[n], through[n]) for n in OUTAGES)),
            )
            opened, closed = await asyncio.to_thread(transitions, proxy)
        finally:
            code = await asyncio.to_thread(proxy.stop)
        assert code == 0
    finished = dict(zip(OUTAGES, behind, strict=True))
    lost = [name for name, well in zip(OUTAGES, alone, strict=True) if well and not finished[name]]
    assert lost == []
    brief = [name for name, outage in OUTAGES.items() if outage.seconds < 25 or outage.share < 1]
    assert [name for name in brief if not finished[name]] == []
    assert opened >= {"transcriber-25", "transcriber-40", "transcriber-90", "search-503-20"}
    assert closed >= {"transcriber-25", "transcriber-40", "transcriber-90"}
    assert not all(alone), "an outage that nobody notices proves nothing"
