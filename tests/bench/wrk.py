"""wrk: its command line and its output."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}  # in microseconds
_PERCENTILE = re.compile(r"^\s+(\d+(?:\.\d+)?)%\s+([\d.]+)(us|ms|s|m|h)\s*$", re.M)
_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)\s*$", re.M)
_TOTAL = re.compile(r"^\s+(\d+) requests in ", re.M)
_NOT_OK = re.compile(r"^\s+Non-2xx or 3xx responses: (\d+)", re.M)
_SOCKET = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")


@dataclass(frozen=True, slots=True)
class WrkResult:
    """One run. Latencies in microseconds; `errors` counts failed sockets and answers that were
    neither 2xx nor 3xx."""

    requests_per_s: float
    requests: int
    p50_us: float
    p99_us: float
    errors: int


def command(url: str, connections: int, seconds: float, wrk: str = "wrk") -> list[str]:
    """The argv of one run; wrk takes whole seconds."""
    return [
        wrk,
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout=5s",
        "--latency",
        url,
    ]


def parse(text: str) -> WrkResult:
    """The figures of a run with `--latency`. Raises ValueError when they are not all there."""
    rate, total = _RATE.search(text), _TOTAL.search(text)
    latency = {float(p): float(v) * _UNITS[u] for p, v, u in _PERCENTILE.findall(text)}
    if rate is None or total is None or 50.0 not in latency or 99.0 not in latency:
        raise ValueError(f"not a wrk result: {text[-200:]!r}")
    errors = 0
    if not_ok := _NOT_OK.search(text):
        errors += int(not_ok[1])
    if sockets := _SOCKET.search(text):
        errors += sum(int(count) for count in sockets.groups())
    return WrkResult(float(rate[1]), int(total[1]), latency[50.0], latency[99.0], errors)
