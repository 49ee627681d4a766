"""While the app is silent, a mirror that was too slow to look is asked again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.core.errors import JobExpired, StillWaiting
from proxy.forward.fallbacks import ReplyFound
from proxy.forward.routing.plan import Reply
from proxy.jobs.answers import NoAnswer
from proxy.routes.jobs import patience as patience_module


class Exchange:
    """One that waits for the app."""

    replied = False
    correlation_id = "waiting"

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def interrupt(self, found: ReplyFound) -> None:
        self.replies.append(found.reply)

    def note(self, **_: str) -> None:
        """Nobody reads it here."""


async def asked(monkeypatch: pytest.MonkeyPatch, *found: Any) -> tuple[Exchange, int]:
    """The exchange after the mirror has found these, one after the other; how often it looked."""
    monkeypatch.setattr(patience_module, "_LOOK_AGAIN", 0.0)
    looks = iter(found)
    count = 0

    async def look(x: Any, trouble: Any) -> Any:
        nonlocal count
        count += 1
        one = next(looks)
        if isinstance(one, Exception):
            raise one
        return one

    fallback_source = cast(Any, SimpleNamespace(look=look))
    role = cast(Any, SimpleNamespace(fallback_after=1.0))
    patience = patience_module.Patience(cast(Any, None), fallback_source, role, cast(Any, None))
    x = Exchange()
    await patience._ask(cast(Any, x), StillWaiting("No answer"))
    return x, count


async def test_a_slow_look_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the third look finds is the answer."""
    reply = Reply(200, (), b"{}")
    x, looks = await asked(monkeypatch, NoAnswer(), NoAnswer(), reply)
    assert (x.replies, looks) == ([reply], 3)


@pytest.mark.parametrize("found", [None, JobExpired("over")])
async def test_what_the_mirror_does_not_know_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, found: Any
) -> None:
    """The app's own word is worth waiting for."""
    x, looks = await asked(monkeypatch, found)
    assert (x.replies, looks) == ([], 1)
