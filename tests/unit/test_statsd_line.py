"""Lines of statsd packets: what is read from them, and that nothing hostile gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.app_telemetry.statsd.line import (
    LARGEST,
    Result,
    StatsdSample,
    name_of,
    read,
    refuse_name,
    tag_values,
)


@pytest.mark.parametrize(
    ("line", "kind", "values", "weight", "tags"),
    [
        (b"a:1|c", "c", [1.0], 1.0, b""),
        (b"a:1.5|ms", "ms", [1.5], 1.0, b""),
        (b"a:+2|g", "g", [2.0], 1.0, b""),
        (b"a:-.5|g", "g", [-0.5], 1.0, b""),
        (b"a:1e-05|d", "d", [1e-05], 1.0, b""),
        (b"a:0.9:0.7:.5|h", "h", [0.9, 0.7, 0.5], 1.0, b""),
        (b"a:3|c|@0.25", "c", [3.0], 4.0, b""),
        (b"a:3|c|#x:1,y:b:c", "c", [3.0], 1.0, b"x:1,y:b:c"),
        (b"a:3|c|@0.5|#x:1|c:ci-1|T1656581400|card:low", "c", [3.0], 2.0, b"x:1"),
        (b"a:3|c|#x:1|@1|unknown", "c", [3.0], 1.0, b"x:1"),
        (b"a:3|c|##x:1,y:2", "c", [3.0], 1.0, b"x:1,y:2"),
        (b"a:3|c|#x:1|@1|##y:2", "c", [3.0], 1.0, b"x:1,y:2"),
        (b"a:3|c|#", "c", [3.0], 1.0, b""),
    ],
)
def test_what_a_line_says(
    line: bytes, kind: str, values: list[float], weight: float, tags: bytes
) -> None:
    """Every type, packed values, rates, tags, and sections of newer protocols."""
    reading = read(line)
    assert isinstance(reading, StatsdSample)
    assert (reading.kind, reading.values, reading.weight, reading.tags) == (
        kind,
        values,
        weight,
        tags,
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", Result.MALFORMED),
        (b"a", Result.MALFORMED),
        (b"a:1", Result.MALFORMED),
        (b"a|c", Result.MALFORMED),
        (b"a:|c", Result.MALFORMED),
        (b"a:1|", Result.MALFORMED),
        (b"a:1|C", Result.MALFORMED),
        (b"a:1|x", Result.MALFORMED),
        (b"a:1:|c", Result.MALFORMED),
        (b"a:1_000|c", Result.MALFORMED),
        (b"a: 1|c", Result.MALFORMED),
        (b"a:1 |c", Result.MALFORMED),
        (b"a:0x10|c", Result.MALFORMED),
        (b"a:1|c\r", Result.MALFORMED),
        (b"a:1|c|@", Result.MALFORMED),
        (b"a:1|c|@0", Result.MALFORMED),
        (b"a:1|c|@-1", Result.MALFORMED),
        (b"a:1|c|@1.1", Result.MALFORMED),
        (b"a:1|c|@1e-9", Result.MALFORMED),
        (b"a:1|c|@nan", Result.MALFORMED),
        (b"a:\xd9\xa1|c", Result.MALFORMED),
        (b"a:user|s", Result.UNSUPPORTED),
        (b"a:nan|g", Result.VALUE),
        (b"a:-Inf|g", Result.VALUE),
        (b"a:infinity|h", Result.VALUE),
        (b"a:1e400|c", Result.VALUE),
        (b"a:1e16|c", Result.VALUE),
        (b"a:1:nan|h", Result.VALUE),
    ],
)
def test_what_is_no_reading(line: bytes, why: Result) -> None:
    """Each with its reason; `float` alone would take several of these."""
    assert read(line) is why


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"video.encoding", Result.UNDECLARED),
        (b"a" * 201, Result.MALFORMED),
        (b"", Result.MALFORMED),
        (b"a b", Result.MALFORMED),
        (b"1a", Result.MALFORMED),
        (b"\xff\xfe", Result.MALFORMED),
        (b"_e{5,4}", Result.UNSUPPORTED),
        (b"_sc|redis.up|0", Result.UNSUPPORTED),
        (b"datadog.dogstatsd.client.packets_sent", Result.IGNORED),
    ],
)
def test_names_that_nobody_declared(name: bytes, why: Result) -> None:
    """Strangers, noise, and what clients send unasked are distinguished."""
    assert refuse_name(name) is why


@given(
    st.binary(max_size=300)
    | st.text(alphabet="a:.|1+-e@#cghmsd,nif\n", max_size=60).map(str.encode)
)
def test_nothing_raises(line: bytes) -> None:
    """Any bytes give a reading within bounds, or a reason."""
    name_of(line)
    refuse_name(line)
    tag_values(line)
    reading = read(line)
    if isinstance(reading, StatsdSample):
        assert all(abs(value) <= LARGEST for value in reading.values)
        assert 1.0 <= reading.weight <= 1e6
        assert len(reading.values) == len(reading.signed) >= 1


numbers = st.floats(-LARGEST, LARGEST, allow_nan=False).map(repr) | st.integers(
    -(10**15), 10**15
).map(str)
words = st.text(alphabet="abcXYZ019_./-", min_size=1, max_size=20)


@given(
    st.lists(numbers, min_size=1, max_size=20),
    st.sampled_from(["c", "g", "ms", "h", "d"]),
    st.none() | st.floats(0.001, 1.0),
    st.dictionaries(words, words, max_size=5),
)
def test_round_trip(values: list[str], kind: str, rate: float | None, tags: dict[str, str]) -> None:
    """What an honest client writes is read as it was meant."""
    line = f"a.b:{':'.join(values)}|{kind}"
    if rate is not None:
        line += f"|@{rate!r}"
    if tags:
        line += "|#" + ",".join(f"{name}:{value}" for name, value in tags.items())
    reading = read(line.encode())
    assert isinstance(reading, StatsdSample)
    assert name_of(line.encode()) == b"a.b"
    assert reading.kind == kind
    assert reading.values == [float(value) for value in values]
    assert reading.signed == [value[0] in "+-" for value in values]
    assert reading.weight == pytest.approx(1 / rate if rate is not None else 1.0)
    sent = {name.encode(): value.encode() for name, value in tags.items()}
    assert tag_values(reading.tags) == sent
