"""Requests at a fixed rate through upgrades of the proxy: how many fail, how long they wait.

    python -m tests.bench.upgrades --requests 100000 --rate 2000 --upgrades 5

The load is that of `steady_load`. The proxy has a mirror and a trace, so stores change hands each
time. Ends with 1 when a request fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

import uvloop

from tests.bench.steady_load import Load, load_site
from tests.http1.process import ProxyProcess, wait_until


async def upgrades(proxy: ProxyProcess, count: int, seconds: float) -> list[int]:
    """So many, spread over that time; the pids of the new processes."""
    pids = []
    for _ in range(count):
        await asyncio.sleep(seconds / (count + 1))
        status, answer = await asyncio.to_thread(proxy.admin_post, "/api/upgrade")
        if status != 200:
            raise RuntimeError(f"upgrade: {status} {answer}")
        pids.append(int(answer["pid"]))
    return pids


async def measure(proxy: ProxyProcess, port: int, options: argparse.Namespace) -> Load:
    """Load and upgrades, side by side; ends the last process."""
    load = Load(port)
    seconds = options.requests / options.rate
    pids: list[int] = []
    try:
        asking = asyncio.create_task(load.run(options.requests, options.rate))
        pids = await upgrades(proxy, options.upgrades, seconds)
        await asking
    finally:
        if pids:
            os.kill(pids[-1], signal.SIGTERM)
    return load


def main() -> int:
    """Print what came of it; 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=2000.0, help="a second (%(default)s)")
    parser.add_argument("--upgrades", type=int, default=5)
    options = parser.parse_args()
    with load_site() as site:
        load = uvloop.run(measure(site.proxy, site.port, options))
        wait_until(lambda: site.proxy.admin("/livez")[0] == 0, "the end of the last process", 60)
    print(load.summary(f"at {options.rate:g}/s through {options.upgrades} upgrades"))
    return 1 if load.failed else 0


if __name__ == "__main__":
    sys.exit(main())
