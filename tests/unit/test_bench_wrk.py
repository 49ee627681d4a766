"""The benchmark reads wrk's output right."""

from __future__ import annotations

import pytest

from tests.bench import wrk

PLAIN = """\
Running 3s test @ http://127.0.0.1:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.34ms  402.11us  12.90ms   91.05%
    Req/Sec    24.03k     1.20k   26.11k    73.33%
  Latency Distribution
     50%    1.27ms
     75%    1.41ms
     90%  980.00us
     99%    2.86s
  71753 requests in 3.00s, 15.12MB read
Requests/sec:  23902.44
Transfer/sec:      5.04MB
"""

ERRORS = PLAIN.replace(
    "Requests/sec:",
    "  Socket errors: connect 1, read 2, write 3, timeout 4\n"
    "  Non-2xx or 3xx responses: 90\nRequests/sec:",
)


def test_reads_rate_count_and_percentiles_in_microseconds() -> None:
    """All units become microseconds; the stray `+/- Stdev` percentages are not taken."""
    found = wrk.parse(PLAIN)
    assert found == wrk.WrkResult(23902.44, 71753, 1270.0, 2_860_000.0, 0)


def test_counts_socket_errors_and_bad_answers_together() -> None:
    """A fast proxy that answers 503 must not look good."""
    assert wrk.parse(ERRORS).errors == 100


@pytest.mark.parametrize(("unit", "factor"), [("us", 1), ("ms", 1e3), ("s", 1e6), ("m", 60e6)])
def test_knows_every_unit(unit: str, factor: float) -> None:
    """From microseconds to minutes."""
    assert wrk.parse(PLAIN.replace("1.27ms", f"2.00{unit}")).p50_us == 2 * factor


@pytest.mark.parametrize("text", ["", "unable to connect", PLAIN.replace("99%", "98%")])
def test_refuses_what_is_not_a_whole_result(text: str) -> None:
    """A failed run is an error, not a zero."""
    with pytest.raises(ValueError, match="not a wrk result"):
        wrk.parse(text)


def test_command_takes_whole_seconds() -> None:
    """wrk reads `-d0.3s` as nothing at all."""
    assert "-d1s" in wrk.command("http://x/", 32, 0.3)
    assert "-c32" in wrk.command("http://x/", 32, 3)
