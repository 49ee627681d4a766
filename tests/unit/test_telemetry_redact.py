"""What of a request target may stand in a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.logs.redact import clean_target, clean_text, is_plain, is_secret_name


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/jobs/mv_1", "/jobs/mv_1"),
        ("/jobs?status=completed&limit=10", "/jobs?status=completed&limit=10"),
        ("/j?API_KEY=abc&x=1", "/j?API_KEY=***&x=1"),
        ("/j?api%5fkey=abc", "/j?api%5fkey=***"),
        ("/j?%2561pikey=abc", "/j?%2561pikey=***"),
        ("/j?user[password]=abc", "/j?user[password]=***"),
        ("/j?X-Amz-Signature=abc&X-Amz-Expires=3", "/j?X-Amz-Signature=***&X-Amz-Expires=3"),
        (
            "/j?code=1&sig=2&key=3&session=4&auth=5",
            "/j?code=***&sig=***&key=***&session=***&auth=***",
        ),
        ("/j?a=1;token=abc", "/j?a=1;token=***"),
        ("/j?a=1;token=abc&b=2", "/j?a=1;***&b=2"),
        ("/j?token=a=b&token=", "/j?token=***&token="),
        ("/j?next=/cb?token=abc", "/j?next=/cb?***"),
        ("/j?next=%2Fcb%3Ftoken%3Dabc", "/j?next=%2Fcb%3F***"),
        ("/j?q=what%3F&keywords=cats", "/j?q=what%3F&keywords=cats"),
        ("http://me:secret@app/j", "http://***@app/j"),
        ("//me:secret@app/j", "//me:secret@app/j"),
        ("/j\x1b[31m\r\n\x7fé☃", "/j\\x1b[31m\\r\\n\\x7f\\xe9\\u2603"),
        ("*", "*"),
        ("", ""),
    ],
)
def test_secrets_and_control_characters_do_not_show(target: str, shown: str) -> None:
    """Secret-looking values, userinfo and unprintable bytes are replaced; the rest stays."""
    assert (target if is_plain(target) else clean_target(target)) == shown


def test_only_the_first_parameters_are_looked_at_and_shown() -> None:
    """A query of thousands of parameters costs a bounded time and hides what was not looked at."""
    shown = clean_target("/j?" + "a=1&" * 200 + "token=abc")
    assert shown.endswith("&...")
    assert "abc" not in shown


@pytest.mark.parametrize(
    "name",
    [
        *(
            "pw",
            "user_pw",
            "ticket",
            "assertion",
            "client_assertion",
            "SAMLResponse",
            "SAMLRequest",
        ),
        *("hmac", "refresh", "refresh_token", "private", "privateKey", "code_verifier", "nonce"),
        *("code_challenge", "csrf", "X-XSRF", "cookie", "wresult", "hash", "mac", "jwe", "cvv"),
        *("samlresponse[]", "p%77", "%2570w", "Client-Assertion", "oauth_verifier", "totp"),
    ],
)
def test_the_names_of_secrets(name: str) -> None:
    """What protocols and habits carry in a query, and nobody else may read."""
    assert clean_target(f"/cb?a=1&{name}=abc") == f"/cb?a=1&{name}=***"


@pytest.mark.parametrize(
    "name",
    [
        *("page", "status", "limit", "query", "max_shorts", "author", "compass", "postal_code"),
        *("currency_code", "machine", "hashtag", "seeds", "width", "file", "subtitle_style"),
    ],
)
def test_ordinary_names_are_no_secrets(name: str) -> None:
    """What operators search their logs for stays readable."""
    assert not is_secret_name(name)


@given(st.text())
def test_any_target_becomes_printable_ascii(target: str) -> None:
    """Whatever comes, what is logged is printable ASCII."""
    shown = clean_target(target)
    assert shown == "" or (shown.isascii() and shown.isprintable())


def test_long_texts_are_cut() -> None:
    """A limit holds, with a mark where something was cut."""
    assert clean_text("x" * 50, 10) == "x" * 10 + "..."
