"""Text of others, and addresses, made fit to show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.clock import parse_http_date, parse_iso
from proxy.core.text import host_port, printable


@pytest.mark.parametrize(
    ("text", "shown", "in_ascii"),
    [
        ("plain", "plain", "plain"),
        ("a\nb\r\t\x1b[2J\x7f\0", "a\\nb\\r\\t\\x1b[2J\\x7f\\x00", "a\\nb\\r\\t\\x1b[2J\\x7f\\x00"),
        ("é☃", "é☃", "\\xe9\\u2603"),
        ("\u2028\u202e", "\\u2028\\u202e", "\\u2028\\u202e"),
        ("\ud800", "\\ud800", "\\ud800"),
        ("😀", "😀", "\\U0001f600"),
        ("it's \\n", "it's \\n", "it's \\n"),
    ],
)
def test_text_is_shown_on_one_line(text: str, shown: str, in_ascii: str) -> None:
    """What is not printable is escaped; the rest stays, quotes and backslashes too."""
    assert printable(text) == shown
    assert printable(text, ascii_only=True) == in_ascii


@given(st.text(), st.integers(1, 50), st.booleans())
def test_any_text_becomes_printable(text: str, limit: int, ascii_only: bool) -> None:
    """And not longer than each character's longest escape; a second time changes nothing."""
    shown = printable(text, limit, ascii_only=ascii_only)
    assert shown.isprintable()
    assert shown.isascii() or not ascii_only
    assert len(shown) <= 10 * limit + 3
    assert printable(shown, ascii_only=ascii_only) == shown


def test_a_long_text_is_cut() -> None:
    """And shows it."""
    assert printable("x" * 9, 8) == "x" * 8 + "…"
    assert printable("x" * 9, 8, ascii_only=True) == "x" * 8 + "..."
    assert printable("x" * 8, 8) == "x" * 8


def test_an_ipv6_address_stands_in_brackets() -> None:
    """RFC 3986: or its port could not be told from its last group."""
    assert host_port("::1", 80) == "[::1]:80"
    assert host_port("127.0.0.1", 80) == "127.0.0.1:80"
    assert host_port("", 80) == ":80"


@pytest.mark.parametrize("value", ["", "never", "0000-00-00", "x" * 50, 7, None, b"2026-11-23"])
def test_no_date(value: object) -> None:
    """Anything may stand where a date should."""
    assert parse_iso(value) is None
    assert not isinstance(value, str) or parse_http_date(value) is None


@given(st.text())
def test_any_text_is_a_date_or_none(text: str) -> None:
    """Neither reader fails, whatever a server or a document says."""
    parse_iso(text)
    parse_http_date(text)
