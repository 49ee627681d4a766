"""Path patterns: syntax, and which pattern leaves nothing for another."""

from __future__ import annotations

import pytest

from proxy.config.patterns import covers, parameters, parse_pattern


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("/", ()),
        ("/make-video", ()),
        ("/jobs/", ()),
        ("/jobs/{job_id}", ("job_id",)),
        ("/a/{b}/c/{d:*}", ("b", "d")),
        ("/{rest:*}", ("rest",)),
        ("/größe/a b", ()),
    ],
)
def test_accepts(pattern: str, names: tuple[str, ...]) -> None:
    """Sound patterns are read, with their parameters in order."""
    assert parameters(parse_pattern(pattern)) == names


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "jobs", "*", "/a?b=c", "/a#b", "/a%20b", "/a//b", "/a/../b", "/./a", "/{a}{b}"),
        *("/x-{a}", "/{a:*}/b", "/{a}/{a}", "/{}", "/{1a}", "/{a:**}", "/a}", "/a\nb", "/a\\b"),
    ],
)
def test_refuses(pattern: str) -> None:
    """What could never match, or has two readings, is refused."""
    with pytest.raises(ValueError, match=r"(?s)^expected .*, found "):
        parse_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "spelling"),
    [
        *((f"/api/{part}", "{rest:*}") for part in ("*", "**", "(.*)", ".*", "(.+)", ".*$")),
        *((f"/api/{part}", "{p:*}") for part in ("*p", ":p*", "<path:p>", "{p:path}", "{p...}")),
        *((f"/api/{part}", "{p:*}") for part in ("[...p]", "{*p}", "(?P<p>.*)", "(?<p>.+)$")),
        *((f"/jobs/{part}", "{id}") for part in (":id", ":id?", "<id>", "<int:id>", "[id]")),
        *((f"/jobs/{part}/x", "{id}") for part in ("{id:int}", "{id:[0-9]+}", "(?P<id>[0-9]+)")),
        *((f"/jobs/{part}/x", "{name}") for part in ("*",)),
        *((f"/{part}", "a segment of plain text") for part in ("a*", "(a|b)", "a$", "[0-9]+")),
        *((f"/{part}", "a segment of plain text") for part in ("x(.*)", ":id.json", "<a><b>")),
    ],
)
def test_patterns_of_elsewhere_are_refused_with_the_right_spelling(
    pattern: str, spelling: str
) -> None:
    """What would be literal text here, and matches nothing, is refused."""
    with pytest.raises(ValueError, match=r"^expected ") as refusal:
        parse_pattern(pattern)
    assert str(refusal.value).startswith(f"expected {spelling}, found ")


@pytest.mark.parametrize("pattern", ["/v1/x:cancel", "/Users(1)", "/a+b", "/~me", "/a.b", "/$x"])
def test_odd_text_is_text(pattern: str) -> None:
    """Characters that mean nothing where they stand are literal."""
    assert parameters(parse_pattern(pattern)) == ()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("/{rest:*}", "/", True),
        ("/{rest:*}", "/a/b", True),
        ("/{rest:*}", "/{other:*}", True),
        ("/a/{rest:*}", "/a", False),
        ("/a/{rest:*}", "/a/", True),
        ("/a/{rest:*}", "/b/c", False),
        ("/jobs/{id}", "/jobs/latest", True),
        ("/jobs/latest", "/jobs/{id}", False),
        ("/jobs/{id}", "/jobs/", False),
        ("/jobs/{id}", "/jobs/{rest:*}", False),
        ("/jobs/{id}", "/jobs/a/b", False),
        ("/a", "/a", True),
    ],
)
def test_covers(first: str, second: str, expected: bool) -> None:
    """A pattern covers another if it takes every path that the other would."""
    assert covers(parse_pattern(first), parse_pattern(second)) is expected
