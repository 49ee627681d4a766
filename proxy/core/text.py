"""Text of others made fit to show, and addresses as text."""

from __future__ import annotations

import re

_NOT_ASCII = re.compile(r"[^ -~]")


def printable(text: str, limit: int | None = None, *, ascii_only: bool = False) -> str:
    """`text` on one line: what is not printable is escaped as in Python (`\\n`, `\\x1b`), so that
    it can forge neither another line nor a terminal's command. With `ascii_only`, so is everything
    outside ASCII. At most `limit` characters are taken; an ellipsis shows that there were more."""
    if limit is not None and len(text) > limit:
        text = text[:limit] + ("..." if ascii_only else "…")
    if text.isprintable() and (not ascii_only or text.isascii()):
        return text
    if ascii_only:
        return _NOT_ASCII.sub(lambda found: _escaped(found[0]), text)
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]


def host_port(host: str, port: int) -> str:
    """`127.0.0.1:80`, `[::1]:80` (RFC 3986 §3.2.2)."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
