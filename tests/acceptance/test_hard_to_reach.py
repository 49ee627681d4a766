"""A service that restarts while its callers are patient is named on the status page."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from proxy.telemetry.metrics.counters import LONG_WAIT
from tests.http1 import Site, Upstream, get, ok, wait_until


def test_a_service_that_keeps_restarting_is_named(tmp_path: Path) -> None:
    """Every request is answered, after it waited for a connection: no error says so."""
    routes = [{"name": "all", "path": "/{rest:*}", "upstream": "app"}]
    with Site(tmp_path, {"front": {"routes": routes}}, app={"connect_patience": "30s"}) as site:
        site.upstream.stop()
        answers: list[int] = []
        callers = [
            threading.Thread(target=lambda: answers.append(site.ask(get("/")).status))
            for _ in range(3)
        ]
        began = time.monotonic()
        for caller in callers:
            caller.start()
        inside = "proxy_requests_in_flight"
        wait_until(lambda: site.proxy.metric(inside) == 3, "three requests that wait")
        wait_until(lambda: time.monotonic() - began > 2 * LONG_WAIT, "a wait that is noticed")
        site.upstream = Upstream(port=site.upstream.port)
        site.upstream.handler = ok
        for caller in callers:
            caller.join()
        assert answers == [200, 200, 200]

        def findings() -> list[tuple[str, str]]:
            health = json.loads(site.proxy.admin("/api/status")[1])["health"]
            return [(one["kind"], one["about"]) for one in health["findings"]]

        wait_until(lambda: ("service_hard_to_reach", "upstream:app") in findings(), "the finding")
