"""Eight processes of fifty callers, a flapping upstream, and kills: what the logs must show."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer
from tests.http1 import PATIENCE
from tests.http1.process import wait_until
from tests.integration.breaker_sidecar import LEASE

SECONDS = float(os.environ.get("BREAKER_STORM_SECONDS", "9"))
PROBES = 3
ALLOWED = {
    "closed>open",
    "open>half_open",
    "half_open>open",
    "half_open>closed",
}


def storm(redis_server: RedisServer, directory: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """Run the fleet; kill a sidecar and Redis (empty) on the way. The merged log, and who died."""
    processes = {}
    for owner in "abcdefgh":
        with (directory / f"{owner}.err").open("wb") as errors:
            processes[owner] = subprocess.Popen(
                [
                    *(sys.executable, "-W", "error", "-m", "tests.integration.breaker_sidecar"),
                    *(redis_server.url, owner, str(SECONDS), str(directory / f"{owner}.jsonl")),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
    killed = set()
    began = time.monotonic()

    def at(share: float) -> None:
        time.sleep(max(0.0, began + share * SECONDS - time.monotonic()))

    try:
        at(0.45)
        processes["b"].kill()
        killed.add("b")
        at(0.55)
        redis_server.kill()
        at(0.65)
        redis_server.start()
        at(1.0)
        survivors = [directory / f"{owner}.jsonl" for owner in processes if owner not in killed]
        wait_until(
            lambda: len({last_belief(path) for path in survivors}) == 1,
            "survivors that agree when nobody calls any more",
        )
        for owner, process in processes.items():
            assert process.stdin is not None
            process.stdin.close()
            status = process.wait(timeout=PATIENCE)
            complaint = (directory / f"{owner}.err").read_text()[-2000:]
            assert owner in killed or status == 0, complaint
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    events = [event for path in directory.glob("*.jsonl") for event in read_log(path)]
    return sorted(events, key=lambda event: event["at"]), killed


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of one sidecar; a line that is being written is left out."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def last_belief(path: Path) -> tuple[int, str, bool]:
    """Generation, state and whether it is shared, as that sidecar had them last."""
    beliefs = [event for event in read_log(path) if event["event"] == "belief"]
    last = beliefs[-1]
    return last["generation"], last["state"], last["shared"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_merged_log_of_a_storm(redis_server: RedisServer, tmp_path: Path) -> None:
    """At most three probes, transitions counted once, trips that hold, agreement in the end."""
    events, killed = storm(redis_server, tmp_path)

    # Probes in flight under fleet leases. Those of a killed process end with their lease.
    flying: dict[str, float] = {}
    most = 0
    for event in events:
        now = event["at"]
        flying = {lease: over for lease, over in flying.items() if over > now}
        if event["event"] == "probe" and ":local:" not in event["lease"]:
            flying[event["lease"]] = now + LEASE
            most = max(most, len(flying))
        elif event["event"] == "probe-end":
            flying.pop(event["lease"], None)
    assert 0 < most <= PROBES

    # Transitions.
    transitions = [event for event in events if event["event"] == "transition"]
    counted = Counter(event["tid"] for event in transitions if event["mine"])
    assert counted, "nothing happened"
    assert set(counted.values()) == {1}
    assert {event["change"] for event in transitions if event["mine"]} <= ALLOWED
    received = {
        event["tid"]
        for event in transitions
        if not event["mine"] and not event["restored"] and event["by"] not in killed
    }
    assert received <= set(counted), "a transition that its maker did not count"

    # A trip holds: what Redis said before it never closes the circuit again.
    stood: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "enter":
            before = stood.get(event["who"])
            if before is not None and before["shared"] and event["shared"]:
                same = before["generation"] == event["generation"]
                assert not (same and before["state"] == "open" and event["state"] == "closed")
            stood[event["who"]] = event
    assert stood

    # Agreement: from the first sidecar that believes in a generation to the last, where all shared.
    arrivals: dict[int, dict[str, float]] = defaultdict(dict)
    shared: dict[str, bool] = {}
    outage = [event["at"] for event in events if event.get("shared") is False]
    for event in events:
        if event["event"] == "belief":
            shared[event["who"]] = event["shared"]
            if event["shared"] and event["generation"]:
                arrivals[event["generation"]].setdefault(event["who"], event["at"])
    ups = [
        next((e["at"] for e in events if e["who"] == owner and e.get("shared")), None)
        for owner in "abcdefgh"
    ]
    assert sum(up is not None for up in ups) >= 2, "nobody to agree with"
    all_up = max(up for up in ups if up is not None)
    spreads = []
    for who in arrivals.values():
        first, last = min(who.values()), max(who.values())
        quiet = not any(first - 1.5 < moment < last + 1.5 for moment in outage)
        if quiet and first > all_up and len(who) >= 7:
            spreads.append(last - first)
    # Told, not judged: two cores are shared by eight processes and whatever else runs here.
    print(  # shown with -s, and when something fails
        f"{len(counted)} transitions, at most {most} probes, agreement after "
        f"median {statistics.median(spreads or [0]) * 1000:.1f} ms, "
        f"worst {max(spreads, default=0) * 1000:.1f} ms, over {len(spreads)} quiet transitions"
    )
