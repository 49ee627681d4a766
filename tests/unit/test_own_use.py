"""What the proxy takes of its machine, as the status page has it."""

from __future__ import annotations

import os
import time

from proxy.admin.status.own_usage import OwnUsage


def test_what_the_process_takes() -> None:
    """Memory and descriptors as they are, the processor's share since the time before."""
    use = OwnUsage()
    assert set(use.document().values()) == {None}
    use.record(100.0)
    first = use.document()
    assert first["cpu"] is None
    assert first["memory"] > 1_000_000
    assert 3 <= first["descriptors"] <= first["descriptors_most"]
    spent = time.process_time()
    while time.process_time() < spent + 0.02:
        pass
    held = [os.dup(0) for _ in range(5)]
    try:
        use.record(100.1)
    finally:
        for one in held:
            os.close(one)
    assert use.document()["cpu"] >= 0.2
    assert use.document()["descriptors"] == first["descriptors"] + 5
