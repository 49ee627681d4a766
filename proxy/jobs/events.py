"""What a mirror tells whoever keeps a record of what happened, besides its log and its metrics."""

from __future__ import annotations

from collections.abc import Callable

#: Told what an operator would want to know: a kind (`redis_lost`, `restored`, ...) and its facts.
Tell = Callable[[str, dict[str, object]], None]


def silence(kind: str, facts: dict[str, object]) -> None:
    """Tells nobody."""
