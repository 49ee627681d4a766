"""Requests at a fixed rate through reloads with changing configs: what fails, what grows.

    python -m tests.bench.reloads --reloads 200 --rate 1000

The load is that of `steady_load`. Each reload changes something else: routes, listeners, targets,
breakers, timeouts, the trace, the log, what is collected of the app. Memory, descriptors and
background tasks are read after the first round of all kinds and at the end. Ends with 1 when a
request or a reload fails, or descriptors or tasks are more than before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import uvloop

from proxy.demo.ports import free_port
from tests.bench.steady_load import Load, load_site
from tests.http1.process import ProxyProcess

Config = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What the process has: bytes, descriptors, background tasks."""

    memory: int
    descriptors: int
    tasks: int

    @classmethod
    def of(cls, proxy: ProxyProcess) -> Size:
        """Now."""
        running = [
            line
            for line in proxy.admin("/metrics")[1].splitlines()
            if line.startswith("proxy_task_deaths_total{")
        ]
        return cls(proxy.memory(), proxy.descriptors(), len(running))


def variants(base: Config, directory: Path) -> Iterator[Config]:
    """Configs that differ from `base` in one place each, the last not at all."""
    front, app = base["listeners"]["front"], base["upstreams"]["app"]
    (route,) = front["routes"]
    extra = {"name": "extra", "path": "/extra", "upstream": "app"}
    side = {"bind": f"127.0.0.1:{free_port()}", "routes": [route]}

    def routed(*routes: Config) -> Config:
        return {"listeners": {"front": front | {"routes": list(routes)}}}

    def upstream(**changes: Any) -> Config:
        return {"upstreams": {"app": app | changes}}

    for change in (
        routed(extra, route),
        routed(route | {"headers": {"response": {"set": {"X-Reloaded": "yes"}}}}),
        routed(route | {"timeouts": {"response": "20s"}}),
        routed(route | {"fallback": {"stale": "1m"}}),
        {"listeners": {"front": front, "side": side}},
        {"listeners": {"front": front | {"limits": {"header": "48KiB"}}}},
        upstream(breaker={"failure_threshold": 7}),
        upstream(breaker={"failure_threshold": 9}, retry={"attempts": 2}),
        upstream(pool={"max_connections": 512}),
        upstream(health={"path": "/small", "every": "1s"}),
        upstream(targets=[*app["targets"], app["targets"][0].replace("127.0.0.1", "localhost")]),
        {"trace": {"sqlite": str(directory / "other.db")}},
        {"statsd": {"bind": f"127.0.0.1:{free_port()}"}},
        {"app_metrics": {"url": f"{app['targets'][0]}/small"}},
        {"resources": {"directories": {"here": str(directory)}}},
        {"logging": {"output": str(directory / "other.log")}},
        {"drain_timeout": "20s"},
        {},
    ):
        yield base | change


async def reloads(proxy: ProxyProcess, configs: list[Config], count: int, seconds: float) -> Size:
    """So many, spread over that time; the size after the first round. Raises `RuntimeError`."""
    first: Size | None = None
    for number, config in enumerate(islice(cycle(configs), count)):
        await asyncio.sleep(seconds / (count + 1))
        proxy.write(config)
        status, answer = await asyncio.to_thread(proxy.admin_post, "/api/reload")
        if status != 200:
            raise RuntimeError(f"reload {number}: {status} {json.dumps(answer)}")
        if number == len(configs) - 1:
            first = await asyncio.to_thread(Size.of, proxy)
    if first is None:
        raise RuntimeError(f"fewer reloads than the {len(configs)} kinds of change")
    return first


async def measure(
    proxy: ProxyProcess, port: int, configs: list[Config], options: argparse.Namespace
) -> tuple[Load, Size, Size]:
    """Load and reloads, side by side; the sizes after the first round and at the end."""
    load = Load(port)
    seconds = options.reloads / options.every
    asking = asyncio.create_task(load.run(int(seconds * options.rate), options.rate))
    try:
        first = await reloads(proxy, configs, options.reloads, seconds)
        await asking
    finally:
        asking.cancel()
    proxy.write(configs[-1])
    status, answer = await asyncio.to_thread(proxy.admin_post, "/api/reload")
    if status != 200:
        raise RuntimeError(f"the last reload: {status} {json.dumps(answer)}")
    return load, first, await asyncio.to_thread(Size.of, proxy)


def main() -> int:
    """Print what came of it; 1 when a request failed or something grew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--every", type=float, default=4.0, help="reloads/s (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=1000.0, help="requests a second (%(default)s)"
    )
    options = parser.parse_args()
    with load_site() as site:
        configs = list(variants(site.proxy.config, site.directory))
        load, first, last = uvloop.run(measure(site.proxy, site.port, configs, options))
    print(load.summary(f"at {options.rate:g}/s through {options.reloads} reloads"))
    print(
        f"after the first {len(configs)} reloads and at the end: {first.memory / 2**20:.1f} and"
        f" {last.memory / 2**20:.1f} MiB, {first.descriptors} and {last.descriptors} descriptors,"
        f" {first.tasks} and {last.tasks} tasks"
    )
    grown = last.descriptors > first.descriptors + 8 or last.tasks > first.tasks
    return 1 if load.failed or grown else 0


if __name__ == "__main__":
    sys.exit(main())
