"""W3C Trace Context: what is continued, what begins anew, and what the upstream gets."""

from __future__ import annotations

import pytest

from proxy.core.trace_context import MOST_ATTEMPTS, ExchangeTrace, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def header(text: str = f"00-{TRACE}-{SPAN}-01") -> list[bytes]:
    """One field's value."""
    return [text.encode()]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-ff", 3),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", 1),
    ],
)
def test_a_callers_span_is_understood(text: str, flags: int) -> None:
    """Also one of a later version of the format; unknown flags are left out."""
    parent = parse_traceparent(header(text))
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.flags) == (TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "values",
    [
        [],
        header() * 2,
        header(""),
        header(f"ff-{TRACE}-{SPAN}-01"),
        header(f"00-{TRACE}-{SPAN}-01-more"),
        header(f"00-{TRACE}-{SPAN}-01 "),
        header(f"01-{TRACE}-{SPAN}-01more"),
        header(f"00-{TRACE.upper()}-{SPAN}-01"),
        header(f"00-{'0' * 32}-{SPAN}-01"),
        header(f"00-{TRACE}-{'0' * 16}-01"),
        header(f"00-{TRACE[:-1]}-{SPAN}-01"),
        header(f"00-{TRACE}-{SPAN}-1"),
        header(f"00-{TRACE}-{SPAN}-0g"),
        [b"\xff" * 55],
    ],
)
def test_what_is_malformed_is_none(values: list[bytes]) -> None:
    """As the recommendation wants it: then a trace begins here."""
    assert parse_traceparent(values) is None


@pytest.mark.parametrize("flags", ["00", "01"])
def test_the_callers_decision_holds(flags: str) -> None:
    """Sampled or not, whatever chance says here."""
    parent = parse_traceparent(header(f"00-{TRACE}-{SPAN}-{flags}"))
    trace = ExchangeTrace(parent, sampled=flags == "00")
    assert trace.sampled is (flags == "01")
    sent = trace.begin_attempt("t", 1.0).decode()
    assert sent == f"00-{TRACE}-{trace.attempts[0].span_id}-{flags}"


def test_each_attempt_has_a_span() -> None:
    """The upstream's parent is the attempt, not the exchange and not the caller's span."""
    trace = ExchangeTrace(None, sampled=True)
    first = trace.begin_attempt("a", 1.0)
    trace.failed_attempt("503", "a", 2.0)
    trace.failed_attempt("connect", "b", 3.0)
    second = trace.begin_attempt("c", 4.0)
    trace.end_attempt(5.0, None)
    assert first != second
    assert [(one.target, one.began, one.ended, one.error) for one in trace.attempts] == [
        ("a", 1.0, 2.0, "503"),
        ("b", 3.0, 3.0, "connect"),
        ("c", 4.0, 5.0, None),
    ]
    assert trace.span_id not in [one.span_id for one in trace.attempts]
    parent = parse_traceparent([second])
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (trace.trace_id, trace.attempts[2].span_id)


def test_endless_attempts_are_bounded() -> None:
    """What is remembered is; the field goes on being new."""
    trace = ExchangeTrace(None, sampled=True)
    sent = {trace.begin_attempt("a", float(number)) for number in range(3 * MOST_ATTEMPTS)}
    assert len(sent) == 3 * MOST_ATTEMPTS
    assert len(trace.attempts) == MOST_ATTEMPTS
