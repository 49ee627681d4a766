"""The status page's colours can be read, in both schemes; its files load nothing from elsewhere."""

from __future__ import annotations

import re

import pytest

from proxy.admin.status.page import HEADERS, load_files

FILES = load_files()
CSS = FILES["style.css"].decode()
PAIRS = dict(
    re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}, #[0-9a-f]{6})\);", CSS),
)

TEXT = ("ink", "soft", "accent", "ok", "warning", "error")
GROUNDS = ("ground", "surface", "raised")


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str, scheme: int) -> float:
    """Of two of the page's colours."""
    first, second = (luminance(PAIRS[name].split(", ")[scheme]) for name in (one, other))
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        *[(text, ground) for text in TEXT for ground in GROUNDS],
        ("on-accent", "accent"),
        ("on-accent", "error"),  # the button that opens a circuit
        *[(text, f"{tone}-ground") for tone in ("warning", "error") for text in ("ink", tone)],
        ("soft", "error-ground"),
        ("soft", "warning-ground"),
        ("accent", "error-ground"),
    ],
)
def test_text_can_be_read(text: str, ground: str, scheme: int) -> None:
    """4.5:1 at least: WCAG 2.2, 1.4.3."""
    assert contrast(text, ground, scheme) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_controls_and_charts_can_be_seen(ground: str, scheme: int) -> None:
    """Edges of controls and lines of charts, 3:1 at least: WCAG 2.2, 1.4.11."""
    for drawn in ("edge", "accent", "ok", "error", "soft"):
        assert contrast(drawn, ground, scheme) >= 3


def test_nothing_comes_from_elsewhere() -> None:
    """No address but our own in any file (a namespace is none), no inline style or script, no
    HTML made from text."""
    for name, body in FILES.items():
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, name
        assert "@import" not in text, name
        for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert danger not in text, name
    page = FILES["index.html"].decode()
    assert not re.search(r"<style|\bstyle=|\bon[a-z]+=|<script(?![^>]*\bsrc=)", page)


def test_every_file_that_is_named_is_there() -> None:
    """What the page links and the modules import comes with the package."""
    named = set(re.findall(r'/status/([a-z.]+)"', FILES["index.html"].decode()))
    for name, body in FILES.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([a-z.]+)"', body.decode()))
    assert named | {"index.html"} == set(FILES)


def test_the_policy_allows_our_own_files_alone() -> None:
    """No inline code, no frames, no other origin."""
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
