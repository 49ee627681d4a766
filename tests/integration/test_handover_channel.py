"""What the two processes of an upgrade say to each other, when one of them talks nonsense."""

from __future__ import annotations

import socket

import pytest

from proxy.core.process.handover import HandoverFailed, _Channel


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"Traceback (most recent call last):\n", "sent an invalid message"),
        (b"[" * 50_000 + b"\n", "sent an invalid message"),
        (b'["prepared"]\n', "sent an invalid message"),
        (b"\xff\xfe\n", "sent an invalid message"),
        (b'{"stage": "failed", "reason": "no such file"}\n', "no such file"),
        (b'{"stage": "serving"}\n', "serving"),
        (b'{"stage": "prep', "sent an invalid message"),
        (b"", "ended before it was prepared"),
        (b"x" * 100_000, "limit"),
    ],
)
async def test_only_the_message_that_is_due_counts(message: bytes, reason: str) -> None:
    """Anything else is a failed handover with a reason, so that the old process goes on."""
    ours, theirs = socket.socketpair()
    channel = _Channel(ours)
    theirs.setblocking(False)
    theirs.send(message)
    theirs.close()
    with pytest.raises(HandoverFailed, match=reason):
        await channel.receive("prepared", 30)
    channel.close()


async def test_the_due_message_is_returned() -> None:
    """With all that it has besides."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(b'{"stage": "serving", "taken": ["front"]}\n')
        channel = _Channel(ours)
        assert (await channel.receive("serving", 30))["taken"] == ["front"]
        channel.close()
