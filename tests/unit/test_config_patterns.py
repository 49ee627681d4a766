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
